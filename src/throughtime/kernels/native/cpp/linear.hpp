// y = x Wᵀ + b over many rows, and its gradients: what is hoisted out of the time loop of a cell of the user's own.
#pragma once

#include <memory>

#include "problem.hpp"

namespace throughtime::custom {

// Every buffer is C-contiguous; null where there is none, or a result is not wanted.
template <class Number>
struct LinearProblem {
    using Real = Number;
    Index rows, inputs, outputs;
    const Real* x;       // (rows, inputs)
    const Real* weight;  // (outputs, inputs)
    const Real* bias;    // (outputs)
    Real* y;             // (rows, outputs)
    const Real* d_y;     // (rows, outputs)
    Real* d_x;           // (rows, inputs)
    Real* d_weight;      // (outputs, inputs)
    Real* d_bias;        // (outputs)
};

template <class Format>
class Linear {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    Linear(const LinearProblem<Real>& problem, bool backward, int threads)
        : problem_(problem), backward_(backward), slab_{kBlockDepth<Format>, 1, problem.inputs} {
        weight_ = backward ? Panels<Format>{problem.outputs, 1, problem.inputs}
                           : Panels<Format>{problem.inputs, 1, problem.outputs};
        if (!backward || problem.d_x) weight_.data = buffers_.template take<Packed>(weight_.size());
        if (backward && problem.d_weight)
            for (auto& data : slabs_) data = buffers_.template take<Packed>(slab_.size());
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        next_ = std::make_unique<std::atomic<Index>[]>(static_cast<std::size_t>(3 + 2 * slabs()));
    }

    void run(const Member& member) {
        Packed* scratch = scratch_ + member.index * kScratchOfA<Format>;
        if (backward_) return backward(member, scratch);
        for (Index p = next_[0]++; p < weight_.panels(); p = next_[0]++) pack_weight_rows(weight_, p, problem_.weight);
        member.wait();
        const auto x = [&](Index i) { return problem_.x + i * problem_.inputs; };
        multiply<Format>(member, next_[1], problem_.rows, RowsOfA<Format, decltype(x)>{x}, weight_,
                         [&](Index i) { return problem_.y + i * problem_.outputs; }, false, problem_.bias, scratch);
    }

  private:
    Index slabs() const { return ceil_divide(problem_.rows, kBlockDepth<Format>); }

    void backward(const Member& member, Packed* scratch) {
        const auto d_y = [&](Index i) { return problem_.d_y + i * problem_.outputs; };
        if (problem_.d_x) {
            for (Index p = next_[0]++; p < weight_.panels(); p = next_[0]++)
                pack_matrix(weight_, p, problem_.weight);
            member.wait();
            multiply<Format>(member, next_[1], problem_.rows, RowsOfA<Format, decltype(d_y)>{d_y}, weight_,
                             [&](Index i) { return problem_.d_x + i * problem_.inputs; }, false, nullptr, scratch);
        }
        // dW = Σ dy xᵀ: in slabs of rows, whose x all members pack together, into two places in turn.
        for (Index slab = 0; problem_.d_weight && slab < slabs(); ++slab) {
            std::atomic<Index>* next = next_.get() + 3 + 2 * slab;
            const Index begin = slab * kBlockDepth<Format>;
            Panels<Format> x = {std::min(kBlockDepth<Format>, problem_.rows - begin), 1, problem_.inputs};
            x.data = slabs_[static_cast<std::size_t>(slab % 2)];
            for (Index p = next[0]++; p < x.panels(); p = next[0]++)
                pack_rows(x, p, [&](Index k) { return problem_.x + (begin + k) * problem_.inputs; });
            member.wait();
            const auto column = [&](Index k) { return d_y(begin + k); };
            multiply<Format>(member, next[1], problem_.outputs, ColumnsOfA<Format, decltype(column)>{column}, x,
                             [&](Index i) { return problem_.d_weight + i * problem_.inputs; }, slab > 0, nullptr, scratch);
        }
        if (problem_.d_bias) sums();
    }

    // db = Σ dy: each column by one member, over the rows in one order.
    void sums() {
        constexpr Index kChunk = kLanes<Real>;
        for (Index first = kChunk * next_[2]++; first < problem_.outputs; first = kChunk * next_[2]++) {
            const int count = static_cast<int>(std::min(kChunk, problem_.outputs - first));
            Vector<Real> total = {};
            for (Index i = 0; i < problem_.rows; ++i) total += load(problem_.d_y + i * problem_.outputs + first, count);
            store(problem_.d_bias + first, total, count);
        }
    }

    const LinearProblem<Real>& problem_;
    bool backward_;
    Buffers buffers_;
    Panels<Format> weight_, slab_;
    std::array<Packed*, 2> slabs_;  // the panels of x for a slab of rows, in turn
    Packed* scratch_;               // for each thread
    std::unique_ptr<std::atomic<Index>[]> next_;
};

}  // namespace throughtime::custom
