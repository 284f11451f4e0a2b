// outputs [M, N] = inputs [M, K] · weight [N, K]ᵀ + bias, where the weight holds its nonzeros only;
// or GELU of it.
//
// This file is compiled once for each instruction set (build.py); LANES is the width of its vectors
// in floats. Data of the weight is never trusted: a column is masked to its block, and each group's
// counts are compared with its length before any of its nonzeros is read.

#include <algorithm>
#include <cstdint>

#include "few_tokens.h"
#include "many_tokens.h"
#include "weight.h"

#ifndef LANES
#error "compile with -DLANES=4, 8 or 16"
#endif

namespace ditprune {

template <class Value, class Token>
Status multiply(const Weight& weight, const void* inputs, int64_t input_stride, void* outputs,
                int64_t num_tokens, int num_threads) {
    auto multiply = multiply_many<LANES, MAX_VECTORS, Value, Token>;
#if HAS_FEW_TOKENS
    if (num_tokens <= FEW_TOKENS) multiply = multiply_few<Value, Token>;
#elif LANES > 4
    if (num_tokens <= 4) multiply = multiply_many<4, 1, Value, Token>;
#endif
    return multiply(weight, static_cast<const Token*>(inputs), input_stride,
                    static_cast<Token*>(outputs), num_tokens, num_threads);
}

// The same with bfloat16 in pairs: weight and inputs count pairs, which lie in memory as floats.
Status multiply_pairs(const Weight& weight, const void* inputs, int64_t input_stride, void* outputs,
                      int64_t num_tokens, int num_threads) {
#ifdef __AVX512BF16__
    return multiply_many<LANES, MAX_VECTORS, Pair, float, BFloat16>(
        weight, static_cast<const float*>(inputs), input_stride, static_cast<BFloat16*>(outputs),
        num_tokens, num_threads);
#else
    return NO_PAIRS;
#endif
}

}  // namespace ditprune

// With pairs, num_columns and input_stride count pairs and both tokens and outputs are bfloat16.
// Shapes are positive and buffers as large as they say; the caller holds that. Returns a Status.
extern "C" int ditprune_multiply(const void* values, int values_are, const uint8_t* columns,
                                 const uint8_t* counts, const int64_t* starts, const float* bias,
                                 int64_t num_nonzero, int64_t num_rows, int64_t num_columns,
                                 const void* inputs, int tokens_are_bf16, int64_t input_stride,
                                 void* outputs, int64_t num_tokens, int activation,
                                 int num_threads) {
    using namespace ditprune;
    const Weight weight{values,      columns,  counts,      starts, bias,
                        num_nonzero, num_rows, num_columns, Activation(activation)};
    if (values_are == PAIRS)
        return multiply_pairs(weight, inputs, input_stride, outputs, num_tokens,
                              std::max(1, num_threads));
    auto multiply_as = values_are == BFLOAT16
                           ? tokens_are_bf16 ? multiply<BFloat16, BFloat16> : multiply<BFloat16, float>
                       : tokens_are_bf16 ? multiply<float, BFloat16>
                                         : multiply<float, float>;
    return multiply_as(weight, inputs, input_stride, outputs, num_tokens, std::max(1, num_threads));
}
