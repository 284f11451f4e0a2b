// For a few tokens, as in modulation, reading the weight decides. 16 nonzeros lie in the lanes of a
// vector; their inputs come by permutation from the block's 64, which four registers hold.

#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define HAS_FEW_TOKENS 1

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "threads.h"
#include "vectors.h"
#include "weight.h"

namespace ditprune {

constexpr int64_t FEW_TOKENS = 8;
constexpr int MAX_TOGETHER = 4;  // tokens whose inputs of a block fit the registers
constexpr int64_t FEW_TILE_ROWS = 64;

inline __m512 load_kept(__mmask16 keep, const float* from) {
    return _mm512_maskz_loadu_ps(keep, from);
}

inline __m512 load_kept(__mmask16 keep, const BFloat16* from) {
    __m256i bits = _mm256_maskz_loadu_epi16(keep, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Adds the nonzeros of some rows of one block, at most 16 · STEPS in a row, to their sums
// [rows][num_tokens][16], of which these are M tokens' with their inputs [M][depth].
template <int M, int STEPS, class Value>
void add_group(const Value* values, const uint8_t* columns, const uint8_t* counts, int64_t num_rows,
               const float* inputs, int64_t depth, float* sums, int64_t num_tokens) {
    __m512 tokens[M][4];
    for (int m = 0; m < M; m++)
        for (int q = 0; q < 4; q++) tokens[m][q] = _mm512_loadu_ps(inputs + m * depth + q * 16);
    for (int64_t r = 0; r < num_rows; r++, sums += num_tokens * 16) {
        const uint64_t keep_all = counts[r] >= 64 ? ~uint64_t(0) : (uint64_t(1) << counts[r]) - 1;
        prefetch_row(values, columns);
        __m512 sum[M];
        for (int m = 0; m < M; m++) sum[m] = _mm512_load_ps(sums + m * 16);
#pragma GCC unroll 4
        for (int step = 0; step < STEPS; step++) {
            const __mmask16 keep = __mmask16(keep_all >> (16 * step));
            // Lanes beyond the row's count are not read, and no permutation looks beyond the block.
            const __m512 value = load_kept(keep, values + 16 * step);
            const __m512i column =
                _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(keep, columns + 16 * step));
            const __mmask16 is_upper = _mm512_test_epi32_mask(column, _mm512_set1_epi32(32));
            for (int m = 0; m < M; m++) {
                __m512 lower = _mm512_permutex2var_ps(tokens[m][0], column, tokens[m][1]);
                __m512 upper = _mm512_permutex2var_ps(tokens[m][2], column, tokens[m][3]);
                __m512 token = _mm512_mask_blend_ps(is_upper, lower, upper);
                sum[m] = _mm512_mask3_fmadd_ps(value, token, sum[m], keep);
            }
        }
        for (int m = 0; m < M; m++) _mm512_store_ps(sums + m * 16, sum[m]);
        values += counts[r];
        columns += counts[r];
    }
}

template <int M, class Value>
void add_group_of(int64_t most, const Value* values, const uint8_t* columns, const uint8_t* counts,
                  int64_t num_rows, const float* inputs, int64_t depth, float* sums,
                  int64_t num_tokens) {
    auto add = most <= 16   ? add_group<M, 1, Value>
               : most <= 32 ? add_group<M, 2, Value>
               : most <= 48 ? add_group<M, 3, Value>
                            : add_group<M, 4, Value>;
    add(values, columns, counts, num_rows, inputs, depth, sums, num_tokens);
}

// The sums of some rows of the weight for all tokens. False where the weight is broken.
template <class Value>
bool sum_few(const Weight& weight, int64_t first_row, int64_t num_rows, const float* inputs,
             int64_t depth, float* sums, int64_t num_tokens) {
    constexpr decltype(&add_group_of<1, Value>) add_group_of_tokens[MAX_TOGETHER] = {
        add_group_of<1, Value>, add_group_of<2, Value>, add_group_of<3, Value>,
        add_group_of<4, Value>};
    const auto* values = static_cast<const Value*>(weight.values);
    std::fill(sums, sums + num_rows * num_tokens * 16, 0.0f);
    for (int64_t r = 0; r < num_rows; r += GROUP) {
        for (int64_t block = 0; block < weight.num_blocks(); block++) {
            const int64_t part = (first_row + r) / GROUP * weight.num_blocks() + block;
            const int64_t first = weight.starts[part];
            const uint8_t* counts = weight.counts + part * GROUP;
            const int64_t most = *std::max_element(counts, counts + GROUP);
            if (most > BLOCK || !weight.is_whole(part)) return false;
            for (int64_t token = 0; token < num_tokens; token += MAX_TOGETHER) {
                int64_t together = std::min<int64_t>(MAX_TOGETHER, num_tokens - token);
                add_group_of_tokens[together - 1](
                    most, values + first, weight.columns + first, counts,
                    std::min(GROUP, num_rows - r), inputs + token * depth + block * BLOCK, depth,
                    sums + (r * num_tokens + token) * 16, num_tokens);
            }
        }
    }
    return true;
}

template <class Value, class Token>
Status multiply_few(const Weight& weight, const Token* inputs, int64_t input_stride, Token* outputs,
                    int64_t num_tokens, int num_threads) {
    const int64_t depth = weight.num_blocks() * BLOCK;
    const int64_t sums_size = FEW_TILE_ROWS * num_tokens * 16;
    float* floats = scratch().at_least(num_tokens * depth + num_threads * sums_size);
    if (!floats) return NO_MEMORY;
    std::fill(floats, floats + num_tokens * depth, 0.0f);
    for (int64_t m = 0; m < num_tokens; m++)
        for (int64_t k = 0; k < weight.num_columns; k++)
            floats[m * depth + k] = to_float(inputs[m * input_stride + k]);
    std::atomic<bool> is_broken{false};
    const int64_t num_tasks = (weight.num_rows + FEW_TILE_ROWS - 1) / FEW_TILE_ROWS;
    for_each_task(num_tasks, num_threads, [&](int64_t task, int worker) {
        const int64_t first_row = task * FEW_TILE_ROWS;
        const int64_t num_rows = std::min(FEW_TILE_ROWS, weight.num_rows - first_row);
        float* sums = floats + num_tokens * depth + worker * sums_size;
        if (!sum_few<Value>(weight, first_row, num_rows, floats, depth, sums, num_tokens)) {
            is_broken = true;
            return;
        }
        for (int64_t m = 0; m < num_tokens; m++) {
            for (int64_t r = 0; r < num_rows; r++) {
                float sum = _mm512_reduce_add_ps(_mm512_load_ps(sums + (r * num_tokens + m) * 16));
                if (weight.bias) sum += weight.bias[first_row + r];
                if (weight.activation) sum = gelu_tanh<4>(Floats<4>{} + sum)[0];
                from_float(sum, outputs + m * weight.num_rows + first_row + r);
            }
        }
    });
    return is_broken ? BROKEN_WEIGHT : OK;
}

}  // namespace ditprune

#else
#define HAS_FEW_TOKENS 0
#endif
