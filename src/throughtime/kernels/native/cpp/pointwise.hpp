// The pointwise part of a cell of the user's own: a straight-line program over blocks of units.
//
// Each instruction passes over a whole block, so that what it costs to read the instruction is shared by all units of
// the block. Blocks are short enough for all registers of a program to stay in the first cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "functions.hpp"

namespace throughtime::custom {

// Units of a block: the length of a program's registers.
inline constexpr int kBlockUnits = 256;

// The names, in this order, are those of throughtime.kernels.native.custom.operations; conditions are 1 or 0.
enum class Op : int {
    kCopy, kAdd, kSub, kMul, kDiv, kNeg,
    kMulAdd,     // a b + c
    kNegMulAdd,  // c - a b
    kTanh, kSigmoid, kTanhSum, kSigmoidSum,  // ... Sum: of a + b
    kDTanh, kDSigmoid,                       // a (1 - b²), a b (1 - b)
    kRelu, kExp, kLog, kLog1p, kExpm1, kSqrt, kAbs, kSin, kCos, kErf,
    kLess, kLessEqual, kEqual, kNotEqual,
    kWhere,  // a ? b : c
    kMinimum, kMaximum,
    kCount
};

// Where a value stands: `offset` elements behind one of the section's bases.
struct Operand {
    std::int32_t base, offset;
};

struct Instruction {
    Op op;
    Operand to, a, b, c;
};

namespace pointwise {

template <class Real, class Function>
inline void each(int count, Real* to, const Real* a, Function f) {
    int j = 0;
    for (; j + kLanes<Real> <= count; j += kLanes<Real>) store(to + j, f(load(a + j)));
    if (j < count) store(to + j, f(load(a + j, count - j)), count - j);
}

template <class Real, class Function>
inline void each(int count, Real* to, const Real* a, const Real* b, Function f) {
    int j = 0;
    for (; j + kLanes<Real> <= count; j += kLanes<Real>) store(to + j, f(load(a + j), load(b + j)));
    if (j < count) store(to + j, f(load(a + j, count - j), load(b + j, count - j)), count - j);
}

template <class Real, class Function>
inline void each(int count, Real* to, const Real* a, const Real* b, const Real* c, Function f) {
    int j = 0;
    for (; j + kLanes<Real> <= count; j += kLanes<Real>) store(to + j, f(load(a + j), load(b + j), load(c + j)));
    if (j < count)
        store(to + j, f(load(a + j, count - j), load(b + j, count - j), load(c + j, count - j)), count - j);
}

// Functions that cells rarely call, one element at a time.
template <class Real, class Function>
inline void one_by_one(int count, Real* to, const Real* a, Function f) {
    for (int j = 0; j < count; ++j) to[j] = f(a[j]);
}

template <class Real>
inline Vector<Real> one_or_zero(Integers<Real> condition) {
    return select<Real>(condition, broadcast(Real(1)), Vector<Real>{});
}

// e^v with its overflow and underflow: `exponential` ends at ±87.
inline Vector<float> full_exponential(Vector<float> v) {
    const Vector<float> half = exponential(v * 0.5f);
    return half * half;
}
inline Vector<double> full_exponential(Vector<double> v) { return exponential(v); }

template <class Real>
void run(const Instruction& i, int count, Real* to, const Real* a, const Real* b, const Real* c) {
    using V = Vector<Real>;
    switch (i.op) {
        case Op::kCopy: return each(count, to, a, [](V x) { return x; });
        case Op::kAdd: return each(count, to, a, b, [](V x, V y) { return x + y; });
        case Op::kSub: return each(count, to, a, b, [](V x, V y) { return x - y; });
        case Op::kMul: return each(count, to, a, b, [](V x, V y) { return x * y; });
        case Op::kDiv: return each(count, to, a, b, [](V x, V y) { return x / y; });
        case Op::kNeg: return each(count, to, a, [](V x) { return -x; });
        case Op::kMulAdd: return each(count, to, a, b, c, [](V x, V y, V z) { return x * y + z; });
        case Op::kNegMulAdd: return each(count, to, a, b, c, [](V x, V y, V z) { return z - x * y; });
        case Op::kTanh: return each(count, to, a, [](V x) { return tangent(x); });
        case Op::kSigmoid: return each(count, to, a, [](V x) { return sigmoid<Real>(x); });
        case Op::kTanhSum: return each(count, to, a, b, [](V x, V y) { return tangent(x + y); });
        case Op::kSigmoidSum: return each(count, to, a, b, [](V x, V y) { return sigmoid<Real>(x + y); });
        case Op::kDTanh: return each(count, to, a, b, [](V g, V t) { return g * (Real(1) - t * t); });
        case Op::kDSigmoid: return each(count, to, a, b, [](V g, V s) { return g * s * (Real(1) - s); });
        case Op::kRelu: return each(count, to, a, [](V x) { return select<Real>(x < Real(0), V{}, x); });
        case Op::kExp: return each(count, to, a, [](V x) { return full_exponential(x); });
        case Op::kLog: return one_by_one(count, to, a, [](Real x) { return std::log(x); });
        case Op::kLog1p: return one_by_one(count, to, a, [](Real x) { return std::log1p(x); });
        case Op::kExpm1: return one_by_one(count, to, a, [](Real x) { return std::expm1(x); });
        case Op::kSqrt: return one_by_one(count, to, a, [](Real x) { return std::sqrt(x); });
        case Op::kAbs: return one_by_one(count, to, a, [](Real x) { return std::abs(x); });
        case Op::kSin: return one_by_one(count, to, a, [](Real x) { return std::sin(x); });
        case Op::kCos: return one_by_one(count, to, a, [](Real x) { return std::cos(x); });
        case Op::kErf: return one_by_one(count, to, a, [](Real x) { return std::erf(x); });
        case Op::kLess: return each(count, to, a, b, [](V x, V y) { return one_or_zero<Real>(x < y); });
        case Op::kLessEqual: return each(count, to, a, b, [](V x, V y) { return one_or_zero<Real>(x <= y); });
        case Op::kEqual: return each(count, to, a, b, [](V x, V y) { return one_or_zero<Real>(x == y); });
        case Op::kNotEqual: return each(count, to, a, b, [](V x, V y) { return one_or_zero<Real>(x != y); });
        case Op::kWhere:
            return each(count, to, a, b, c, [](V x, V y, V z) { return select<Real>(x != Real(0), y, z); });
        // A NaN on either side is the result.
        case Op::kMinimum:
            return each(count, to, a, b, [](V x, V y) { return select<Real>((x < y) | (x != x), x, y); });
        case Op::kMaximum:
            return each(count, to, a, b, [](V x, V y) { return select<Real>((x > y) | (x != x), x, y); });
        case Op::kCount: return;
    }
}

}  // namespace pointwise

// Runs a program over `count` units, at most kBlockUnits; bases[i] is the section's i-th base at the first of them.
template <class Real>
inline void run_program(const std::vector<Instruction>& code, Real* const* bases, int count) {
    const auto at = [&](Operand operand) { return bases[operand.base] + operand.offset; };
    for (const Instruction& i : code) pointwise::run<Real>(i, count, at(i.to), at(i.a), at(i.b), at(i.c));
}

}  // namespace throughtime::custom
