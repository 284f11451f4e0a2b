// A sparse weight in memory, as packed.py writes it.

#pragma once

#include <cstdint>

#include "activation.h"

namespace ditprune {

constexpr int64_t BLOCK = 64;  // columns
constexpr int64_t GROUP = 32;  // rows

enum Values { FLOAT32 = 0, BFLOAT16 = 1, PAIRS = 2 };
enum Status { OK = 0, BROKEN_WEIGHT = 1, NO_MEMORY = 2, NO_PAIRS = 3 };

// Nonzeros lie group by group of rows, within it block by block of columns, within it row by row.
struct Weight {
    const void* values;      // float, BFloat16 or Pair [num_nonzero]
    const uint8_t* columns;  // [num_nonzero], within the block
    const uint8_t* counts;   // [num_groups, num_blocks, GROUP] nonzeros of a row within a block
    const int64_t* starts;   // [num_groups · num_blocks + 1] where each block of a group begins
    const float* bias;       // [num_rows] or null
    int64_t num_nonzero, num_rows, num_columns;
    Activation activation;  // of each output, after the bias

    int64_t num_blocks() const { return (num_columns + BLOCK - 1) / BLOCK; }
    int64_t num_groups() const { return (num_rows + GROUP - 1) / GROUP; }

    // Whether a block of a group is what its counts say and lies within the values.
    bool is_whole(int64_t part) const {
        int64_t first = starts[part], last = starts[part + 1], sum = 0;
        for (int64_t r = 0; r < GROUP; r++) sum += counts[part * GROUP + r];
        return 0 <= first && first <= last && last <= num_nonzero && sum == last - first;
    }
};

// Nonzeros to prefetch ahead: the hardware does not follow a stream of such short rows.
constexpr int64_t AHEAD = 2048;

template <class Value>
inline void prefetch_row(const Value* values, const uint8_t* columns) {
    __builtin_prefetch(values + AHEAD);
    __builtin_prefetch(values + AHEAD + 64 / sizeof(Value));
    __builtin_prefetch(columns + AHEAD);
}

}  // namespace ditprune
