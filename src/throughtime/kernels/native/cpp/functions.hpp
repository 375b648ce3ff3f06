// exp, σ and tanh over vectors.
#pragma once

#include <cmath>

#include "vector.hpp"

namespace throughtime {

inline Vector<float> reciprocal(Vector<float> v) {
#if defined(__AVX512F__)
    return (Vector<float>)intrinsics::reciprocal((__m512)v);
#else
    return 1.0f / v;
#endif
}

inline Vector<double> reciprocal(Vector<double> v) { return 1.0 / v; }

// exp(v), for v in about ±87; beyond, its value at that border. 2 units in the last place.
// e^v = 2^n e^r with n whole and |r| ≤ ln 2 / 2; the polynomial's coefficients are those of Cephes' expf (Moshier).
inline Vector<float> exponential(Vector<float> v) {
    v = clamp<float>(v, -87.0f, 88.0f);
    constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number
    const Vector<float> shifted = v * 1.44269504088896341f + kRound;
    const Vector<float> n = shifted - kRound;
    const Vector<float> r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    // n stands in the low bits of `shifted`; added to the exponent it multiplies by 2^n.
    return bits_to_real<float>(real_to_bits<float>(p) + (real_to_bits<float>(shifted) << 23));
}

inline Vector<double> exponential(Vector<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = std::exp(v[lane]);
    return v;
}

// σ(v) = 1 / (1 + exp(-v)), the logistic sigmoid.
template <class Real>
inline Vector<Real> sigmoid(Vector<Real> v) {
    return reciprocal(exponential(-v) + Real(1));
}

// tanh(v) to 6 units in the last place, never beyond ±1, for all v: v p(v²) / q(v²).
// The quotient has the least relative error on [-8, 8], 6.5e-9, found by Lawson's iteration in 40 digits; at 8, tanh is
// as good as 1. Two polynomials of one degree wait for each other least.
inline Vector<float> tangent(Vector<float> v) {
    v = clamp<float>(v, -8.0f, 8.0f);
    const Vector<float> s = v * v;
    Vector<float> p = s * 1.52313147749e-8f + 2.18953127982e-5f;
    Vector<float> q = s * 8.52281462263e-7f + 3.41135691351e-4f;
    p = p * s + 3.5716378279e-3f;
    q = q * s + 2.61645947051e-2f;
    p = p * s + 1.34445316087e-1f;
    q = q * s + 4.67778589446e-1f;
    p = p * s + 9.99999993605e-1f;
    q = q * s + 1.0f;
    return v * p * reciprocal(q);
}

inline Vector<double> tangent(Vector<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = std::tanh(v[lane]);
    return v;
}

}  // namespace throughtime
