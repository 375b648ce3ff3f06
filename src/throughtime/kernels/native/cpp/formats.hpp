// The number formats of products: what the operands are rounded to, and what the sums are kept in.
#pragma once

#include <bit>

#include "vector.hpp"

namespace throughtime {

// Round to the nearest bfloat16, ties to even; NaN stays NaN.
inline std::uint16_t to_bfloat16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A format has: Real, the type of sums and results; Packed, that of operands; kUnit, how many neighbours in depth
// stand together in one lane; `pack`, which rounds to Packed; and the step c + a · b of a product.
template <class Number>
struct Plain {
    using Real = Number;
    using Packed = Number;
    using Block = Vector<Number>;
    static constexpr int kUnit = 1;

    static Packed pack(Real value) { return value; }
    static Block broadcast_unit(const Packed* from) { return broadcast(*from); }
    static Block load_units(const Packed* from) { return load(from); }
    static Vector<Real> multiply_add(Vector<Real> c, Block a, Block b) { return c + a * b; }
};

using Single = Plain<float>;
using Double = Plain<double>;

#if defined(__AVX512BF16__)
// bfloat16 operands in pairs, sums in float, by the instruction made for it.
struct Bfloat16 {
    using Real = float;
    using Packed = std::uint16_t;
    using Block = __m512i;
    static constexpr int kUnit = 2;

    static Packed pack(Real value) { return to_bfloat16(value); }
    static Block broadcast_unit(const Packed* from) {
        std::int32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static Block load_units(const Packed* from) { return _mm512_loadu_si512(from); }
    static Vector<Real> multiply_add(Vector<Real> c, Block a, Block b) {
        return (Vector<Real>)intrinsics::dot_pairs((__m512)c, a, b);
    }
};
#else
// bfloat16 operands where no instruction multiplies them: rounded, and kept as float, in which their products are exact.
struct Bfloat16 : Plain<float> {
    static Packed pack(Real value) {
        return std::bit_cast<float>(static_cast<std::uint32_t>(to_bfloat16(value)) << 16);
    }
};
#endif

}  // namespace throughtime
