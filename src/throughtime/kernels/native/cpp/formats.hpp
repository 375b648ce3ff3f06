// The number formats of products: what the operands are rounded to, and what the sums are kept in.
#pragma once

#include <array>
#include <bit>

#include "vector.hpp"

namespace throughtime {

// Round to the nearest bfloat16, ties to even; NaN stays NaN.
inline std::uint16_t to_bfloat16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Lane by lane, and kept as float.
inline Vector<float> round_to_bfloat16(Vector<float> v) {
    const Integers<float> bits = real_to_bits<float>(v);
    const Vector<float> rounded = bits_to_real<float>((bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff);
    return select<float>(v != v, bits_to_real<float>((bits | 0x400000) & ~0xffff), rounded);
}

// A format has: Real, the type of sums and results; Packed, that of operands; kUnit, how many neighbours in depth
// stand together in one lane; kRounds, whether Packed holds less than Real; `pack`, which rounds to Packed; `pack_along`
// and `pack_across`, which make a vector of units: those that follow one another in a row, or, at one place, those whose
// depth is in kUnit rows; and the step c + a · b of a product.
template <class Number>
struct Plain {
    using Real = Number;
    using Packed = Number;
    using Block = Vector<Number>;
    static constexpr int kUnit = 1;
    static constexpr bool kRounds = false;

    static Packed pack(Real value) { return value; }
    static Block pack_along(const Real* from) { return load(from); }
    static Block pack_across(const std::array<const Real*, kUnit>& rows, std::int64_t at) { return load(rows[0] + at); }
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
    static constexpr bool kRounds = true;

    static Packed pack(Real value) { return to_bfloat16(value); }
    static Block pack_along(const Real* from) {
        return intrinsics::to_bfloat16((__m512)load(from), (__m512)load(from + kLanes<Real>));
    }
    static Block pack_across(const std::array<const Real*, kUnit>& rows, std::int64_t at) {
        return intrinsics::to_bfloat16_pairs((__m512)load(rows[0] + at), (__m512)load(rows[1] + at));
    }
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
    static constexpr bool kRounds = true;

    static Packed pack(Real value) {
        return std::bit_cast<float>(static_cast<std::uint32_t>(to_bfloat16(value)) << 16);
    }
    static Block pack_along(const Real* from) { return round_to_bfloat16(load(from)); }
    static Block pack_across(const std::array<const Real*, kUnit>& rows, std::int64_t at) {
        return round_to_bfloat16(load(rows[0] + at));
    }
};
#endif

}  // namespace throughtime
