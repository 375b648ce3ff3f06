// h = tanh(b + U x), o = c + V h over many rows that do not wait for each other, and its gradients: a network whose
// recurrence is taught from outside, all of its steps at once.
//
// The hidden units of all rows are far more than a cache holds. Rows go through in blocks that stay in it from the first
// product to the last. Blocks belong to segments, as many whatever the threads, each with sums of its own: a result does
// not depend on the number of threads.
#pragma once

#include <memory>

#include "functions.hpp"
#include "team.hpp"

namespace throughtime {

// Every buffer is C-contiguous; null where there is none, or a result is not wanted.
template <class Number>
struct DecoupledProblem {
    using Real = Number;
    Index rows, inputs, units, outputs;  // N, X, H, O
    const Real* x;       // (N, X)
    const Real* weight;  // U (H, X)
    const Real* bias;    // b (H)
    const Real* readout;       // V (O, H)
    const Real* readout_bias;  // c (O)
    Real* h;             // (N, H)
    Real* o;             // (N, O)
    const Real* d_o;     // (N, O)
    const Real* d_h;     // (N, H)
    Real* d_x;           // (N, X)
    Real* d_weight;      // (H, X)
    Real* d_bias;        // (H)
    Real* d_readout;     // (O, H)
    Real* d_readout_bias;  // (O)
};

template <class Format>
class Decoupled {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    Decoupled(const DecoupledProblem<Real>& problem, bool backward, int threads)
        : problem_(problem), backward_(backward) {
        const Index blocks = ceil_divide(problem.rows, kRows);
        const Index sums = problem.units * (problem.inputs + problem.outputs + 1) + problem.outputs;
        segments_ = backward ? std::clamp<Index>(kMostOfSums / sums, 1, std::min(kSegments, blocks)) : blocks;
        members_ = static_cast<int>(std::clamp<Index>(segments_, 1, threads));
        into_ = {backward ? problem.outputs : problem.inputs, 1, problem.units};
        out_ = {problem.units, 1, backward ? problem.inputs : problem.outputs};
        into_.data = take(into_.size());
        if (!backward || problem.d_x) out_.data = take(out_.size());
        const auto wide = [](const Panels<Format>& panels) { return panels.panels() * kWidth<Format>; };
        const Index bytes = problem.rows * problem.units * static_cast<Index>(sizeof(Real));
        streams_ = !backward && bytes > kStreamedBytes && streams_to(problem.h, problem.units);
        if (!backward) {
            bias_ = filled_up(problem.bias, problem.units, wide(into_));
            readout_bias_ = filled_up(problem.readout_bias, problem.outputs, wide(out_));
        }
        desk_size_ = {kRows * padded_stride<Format>(into_.depth), kRows * padded_stride<Format>(problem.units),
                      products_size<Format>(1), backward ? kRows * wide(into_) : 0,
                      backward ? kRows * wide(into_) : 0, backward ? kScratchOfA<Format> : 0};
        for (const Index size : desk_size_) desk_ += size;
        desks_ = take(members_ * desk_);
        if (!backward) return;
        sums_size_ = {problem.inputs * problem.units, problem.outputs * problem.units, problem.units, problem.outputs};
        for (const Index size : sums_size_) sums_ += size;
        all_sums_ = take(segments_ * sums_);
    }

    int members() const { return members_; }

    void run(const Member& member) {
        const auto share = [&](Index count, Index i) { return count * i / member.count; };
        for (Index p = share(into_.panels(), member.index); p < share(into_.panels(), member.index + 1); ++p) {
            if (backward_) pack_rows(into_, p, [&](Index k) { return problem_.readout + k * problem_.units; });
            else pack_weight_rows(into_, p, problem_.weight);
        }
        for (Index p = share(out_.panels(), member.index); out_.data && p < share(out_.panels(), member.index + 1); ++p) {
            if (backward_) pack_rows(out_, p, [&](Index k) { return problem_.weight + k * problem_.inputs; });
            else pack_weight_rows(out_, p, problem_.readout);
        }
        member.wait();
        const Index blocks = ceil_divide(problem_.rows, kRows);
        for (Index segment = next_++; segment < segments_; segment = next_++) {
            Real* sums = backward_ ? all_sums_ + segment * sums_ : nullptr;
            if (sums) std::fill_n(sums, sums_, Real(0));
            for (Index block = blocks * segment / segments_; block < blocks * (segment + 1) / segments_; ++block) {
                const Index first = problem_.rows * block / blocks, end = problem_.rows * (block + 1) / blocks;
                Desk desk(*this, member, sums);
                if (backward_) {
                    go_back(first, end - first, desk);
                } else {
                    go(first, end - first, desk);
                }
            }
        }
        if (streams_) intrinsics::finish_streams();
        member.wait();
        if (backward_) gather(member);
    }

  private:
    static constexpr Index kRows = kPassTiles * kTileRows;  // of a block
    // Of h: less may wait in a core's own cache for the backward pass.
    static constexpr Index kStreamedBytes = Index{1} << 20;
    // Segments of the backward pass, and numbers of all their sums.
    static constexpr Index kSegments = 16;
    static constexpr Index kMostOfSums = Index{1} << 24;

    // What a member works with, and the sums of its segment.
    struct Desk {
        Desk(const Decoupled& all, const Member& member, Real* sums) {
            Real* at = all.desks_ + member.index * all.desk_;
            Real** places[] = {&given, &hidden, &products, &of_a, &of_h, &scratch};
            for (std::size_t i = 0; i < std::size(places); at += all.desk_size_[i++]) *places[i] = at;
            if (!sums) return;
            Real** totals[] = {&d_weight, &d_readout, &d_bias, &d_readout_bias};
            for (std::size_t i = 0; i < std::size(totals); sums += all.sums_size_[i++]) *totals[i] = sums;
        }

        Real *given, *hidden, *products;  // x or d_o, and h or d_a, as products take them; their results
        Real *of_a, *of_h;                // d_a and h in panels
        Real* scratch;
        Real *d_weight, *d_readout, *d_bias, *d_readout_bias;  // (X, H), (O, H), (H), (O)
    };

    Real* take(Index count) { return buffers_.template take<Real>(count); }

    Real* filled_up(const Real* values, Index count, Index size) {
        Real* to = take(size);
        std::fill(std::copy_n(values, count, to), to + size, Real(0));
        return to;
    }

    // visit(row, first column, count, sums) for `rows` rows `a` times `b`.
    template <class Visit>
    static void multiply_rows(const Real* a, const Panels<Format>& b, Index rows, const Real* start, Real* products,
                              Visit visit) {
        const Split split(Member{0, 1, nullptr}, rows, b.group_panels(), 0);
        const StepProduct<Format> product{a, padded_stride<Format>(b.depth), &b, 0, 1, 0, b.depth, start};
        multiply_step(product, split, GroupTiles(rows, split), rows, products,
                      [&](Index row, Index first, int count, const Real* sums, Index) { visit(row, first, count, sums); });
    }

    static void copy_rows(const Real* from, Index rows, Index depth, Real* to) {
        for (Index i = 0; i < rows; ++i) std::copy_n(from + i * depth, depth, to + i * padded_stride<Format>(depth));
    }

    // Calls visit(column, count) for vectors of columns [first, first + count).
    template <class Visit>
    static void each_vector(Index first, int count, Visit visit) {
        constexpr int kStep = kLanes<Real>;
        if (count == kWidth<Format>) {
            // Nearly always, and the compiler then knows that vectors are whole.
#pragma GCC unroll 4
            for (int j = 0; j < kWidth<Format>; j += kStep) visit(first + j, kStep);
            return;
        }
        for (int j = 0; j < count; j += kStep) visit(first + j, std::min(kStep, count - j));
    }

    void go(Index first_row, Index rows, const Desk& desk) const {
        const Index units = problem_.units;
        const Index stride = padded_stride<Format>(units);
        copy_rows(problem_.x + first_row * problem_.inputs, rows, problem_.inputs, desk.given);
        Real* const h = problem_.h + first_row * units;
        multiply_rows(desk.given, into_, rows, bias_, desk.products,
                      [&](Index row, Index first, int count, const Real* sums) {
                          each_vector(first, count, [&](Index u, int n) {
                              const Vector<Real> value = tangent(load(sums + u - first));
                              store(desk.hidden + row * stride + u, value, n);
                              if (streams_) stream(h + row * units + u, value);
                              else store(h + row * units + u, value, n);
                          });
                      });
        multiply_rows(desk.hidden, out_, rows, readout_bias_, desk.products,
                      [&](Index row, Index first, int count, const Real* sums) {
                          std::copy_n(sums, count, problem_.o + (first_row + row) * problem_.outputs + first);
                      });
    }

    void go_back(Index first_row, Index rows, const Desk& desk) const {
        const Index units = problem_.units, stride = padded_stride<Format>(units);
        const Real* d_o = problem_.d_o + first_row * problem_.outputs;
        const Real* x = problem_.x + first_row * problem_.inputs;
        Panels<Format> of_a{rows, 1, units, desk.of_a}, of_h{rows, 1, units, desk.of_h};
        for (Index i = 0; i < rows; ++i) {
            const Real* h = problem_.h + (first_row + i) * units;
            for (Index p = 0; p < of_h.panels(); ++p)
                std::copy_n(h + of_h.first_column(p), of_h.panel_columns(p), of_h.panel(p) + i * kWidth<Format>);
        }
        copy_rows(d_o, rows, problem_.outputs, desk.given);
        multiply_rows(desk.given, into_, rows, nullptr, desk.products,
                      [&](Index row, Index first, int count, const Real* sums) {
            const Real* d_h_row = problem_.d_h ? problem_.d_h + (first_row + row) * units : nullptr;
            each_vector(first, count, [&](Index u, int n) {
                const Index place = row * kWidth<Format> + u % kWidth<Format>;
                const Vector<Real> h = load(of_h.panel(u / kWidth<Format>) + place);
                Vector<Real> d = load(sums + u - first);
                if (d_h_row) d += load(d_h_row + u, n);
                d *= Real(1) - h * h;
                store(of_a.panel(u / kWidth<Format>) + place, d);
                if (problem_.d_x) store(desk.hidden + row * stride + u, d, n);
                store(desk.d_bias + u, load(desk.d_bias + u, n) + d, n);
            });
        });
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < problem_.outputs; ++j) desk.d_readout_bias[j] += d_o[i * problem_.outputs + j];
        add_outer(x, problem_.inputs, of_a, desk.d_weight, desk.scratch);
        add_outer(d_o, problem_.outputs, of_h, desk.d_readout, desk.scratch);
        if (!problem_.d_x) return;
        multiply_rows(desk.hidden, out_, rows, nullptr, desk.products,
                      [&](Index row, Index first, int count, const Real* sums) {
                          std::copy_n(sums, count, problem_.d_x + (first_row + row) * problem_.inputs + first);
                      });
    }

    // to += aᵀ b, for rows (·, width) of a.
    static void add_outer(const Real* a, Index width, const Panels<Format>& b, Real* to, Real* scratch) {
        const auto row = [&](Index k) { return a + k * width; };
        const ColumnsOfA<Format, decltype(row)> turned{row};
        const Columns columns{0, b.panels(), 0, false};
        for (Index begin = 0; begin < width; begin += kBlockRows)
            multiply_block<Format>(
                begin, std::min(width, begin + kBlockRows), turned, b, columns,
                [&](Index i) { return to + i * b.columns; }, true, nullptr, scratch);
    }

    // The sums of all segments, in their order; each member has some columns. U's gradient is turned on the way.
    void gather(const Member& member) const {
        const auto each = [&](Index begin, Index count, auto put) {
            for (Index i = count * member.index / member.count; i < count * (member.index + 1) / member.count; ++i) {
                Real total = 0;
                for (Index segment = 0; segment < segments_; ++segment) total += all_sums_[segment * sums_ + begin + i];
                put(i, total);
            }
        };
        const Index units = problem_.units;
        each(0, sums_size_[0], [&](Index i, Real total) {
            problem_.d_weight[i % units * problem_.inputs + i / units] = total;
        });
        Index begin = sums_size_[0];
        Real* const plain[] = {problem_.d_readout, problem_.d_bias, problem_.d_readout_bias};
        for (std::size_t part = 0; part < std::size(plain); begin += sums_size_[++part])
            each(begin, sums_size_[part + 1], [&](Index i, Real total) { plain[part][i] = total; });
    }

    const DecoupledProblem<Real>& problem_;
    bool backward_;
    bool streams_;  // h goes to memory past the caches, as it is not read before the backward pass
    Index segments_;
    int members_;
    Buffers buffers_;
    Panels<Format> into_, out_;  // forward U and V; backward, those that d_o and d_a are multiplied by
    Real* bias_ = nullptr;
    Real* readout_bias_ = nullptr;
    std::array<Index, 6> desk_size_;
    Index desk_ = 0;
    Real* desks_;
    std::array<Index, 4> sums_size_{};
    Index sums_ = 0;
    Real* all_sums_ = nullptr;  // of each segment
    std::atomic<Index> next_{0};
};

}  // namespace throughtime
