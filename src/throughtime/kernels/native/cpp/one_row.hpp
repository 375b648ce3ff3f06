// Products of a single row with a matrix as it stands, where packing would cost more than it brings: what counts is how
// fast the matrix can be read.
#pragma once

#include "gemm.hpp"

namespace throughtime {

// y[i] = Σ_k W[i][k] x[k] for `Rows` rows of W, with as many sums as keep a multiplier busy.
template <int Rows, int Sums, class Real>
inline void multiply_some_rows(const Real* w, Index depth, const Real* x, Real* y) {
    constexpr Index kStep = Sums * kLanes<Real>;
    const auto add = [](Vector<Real> a, Vector<Real> b) { return a + b; };
    Vector<Real> sums[Rows][Sums] = {};
    Index k = 0;
    for (; k + kStep <= depth; k += kStep)
#pragma GCC unroll 8
        for (int i = 0; i < Sums; ++i) {
            const Index at = k + i * kLanes<Real>;
            const Vector<Real> of_x = load(x + at);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) sums[r][i] += of_x * load(w + r * depth + at);
        }
    for (; k < depth; k += kLanes<Real>) {
        const int left = static_cast<int>(std::min<Index>(kLanes<Real>, depth - k));
        for (int r = 0; r < Rows; ++r) sums[r][0] += load(x + k, left) * load(w + r * depth + k, left);
    }
    for (int r = 0; r < Rows; ++r) {
        Vector<Real> total = sums[r][0];
        for (int i = 1; i < Sums; ++i) total += sums[r][i];
        y[r] = fold<Real>(total, add);
    }
}

// The same for `count` rows of W, which follow one another. Long rows are read one by one, as memory is read fastest;
// short ones eight at once, each with a single sum. What a row's sum is does not depend on the rows beside it.
template <class Real>
inline void multiply_rows(const Real* w, Index depth, Index count, const Real* x, Real* y) {
    constexpr Index kAtOnce = 8;
    Index i = 0;
    if (depth >= 32 * kLanes<Real>) {
        for (; i < count; ++i) multiply_some_rows<1, kAtOnce>(w + i * depth, depth, x, y + i);
        return;
    }
    for (; i + kAtOnce <= count; i += kAtOnce) multiply_some_rows<kAtOnce, 1>(w + i * depth, depth, x, y + i);
    for (; i < count; ++i) multiply_some_rows<1, 1>(w + i * depth, depth, x, y + i);
}

}  // namespace throughtime
