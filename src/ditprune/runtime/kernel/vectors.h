// Vectors of floats, bfloat16 in memory, products with one weight, and transposition.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace ditprune {

struct BFloat16 {
    uint16_t bits;
};

// bfloat16 weights of two neighbouring inputs, of which at least one is kept.
struct Pair {
    uint32_t bits;
};

template <int W>
using Floats __attribute__((vector_size(W * 4))) = float;

template <int W>
using Bits __attribute__((vector_size(W * 4))) = uint32_t;

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void from_float(float value, float* to) { *to = value; }

// Rounds to nearest, ties to even.
inline void from_float(float value, BFloat16* to) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = uint16_t(is_nan ? (bits >> 16) | 0x40u : rounded);
}

template <int W>
Floats<W> load(const float* from) {
    Floats<W> result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

template <int W>
Floats<W> load(const BFloat16* from) {
    Floats<W> result;
    for (int i = 0; i < W; i++) result[i] = to_float(from[i]);
    return result;
}

template <int W>
void store(const Floats<W>& vector, float* to) {
    std::memcpy(to, &vector, sizeof vector);
}

template <int W>
void store(const Floats<W>& vector, BFloat16* to) {
    for (int i = 0; i < W; i++) from_float(vector[i], to + i);
}

inline uint32_t float_bits(Pair value) { return value.bits; }

template <class Value>
uint32_t float_bits(Value value) {
    const float as_float = to_float(value);
    uint32_t bits;
    std::memcpy(&bits, &as_float, sizeof bits);
    return bits;
}

// A weight in each lane. With AVX-512 it comes from a general register, as loads of vectors are
// what the products wait for.
template <int W, class Value>
Floats<W> broadcast(Value weight) {
    const uint32_t bits = float_bits(weight);
#ifdef __AVX512F__
    if constexpr (W == 16) {
        Floats<W> result;
        asm("vpbroadcastd %1, %0" : "=v"(result) : "r"(bits));
        return result;
    }
#endif
    return (Floats<W>)(Bits<W>{} + bits);
}

// sum + weights · tokens, in each lane, where a lane holds a float or a pair of bfloat16.
template <int W, class Value>
Floats<W> multiply_add(const Floats<W>& sum, const Floats<W>& weights, const Floats<W>& tokens) {
#ifdef __AVX512BF16__
    if constexpr (std::is_same_v<Value, Pair>)
        return (Floats<W>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)tokens);
#endif
    return sum + weights * tokens;
}

// Compilers that do not know __has_builtin, as GCC before 10, fail where it is called.
#if !defined(HAS_SHUFFLE) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE 1
#endif
#endif
#ifndef HAS_SHUFFLE
#define HAS_SHUFFLE 0
#endif

#if HAS_SHUFFLE
// Lane i of the upper or lower result of exchanging runs of STEP lanes between two vectors.
template <int W, int STEP, bool UPPER, int... I>
Floats<W> exchange(const Floats<W>& a, const Floats<W>& b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(
        a, b, ((I & STEP) ? W + I - (UPPER ? 0 : STEP) : I + (UPPER ? STEP : 0))...);
}

template <int W, int STEP>
void transpose_step(Floats<W>* rows) {
    constexpr auto lanes = std::make_integer_sequence<int, W>();
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
        if (i & STEP) continue;
        Floats<W> a = rows[i], b = rows[i + STEP];
        rows[i] = exchange<W, STEP, false>(a, b, lanes);
        rows[i + STEP] = exchange<W, STEP, true>(a, b, lanes);
    }
}
#endif

// W × W elements; to[c][r] = from[r][c].
template <int W, class From, class To>
void transpose_square(const From* from, int64_t from_stride, To* to, int64_t to_stride) {
#if HAS_SHUFFLE
    Floats<W> rows[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) rows[r] = load<W>(from + r * from_stride);
    if constexpr (W >= 16) transpose_step<W, 8>(rows);
    if constexpr (W >= 8) transpose_step<W, 4>(rows);
    transpose_step<W, 2>(rows);
    transpose_step<W, 1>(rows);
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) store<W>(rows[r], to + r * to_stride);
#else
    for (int r = 0; r < W; r++)
        for (int c = 0; c < W; c++) from_float(to_float(from[r * from_stride + c]), to + c * to_stride + r);
#endif
}

// num_rows × num_columns elements; to[c][r] = from[r][c].
template <int W, class From, class To>
void transpose(const From* from, int64_t from_stride, int64_t num_rows, int64_t num_columns, To* to,
               int64_t to_stride) {
    for (int64_t r = 0; r < num_rows; r += W) {
        for (int64_t c = 0; c < num_columns; c += W) {
            const From* source = from + r * from_stride + c;
            To* target = to + c * to_stride + r;
            if (r + W <= num_rows && c + W <= num_columns) {
                transpose_square<W>(source, from_stride, target, to_stride);
                continue;
            }
            int64_t height = std::min<int64_t>(W, num_rows - r);
            int64_t width = std::min<int64_t>(W, num_columns - c);
            for (int64_t i = 0; i < height; i++)
                for (int64_t j = 0; j < width; j++)
                    from_float(to_float(source[i * from_stride + j]), target + j * to_stride + i);
        }
    }
}

}  // namespace ditprune
