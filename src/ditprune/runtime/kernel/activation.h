// What becomes of a sum before it is written.

#pragma once

#include <cstdint>

#include "vectors.h"

namespace ditprune {

enum Activation { NOTHING = 0, GELU_TANH = 1 };

constexpr float MOST = 88;  // of what exp is taken

// exp(x) in each lane, for x ≤ MOST; NaN stays NaN.
template <int W>
Floats<W> exp_of(Floats<W> x) {
    const Floats<W> lowest = Floats<W>{} - 87.0f;
    x = x < lowest ? lowest : x;
    // 2ⁿ · 2ᶠ with |f| ≤ ½: what is added leaves n in the low bits of a float.
    const float shift = 12582912.0f;
    const Floats<W> shifted = x * 1.44269504f + shift, n = shifted - shift;
    const Floats<W> rest = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // x - n · ln 2
    Floats<W> power = rest * 1.3888889e-3f + 8.3333333e-3f;  // the series of exp
    power = power * rest + 4.1666667e-2f;
    power = power * rest + 1.6666667e-1f;
    power = power * rest + 0.5f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    return (Floats<W>)((Bits<W>)power + ((Bits<W>)shifted << 23));
}

// x · (1 + tanh u) / 2 = x / (1 + exp(-2 u)), u = √(2/π) (x + 0.044715 x³).
template <int W>
Floats<W> gelu_tanh(const Floats<W>& x) {
    const Floats<W> power = x * (-1.59576912f - 0.0713548163f * x * x);
    return power > MOST ? x * 0.0f : x / (1.0f + exp_of<W>(power));
}

template <int W>
void activate(Activation activation, float* sums, int64_t size) {
    if (activation == NOTHING) return;
    for (int64_t i = 0; i < size; i += W) store<W>(gelu_tanh<W>(load<W>(sums + i)), sums + i);
}

}  // namespace ditprune
