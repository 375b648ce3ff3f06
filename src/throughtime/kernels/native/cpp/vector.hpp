// Vectors of the widest registers that the instruction set has, by compiler vector extensions.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "intrinsics.hpp"

namespace throughtime {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef std::int32_t integers __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef std::int64_t integers __attribute__((vector_size(kVectorBytes)));
};

template <class Real>
using Vector = typename VectorOf<Real>::type;
template <class Real>
using Integers = typename VectorOf<Real>::integers;
template <class Real>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));

template <class Real>
inline Vector<Real> load(const Real* from) {
    Vector<Real> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class Real>
inline void store(Real* to, Vector<Real> v) {
    std::memcpy(to, &v, sizeof v);
}

// The first `count` lanes; the others are zero. `count` is at least 1.
template <class Real>
inline Vector<Real> load(const Real* from, int count) {
    if (count >= kLanes<Real>) return load(from);
    Vector<Real> v = {};
    std::memcpy(&v, from, sizeof(Real) * static_cast<std::size_t>(count));
    return v;
}

template <class Real>
inline void store(Real* to, Vector<Real> v, int count) {
    if (count >= kLanes<Real>) return store(to, v);
    std::memcpy(to, &v, sizeof(Real) * static_cast<std::size_t>(count));
}

// From so many bytes of results on it pays to write them past the caches, as a line that is written otherwise is read
// first, and pushes out what will be wanted sooner; fewer may wait in a core's own cache for who reads them next.
inline constexpr std::int64_t kStreamedBytes = std::int64_t{1} << 20;

// Whether rows of `count` numbers can go to memory past the caches, which pays where vectors fill whole lines of it.
template <class Real>
inline bool streams_to(const Real* to, std::int64_t count) {
    constexpr int kLine = 64 / static_cast<int>(sizeof(Real));
    return kVectorBytes >= 32 && reinterpret_cast<std::uintptr_t>(to) % 64 == 0 && count % kLine == 0;
}

template <class Real>
inline void stream(Real* to, Vector<Real> v) {
    intrinsics::stream(to, v);
}

template <class Real>
inline Vector<Real> broadcast(Real value) {
    return value - Vector<Real>{};
}

template <class Real>
inline Vector<Real> bits_to_real(Integers<Real> bits) {
    Vector<Real> v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

template <class Real>
inline Integers<Real> real_to_bits(Vector<Real> v) {
    Integers<Real> bits;
    std::memcpy(&bits, &v, sizeof v);
    return bits;
}

// Lane by lane: yes where the condition's lane is all ones, else no.
template <class Real>
inline Vector<Real> select(Integers<Real> condition, Vector<Real> yes, Vector<Real> no) {
    return condition ? yes : no;
}

template <class Real>
inline Vector<Real> clamp(Vector<Real> v, Real low, Real high) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<Real, float>) {
        const __m512 above = intrinsics::at_least((__m512)v, (__m512)broadcast(low));
        return (Vector<float>)intrinsics::at_most(above, (__m512)broadcast(high));
    }
#endif
    // A NaN passes: both comparisons are false for it.
    v = select<Real>(v < broadcast(low), broadcast(low), v);
    return select<Real>(v > broadcast(high), broadcast(high), v);
}

template <int kDistance, class Real, std::size_t... Lane>
inline void exchange(Vector<Real>& a, Vector<Real>& b, std::index_sequence<Lane...>) {
    constexpr int kAll = kLanes<Real>;
    const Vector<Real> first = __builtin_shufflevector(a, b, (Lane & kDistance ? kAll + Lane - kDistance : Lane)...);
    b = __builtin_shufflevector(a, b, (Lane & kDistance ? kAll + Lane : Lane + kDistance)...);
    a = first;
}

// Rows become columns: blocks off the diagonal change places, halves first, then halves of halves.
template <class Real, int kDistance = kLanes<Real> / 2>
inline void transpose(Vector<Real> (&rows)[kLanes<Real>]) {
    if constexpr (kDistance > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<Real>; ++i)
            if (!(i & kDistance))
                exchange<kDistance, Real>(rows[i], rows[i + kDistance], std::make_index_sequence<kLanes<Real>>{});
        transpose<Real, kDistance / 2>(rows);
    }
}

template <class Real>
inline Real sum(Vector<Real> v) {
    Real total = 0;
    for (int lane = 0; lane < kLanes<Real>; ++lane) total += v[lane];
    return total;
}

template <class Real>
inline Real largest(Vector<Real> v) {
    Real best = v[0];
    for (int lane = 1; lane < kLanes<Real>; ++lane) best = v[lane] > best ? v[lane] : best;
    return best;
}

// The greater of each two lanes; a NaN where one is.
template <class Real>
inline Vector<Real> greater(Vector<Real> a, Vector<Real> b) {
    return (a > b) | (a != a) ? a : b;
}

// Folds the lanes into the first one, by halves.
template <class Real, int kDistance = kLanes<Real> / 2, class Combine, std::size_t... Lane>
inline Vector<Real> folded(Vector<Real> v, Combine combine, std::index_sequence<Lane...> lanes) {
    v = combine(v, __builtin_shufflevector(v, v, (Lane ^ kDistance)...));
    if constexpr (kDistance > 1) v = folded<Real, kDistance / 2>(v, combine, lanes);
    return v;
}

template <class Real, class Combine>
inline Real fold(Vector<Real> v, Combine combine) {
    return folded<Real>(v, combine, std::make_index_sequence<kLanes<Real>>{})[0];
}

}  // namespace throughtime
