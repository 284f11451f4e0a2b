// Tokens lie in the lanes of vectors, and each nonzero is broadcast: one multiply-add for every
// vector of tokens, no gather and no branch on the pattern. The inputs are transposed into slabs of
// [BLOCK columns][tokens] that stay in the L1 cache while the rows of the weight pass over them;
// the sums of one tile of rows × tokens stay in L2.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "threads.h"
#include "vectors.h"
#include "weight.h"

namespace ditprune {

constexpr int64_t MAX_VECTORS = 8;  // of tokens in a tile: the sums of one row fill 8 registers
constexpr int64_t MAX_TILE_ROWS = 256;
constexpr int64_t TASKS_PER_THREAD = 4;  // smaller tiles of rows where there would be fewer
constexpr int64_t SLAB_BYTES = 16 << 20;  // inputs transposed at a time

// Adds the nonzeros of some rows of one block to their sums [rows][V · W tokens].
template <int W, int V, class Value>
void add_block(const Value* values, const uint8_t* columns, const uint8_t* counts, int64_t num_rows,
               const float* slab, float* sums, const float* initial) {
    // A chain of dependent additions to few registers would wait for itself.
    constexpr int CHAINS = V == 1 ? 4 : V <= 3 ? 2 : 1;
    constexpr int64_t TOKENS = V * W;
    for (int64_t r = 0; r < num_rows; r++, sums += TOKENS) {
        prefetch_row(values, columns);
        Floats<W> sum[CHAINS][V];
        const int64_t count = counts[r];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            sum[0][v] = initial ? initial[r] - Floats<W>{} : load<W>(sums + v * W);
#pragma GCC unroll 4
            for (int c = 1; c < CHAINS; c++) sum[c][v] = Floats<W>{};
        }
        auto add = [&](int64_t i, int chain) __attribute__((always_inline)) {
            const Floats<W> value = to_float(values[i]) - Floats<W>{};
            const float* tokens = slab + (columns[i] & (BLOCK - 1)) * TOKENS;
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) sum[chain][v] += value * load<W>(tokens + v * W);
        };
        int64_t i = 0;
        for (; i + CHAINS <= count; i += CHAINS) {
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++) add(i + c, c);
        }
        for (; i < count; i++) add(i, 0);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
#pragma GCC unroll 4
            for (int c = 1; c < CHAINS; c++) sum[0][v] += sum[c][v];
            store<W>(sum[0][v], sums + v * W);
        }
        values += count;
        columns += count;
    }
}

// One tile: the sums of some rows of the weight for V · W tokens. False where the weight is broken.
template <int W, int V, class Value>
bool sum_tile(const Weight& weight, int64_t first_row, int64_t num_rows, const float* slabs,
              float* sums, const float* initial) {
    const auto* values = static_cast<const Value*>(weight.values);
    for (int64_t block = 0; block < weight.num_blocks(); block++) {
        const float* slab = slabs + block * BLOCK * V * W;
        for (int64_t r = 0; r < num_rows; r += GROUP) {
            const int64_t part = (first_row + r) / GROUP * weight.num_blocks() + block;
            if (!weight.is_whole(part)) return false;
            const int64_t first = weight.starts[part];
            add_block<W, V>(values + first, weight.columns + first, weight.counts + part * GROUP,
                            std::min(GROUP, num_rows - r), slab, sums + r * V * W,
                            block == 0 ? initial + r : nullptr);
        }
    }
    return true;
}

using SumTile = bool (*)(const Weight&, int64_t, int64_t, const float*, float*, const float*);

template <int W, class Value, int... V>
SumTile sum_tile_of(int64_t num_vectors, std::integer_sequence<int, V...>) {
    static constexpr SumTile table[] = {sum_tile<W, V + 1, Value>...};
    return table[num_vectors - 1];
}

template <int W, int MAX_V, class Value, class Token>
Status multiply_many(const Weight& weight, const Token* inputs, int64_t input_stride, Token* outputs,
                int64_t num_tokens, int num_threads) {
    constexpr auto widths = std::make_integer_sequence<int, MAX_V>();
    static thread_local Scratch scratch;
    const int64_t depth = weight.num_blocks() * BLOCK;
    const int64_t num_vectors = (num_tokens + W - 1) / W;
    const int64_t num_tiles = (num_vectors + MAX_V - 1) / MAX_V;
    const int64_t slab_tokens = MAX_V * W;
    const int64_t num_at_once =
        std::clamp<int64_t>(SLAB_BYTES / int64_t(depth * slab_tokens * sizeof(float)), 1, num_tiles);
    int64_t tile_rows = MAX_TILE_ROWS;
    auto num_row_tiles = [&] { return (weight.num_rows + tile_rows - 1) / tile_rows; };
    while (tile_rows > GROUP && num_row_tiles() * num_at_once < TASKS_PER_THREAD * num_threads)
        tile_rows /= 2;
    const int64_t slabs_size = num_at_once * depth * slab_tokens;
    const int64_t sums_size = tile_rows * slab_tokens;
    const int64_t padded_rows = weight.num_groups() * GROUP;
    float* slabs = scratch.at_least(slabs_size + num_threads * sums_size + padded_rows);
    if (!slabs) return NO_MEMORY;
    float* initial = slabs + slabs_size + num_threads * sums_size;
    for (int64_t r = 0; r < padded_rows; r++)
        initial[r] = weight.bias && r < weight.num_rows ? weight.bias[r] : 0;

    std::atomic<bool> is_broken{false};
    for (int64_t first_tile = 0; first_tile < num_tiles; first_tile += num_at_once) {
        const int64_t num_now = std::min(num_at_once, num_tiles - first_tile);
        struct Tile {
            int64_t first_token, num_tokens, num_vectors;
        };
        auto tile_at = [&](int64_t i) {  // vectors spread evenly
            int64_t first = (first_tile + i) * num_vectors / num_tiles;
            int64_t last = (first_tile + i + 1) * num_vectors / num_tiles;
            return Tile{first * W, std::min(last * W, num_tokens) - first * W, last - first};
        };
        for_each_task(num_now * weight.num_blocks(), num_threads, [&](int64_t task, int) {
            const int64_t i = task / weight.num_blocks(), column = task % weight.num_blocks() * BLOCK;
            const Tile tile = tile_at(i);
            const int64_t padded = tile.num_vectors * W;
            const int64_t num_columns = std::min(BLOCK, weight.num_columns - column);
            float* slab = slabs + i * depth * slab_tokens + column * padded;
            if (tile.num_tokens < padded || num_columns < BLOCK)
                std::fill(slab, slab + BLOCK * padded, 0.0f);
            transpose<W>(inputs + tile.first_token * input_stride + column, input_stride,
                         tile.num_tokens, num_columns, slab, padded);
        });
        for_each_task(num_now * num_row_tiles(), num_threads, [&](int64_t task, int worker) {
            const int64_t i = task % num_now, first_row = task / num_now * tile_rows;
            const Tile tile = tile_at(i);
            const int64_t num_rows = std::min(tile_rows, weight.num_rows - first_row);
            float* sums = slabs + slabs_size + worker * sums_size;
            auto sum = sum_tile_of<W, Value>(tile.num_vectors, widths);
            if (!sum(weight, first_row, num_rows, slabs + i * depth * slab_tokens, sums,
                     initial + first_row)) {
                is_broken = true;
                return;
            }
            transpose<W>(sums, tile.num_vectors * W, num_rows, tile.num_tokens,
                         outputs + tile.first_token * weight.num_rows + first_row, weight.num_rows);
        });
    }
    return is_broken ? BROKEN_WEIGHT : OK;
}

}  // namespace ditprune
