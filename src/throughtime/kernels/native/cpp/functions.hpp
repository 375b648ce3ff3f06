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

// tanh(v) to a few units in the last place, relative, for all v: v p(v²) / q(v²).
// The coefficients are those of Eigen's float tanh.
inline Vector<float> tangent(Vector<float> v) {
    v = clamp<float>(v, -7.90531110763549805f, 7.90531110763549805f);
    const Vector<float> s = v * v;
    Vector<float> p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * s + -8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    Vector<float> q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return v * p * reciprocal(q);
}

inline Vector<double> tangent(Vector<double> v) {
    for (int lane = 0; lane < kLanes<double>; ++lane) v[lane] = std::tanh(v[lane]);
    return v;
}

}  // namespace throughtime
