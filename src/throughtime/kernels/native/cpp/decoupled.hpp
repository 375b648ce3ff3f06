// h = tanh(b + U x), o = c + V h over many rows that do not wait for each other, their losses and gradients: a network
// whose recurrence is taught from outside, all of its steps at once.
//
// The hidden units of all rows are far more than a cache holds. Rows go through in blocks that stay in it, from the first
// product to the last: of a block, the units of one panel are made, put into the first cache, and read from there by the
// next product. Its gradients are computed in the same pass where the loss is known to it; where only o's gradients are
// given, h is computed once more, which takes about as long as reading it again, and no memory.
//
// Blocks belong to segments, as many whatever the threads, each with sums of its own: a result does not depend on the
// number of threads.
#pragma once

#include <cmath>

#include "functions.hpp"
#include "team.hpp"

namespace throughtime {

// Every buffer is C-contiguous; null where there is none, or a result is not wanted. With targets, a row is a step of a
// sequence, B rows before the next one's, which reads its target: a category as one of F = O ones among zeros, or F = O
// numbers. Rows not `inside` are left out: their losses are zero.
template <class Number>
struct DecoupledProblem {
    using Real = Number;
    Index rows, batch, inputs, units, outputs;  // N, B, X, H, O
    const Real* x;       // (N, X)
    const Real* weight;  // U (H, X + F)
    const Real* bias;    // b (H)
    const Real* readout;       // V (O, H)
    const Real* readout_bias;  // c (O)
    const std::int64_t* categories;  // targets (N), each in [0, O), or ...
    const Real* numbers;             // ... (N, O)
    const std::uint8_t* inside;      // (N)
    Real* h;             // (N, H)
    Real* o;             // (N, O)
    Real* nats;          // (N) −log softmax(o)[category], or −log N(numbers; o, 1)
    const Real* d_o;     // (N, O), without targets
    const Real* d_h;     // (N, H)
    // Gradients, with targets those of the sum of all losses.
    Real* d_x;           // (N, X), without targets
    Real* d_weight;      // (H, X + F)
    Real* d_bias;        // (H)
    Real* d_readout;     // (O, H)
    Real* d_readout_bias;  // (O)
};

template <class Format>
class Decoupled {
  public:
    using Real = typename Format::Real;

    Decoupled(const DecoupledProblem<Real>& problem, int threads)
        : problem_(problem), goes_back_(problem.d_weight != nullptr) {
        for (Index n = 0; n < problem.rows && problem.inside; ++n)
            if (problem.inside[n]) places_.push_back(n);
        rows_ = problem.inside ? static_cast<Index>(places_.size()) : problem.rows;
        blocks_ = ceil_divide(rows_, kRows);
        const Index outputs = problem.outputs, fed = problem.categories || problem.numbers ? outputs : 0;
        columns_ = problem.inputs + fed;
        depth_ = problem.inputs + (problem.numbers ? fed : 0);
        entries_ = 1 + (problem.categories ? fed : 0);
        into_ = {depth_, 1, problem.units};
        units_ = into_.panels() * kColumns;
        out_ = {units_, 1, outputs};
        back_ = {outputs, 1, problem.units};
        to_x_ = {units_, 1, problem.inputs};
        sizes_of_sums_ = {depth_ * units_, entries_ * units_, outputs * units_, outputs};
        for (const Index size : sizes_of_sums_) sums_ += size;
        segments_ = std::max<Index>(1, goes_back_ ? std::min({kMostOfSums / sums_, kSegments, blocks_}) : blocks_);
        members_ = static_cast<int>(std::min<Index>(segments_, threads));
        const Index bytes = problem.rows * problem.units * static_cast<Index>(sizeof(Real));
        streams_ = problem.h && bytes > kStreamedBytes && streams_to(problem.h, problem.units);

        into_.data = take(into_.size());
        out_.data = take(out_.size());
        table_ = take(entries_ * units_);
        readout_bias_ = take(width(out_));
        std::fill(std::copy_n(problem.readout_bias, outputs, readout_bias_), readout_bias_ + width(out_), Real(0));
        const bool to_x = problem.d_x != nullptr;
        desk_sizes_ = {kRows * stride(), kRows * width(out_), kRows * units_};
        if (goes_back_) {
            back_.data = take(back_.size());
            if (to_x) to_x_.data = take(to_x_.size());
            all_sums_ = take(segments_ * sums_);
            desk_sizes_[3] = kRows * kColumns;
            desk_sizes_[4] = problem.d_h ? kRows * kColumns : 0;
            desk_sizes_[5] = to_x ? kRows * width(to_x_) : 0;
        }
        for (Index& size : desk_sizes_) desk_ += size = round_up(size, 64 / static_cast<Index>(sizeof(Real)));
        desks_ = take(members_ * desk_);
    }

    int members() const { return members_; }

    void run(const Member& member) {
        pack(member);
        member.wait();
        const Desk desk(*this, member);
        for (Index segment = next_++; segment < segments_; segment = next_++) {
            const Sums sums = goes_back_ ? fresh_sums(segment) : Sums{};
            const Index first = blocks_ * segment / segments_;
            for (Index block = first; block < blocks_ * (segment + 1) / segments_; ++block) {
                Block rows(*this, block, desk);
                go(rows, desk);
                if (problem_.nats) lose(rows, desk);
                if (goes_back_) go_back(rows, desk, sums, block > first);
            }
        }
        if (streams_) intrinsics::finish_streams();
        if (!goes_back_) return;
        member.wait();
        add_segments(member);
        member.wait();
        hand_out(member);
    }

  private:
    static constexpr int kColumns = kWidth<Format>;  // of a panel
    // Of a block: its panel of h, x and o stand in the first cache, all of its h in the second.
    static constexpr Index kRows = 168 / kTallRows * kTallRows;
    // Segments, and numbers of all their sums.
    static constexpr Index kSegments = 16;
    static constexpr Index kMostOfSums = Index{1} << 24;

    // What a member works with. Matrices of H columns stand panel by panel: (panel, row, kColumns).
    struct Desk {
        Desk(const Decoupled& all, const Member& member) {
            Real* at = all.desks_ + member.index * all.desk_;
            Real** places[] = {&given, &outputs, &hidden, &of_a, &of_h, &of_x};
            for (std::size_t i = 0; i < std::size(places); at += all.desk_sizes_[i++]) *places[i] = at;
        }

        Real* given;    // (kRows, X), and numbers that are fed, where they are gathered
        Real* outputs;  // (kRows, O): o, then its gradients
        Real* hidden;   // (H / kColumns, kRows, kColumns)
        Real* of_a;     // (kRows, kColumns) the gradients of a = b + U x, of one panel
        Real* of_h;     // (kRows, kColumns) those of h that are given
        Real* of_x;     // (kRows, X)
    };

    // Gradients of a segment, those of H columns panel by panel. `entries` are of the rows of the table.
    struct Sums {
        Real *weight, *entries, *readout, *readout_bias;
    };

    Sums sums_at(Real* at) const {
        Sums sums;
        Real** places[] = {&sums.weight, &sums.entries, &sums.readout, &sums.readout_bias};
        for (std::size_t i = 0; i < std::size(places); at += sizes_of_sums_[i++]) *places[i] = at;
        return sums;
    }

    // Those of a segment. The first block of rows writes the large ones.
    Sums fresh_sums(Index segment) const {
        const Sums sums = sums_at(all_sums_ + segment * sums_);
        std::fill_n(sums.entries, sizes_of_sums_[1], Real(0));
        std::fill_n(sums.readout_bias, sizes_of_sums_[3], Real(0));
        if (blocks_ == 0) {
            std::fill_n(sums.weight, sizes_of_sums_[0], Real(0));
            std::fill_n(sums.readout, sizes_of_sums_[2], Real(0));
        }
        return sums;
    }

    // Some rows that go through together.
    struct Block {
        Block(const Decoupled& all, Index block, const Desk& desk) : first(block * kRows) {
            count = std::min(all.rows_, first + kRows) - first;
            const DecoupledProblem<Real>& problem = all.problem_;
            const bool in_place = !problem.inside && !problem.numbers;
            given = in_place ? problem.x + first * problem.inputs : desk.given;
            stride = in_place ? problem.inputs : all.stride();
            for (Index i = 0; i < count; ++i) {
                const auto at = static_cast<std::size_t>(i);
                const Index n = all.place(first + i), before = n - problem.batch;
                place[at] = n;
                entry[at] = problem.categories && before >= 0 ? 1 + problem.categories[before] : 0;
                for (Index k = 0; k < width(all.out_); k += kLanes<Real>)
                    store(desk.outputs + i * width(all.out_) + k, load(all.readout_bias_ + k));
                if (in_place) continue;
                Real* to = std::copy_n(problem.x + n * problem.inputs, problem.inputs, desk.given + i * stride);
                if (!problem.numbers) continue;
                if (before < 0) std::fill_n(to, problem.outputs, Real(0));
                else std::copy_n(problem.numbers + before * problem.outputs, problem.outputs, to);
            }
        }

        // Calls visit(first, rows) tile by tile.
        template <class Visit>
        void each_tile(Visit visit) const {
            for (Index t = 0; t < count; t += kTallRows)
                visit(t, static_cast<int>(std::min<Index>(kTallRows, count - t)));
        }

        Index first, count;
        const Real* given;  // what the rows read, `stride` apart: x, and numbers that are fed
        Index stride;
        std::array<Index, kRows> place;    // among all rows
        std::array<Index, kRows> entry;    // of the table
    };

    Real* take(Index count) { return buffers_.template take<Real>(count); }
    Index place(Index i) const { return problem_.inside ? places_[static_cast<std::size_t>(i)] : i; }
    Index stride() const { return padded_stride<Format>(depth_); }
    static Index width(const Panels<Format>& panels) { return panels.panels() * kColumns; }

    // Of its units or rows, a member's share.
    template <class Visit>
    static void each_share(const Member& member, Index count, Visit visit) {
        for (Index i = count * member.index / member.count; i < count * (member.index + 1) / member.count; ++i) visit(i);
    }

    // The weights as products take them. The table holds what a row has to begin with, (panel, entry, kColumns): entry 0
    // is b, entry 1 + k is that and U's column for the category k.
    void pack(const Member& member) const {
        const Index units = problem_.units;
        // B (depth, columns) from element(k, column), zeros around it.
        const auto fill = [&](const Panels<Format>& b, Index p, Index depth, auto element) {
            for (Index j = 0; j < kColumns; ++j)
                for (Index k = 0; k < b.depth; ++k)
                    b.panel(p)[k * kColumns + j] =
                        j < b.panel_columns(p) && k < depth ? element(k, b.first_column(p) + j) : Real(0);
        };
        each_share(member, into_.panels(), [&](Index p) {
            fill(into_, p, depth_, [&](Index k, Index u) { return problem_.weight[u * columns_ + k]; });
            for (Index entry = 0; entry < entries_; ++entry)
                for (Index j = 0; j < kColumns; ++j) {
                    const Index u = p * kColumns + j;
                    const Real start = u < units ? problem_.bias[u] : Real(0);
                    const bool fed = entry > 0 && u < units;
                    table_[(p * entries_ + entry) * kColumns + j] =
                        fed ? start + problem_.weight[u * columns_ + problem_.inputs + entry - 1] : start;
                }
            if (back_.data) pack_matrix(back_, p, problem_.readout);
        });
        each_share(member, out_.panels(), [&](Index p) {
            fill(out_, p, units, [&](Index u, Index k) { return problem_.readout[k * units + u]; });
        });
        if (!to_x_.data) return;
        each_share(member, to_x_.panels(), [&](Index p) {
            fill(to_x_, p, units, [&](Index u, Index k) { return problem_.weight[u * columns_ + k]; });
        });
    }

    // Calls visit(row, column, sums) for vectors of `height` rows of a, `stride` apart, times panel p of b. A product of
    // little depth costs no more than to put its sums away: what is made of them is made in their registers.
    template <class Visit>
    static void each_sum(const Real* a, Index stride, int height, const Panels<Format>& b, Index p, const Visit& visit) {
        if (height == kTallRows) return each_sum_of<kTallRows>(a, stride, b.panel(p), b.depth, visit);
        for (Index r = 0; r < height; ++r)
            each_sum_of<1>(a + r * stride, stride, b.panel(p), b.depth,
                           [=](Index, int j, Vector<Real> sums) { visit(r, j, sums); });
    }

    // A function of its own, whose registers are enough for the sums; `given` is copied here, where the compiler sees that
    // no store changes it.
    template <int Rows, class Visit>
    [[gnu::noinline]] static void each_sum_of(const Real* a, Index stride, const Real* b, Index depth, const Visit& given) {
        const Visit visit = given;
        constexpr int kStep = kLanes<Real>, kVectors = kColumns / kStep;
        Vector<Real> sums[Rows][kVectors] = {};
        // Three rows share one pointer, by way of the addressing modes.
        constexpr int kPointers = (Rows + 2) / 3;
        const Real* rows[kPointers];
#pragma GCC unroll 16
        for (int i = 0; i < kPointers; ++i) rows[i] = a + 3 * i * stride;
        for (Index k = 0; k < depth; ++k, b += kColumns) {
            Vector<Real> of_b[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) of_b[v] = load(b + v * kStep);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                const Vector<Real> of_a = broadcast(rows[r / 3][r % 3 * stride]);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sums[r][v] += of_a * of_b[v];
            }
#pragma GCC unroll 16
            for (int i = 0; i < kPointers; ++i) ++rows[i];
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) visit(r, v * kStep, sums[r][v]);
    }

    // Rows of `to`, as far apart as b is wide, += a (height, kColumns) times panel p's part of the depth of b.
    static void add_product(const Real* a, int height, const Panels<Format>& b, Index p, Real* to) {
        for (Index q = 0; q < b.panels(); ++q) {
            const Panels<Format> part{kColumns, 1, kColumns, b.panel(q) + p * kColumns * kColumns};
            each_sum(a, kColumns, height, part, 0, [=, stride = width(b), columns = to + q * kColumns]
                     (Index r, int j, Vector<Real> sums) {
                Real* const at = columns + r * stride + j;
                store(at, load(at) + sums);
            });
        }
    }

    // h and o of a block.
    void go(const Block& block, const Desk& desk) const {
        for (Index p = 0; p < into_.panels(); ++p) {
            const Real* const table = table_ + p * entries_ * kColumns;
            Real* const hidden = desk.hidden + p * kRows * kColumns;
            block.each_tile([&](Index t, int height) {
                Real* const h = hidden + t * kColumns;
                const Index* const entry = block.entry.data() + t;
                const Real* const given = block.given + t * block.stride;
                each_sum(given, block.stride, height, into_, p, [=](Index r, int j, Vector<Real> sums) {
                    const Real* start = table + entry[r] * kColumns + j;
                    store(h + r * kColumns + j, tangent(sums + load(start)));
                });
                if (problem_.o || problem_.nats)
                    add_product(h, height, out_, p, desk.outputs + t * width(out_));
            });
            if (problem_.h) put_hidden(block, p, hidden);
        }
        if (!problem_.o) return;
        for (Index i = 0; i < block.count; ++i)
            std::copy_n(desk.outputs + i * width(out_), problem_.outputs,
                        problem_.o + block.place[static_cast<std::size_t>(i)] * problem_.outputs);
    }

    void put_hidden(const Block& block, Index p, const Real* hidden) const {
        constexpr int kStep = kLanes<Real>;
        for (Index i = 0; i < block.count; ++i) {
            Real* to = problem_.h + block.place[static_cast<std::size_t>(i)] * problem_.units + p * kColumns;
            for (int j = 0; j < into_.panel_columns(p); j += kStep) {
                const Vector<Real> h = load(hidden + i * kColumns + j);
                if (streams_) stream(to + j, h);
                else store(to + j, h, std::min(kStep, into_.panel_columns(p) - j));
            }
        }
    }

    // The losses of a block, and in the place of o their gradients.
    void lose(const Block& block, const Desk& desk) const {
        for (Index i = 0; i < block.count; ++i) {
            const Index n = block.place[static_cast<std::size_t>(i)];
            Real* o = desk.outputs + i * width(out_);
            problem_.nats[n] = problem_.categories ? cross_entropy(o, problem_.categories[n])
                                                   : squared_error(o, problem_.numbers + n * problem_.outputs);
        }
    }

    // −log softmax(o)[target]; o becomes softmax(o) − [category = target].
    Real cross_entropy(Real* o, Index target) const {
        constexpr int kStep = kLanes<Real>;
        const Index outputs = problem_.outputs;
        const Real at_target = o[target];
        // What stands behind the last category counts nothing.
        std::fill(o + outputs, o + round_up(outputs, kStep), -std::numeric_limits<Real>::infinity());
        Vector<Real> highest = load(o);
        for (Index k = kStep; k < outputs; k += kStep) highest = greater<Real>(highest, load(o + k));
        const Real best = fold<Real>(highest, [](auto a, auto b) { return greater<Real>(a, b); });
        Vector<Real> sums = {};
        for (Index k = 0; k < outputs; k += kStep) {
            store(o + k, exponential(load(o + k) - best));
            sums += load(o + k, static_cast<int>(std::min<Index>(kStep, outputs - k)));
        }
        const Real total = fold<Real>(sums, [](auto a, auto b) { return a + b; }), scale = 1 / total;
        for (Index k = 0; k < outputs; k += kStep) store(o + k, load(o + k) * scale);
        o[target] -= Real(1);
        return std::log(total) + best - at_target;
    }

    // −log N(target; o, 1) = ½ ‖target − o‖² + ½ log 2π for each number; o becomes o − target.
    Real squared_error(Real* o, const Real* target) const {
        constexpr Real kHalfLogTwoPi = Real(0.918938533204672741780329736406);
        Real squares = 0;
        for (Index k = 0; k < problem_.outputs; ++k) {
            o[k] -= target[k];
            squares += o[k] * o[k];
        }
        return squares / 2 + kHalfLogTwoPi * static_cast<Real>(problem_.outputs);
    }

    // `add`: to what is in the sums already.
    void go_back(const Block& block, const Desk& desk, const Sums& sums, bool add) const {
        const Index outputs = problem_.outputs, count = block.count;
        const auto place = [&](Index i) { return block.place[static_cast<std::size_t>(i)]; };
        for (Index i = 0; i < count; ++i) {
            Real* d_o = desk.outputs + i * width(out_);
            if (problem_.d_o) std::copy_n(problem_.d_o + place(i) * outputs, outputs, d_o);
            for (Index k = 0; k < outputs; ++k) sums.readout_bias[k] += d_o[k];
        }
        if (problem_.d_x) std::fill_n(desk.of_x, count * width(to_x_), Real(0));
        for (Index p = 0; p < into_.panels(); ++p) {
            Real* const entries = sums.entries + p * entries_ * kColumns;
            const Real* const hidden = desk.hidden + p * kRows * kColumns;
            const Real* const given = problem_.d_h ? given_hidden(block, p, desk) : nullptr;
            block.each_tile([&](Index t, int height) {
                const Real* const d_o = desk.outputs + t * width(out_);
                const Real *const h = hidden + t * kColumns, *const more = given ? given + t * kColumns : nullptr;
                const Index* const entry = block.entry.data() + t;
                Real* const d_a = desk.of_a + t * kColumns;
                each_sum(d_o, width(out_), height, back_, p, [=](Index r, int j, Vector<Real> d) {
                    const Index at = r * kColumns + j;
                    if (more) d += load(more + at);
                    const Vector<Real> unit = load(h + at);
                    d *= Real(1) - unit * unit;
                    store(d_a + at, d);
                    Real* const sum = entries + entry[r] * kColumns + j;
                    store(sum, load(sum) + d);
                });
                if (problem_.d_x) add_product(d_a, height, to_x_, p, desk.of_x + t * width(to_x_));
            });
            put_outer(block.given, block.stride, depth_, desk.of_a, count,
                      sums.weight + p * depth_ * kColumns, add);
            put_outer(desk.outputs, width(out_), outputs, hidden, count,
                      sums.readout + p * outputs * kColumns, add);
        }
        for (Index i = 0; i < count && problem_.d_x; ++i)
            std::copy_n(desk.of_x + i * width(to_x_), problem_.inputs, problem_.d_x + place(i) * problem_.inputs);
    }

    // One panel of the gradients of h that are given.
    const Real* given_hidden(const Block& block, Index p, const Desk& desk) const {
        for (Index i = 0; i < block.count; ++i) {
            const Real* from = problem_.d_h + block.place[static_cast<std::size_t>(i)] * problem_.units + p * kColumns;
            Real* to = std::copy_n(from, into_.panel_columns(p), desk.of_h + i * kColumns);
            std::fill(to, desk.of_h + (i + 1) * kColumns, Real(0));
        }
        return desk.of_h;
    }

    // to (width, kColumns) = aᵀ b, or += that, for a (rows, width), its rows `stride` apart, and b (rows, kColumns).
    static void put_outer(const Real* a, Index stride, Index width, const Real* b, Index rows, Real* to, bool add) {
        const Tiles tiles(width, 1, kTallRows);
        std::array<Real*, kTallRows> c;
        TileCall<Format> call{};
        call.units = rows;
        call.stride = stride;
        call.b = b;
        call.c = c.data();
        call.carry = add;
        for (Index t = 0; t < tiles.count; ++t) {
            const Index first = tiles.begin(t);
            const int height = tiles.height(t);
            for (int r = 0; r < height; ++r) c[static_cast<std::size_t>(r)] = to + (first + r) * kColumns;
            call.a = a + first;
            multiply_tall<Format, Layout::kInterleaved>(height, call);
        }
    }

    // The sums of all segments in their order, in the place of the first one's; each member has some.
    void add_segments(const Member& member) const {
        const Index begin = sums_ * member.index / member.count, end = sums_ * (member.index + 1) / member.count;
        for (Index segment = 1; segment < segments_; ++segment) {
            const Real* of_segment = all_sums_ + segment * sums_;
            for (Index i = begin; i < end; ++i) all_sums_[i] += of_segment[i];
        }
    }

    void hand_out(const Member& member) const {
        const Sums sums = sums_at(all_sums_);
        const Index units = problem_.units, outputs = problem_.outputs;
        each_share(member, units, [&](Index u) {
            const auto at = [&](const Real* matrix, Index rows, Index row) {
                return matrix[(u / kColumns * rows + row) * kColumns + u % kColumns];
            };
            Real* of_weight = problem_.d_weight + u * columns_;
            for (Index k = 0; k < depth_; ++k) of_weight[k] = at(sums.weight, depth_, k);
            Real of_bias = at(sums.entries, entries_, 0);
            for (Index entry = 1; entry < entries_; ++entry)
                of_bias += of_weight[problem_.inputs + entry - 1] = at(sums.entries, entries_, entry);
            problem_.d_bias[u] = of_bias;
            for (Index k = 0; k < outputs; ++k) problem_.d_readout[k * units + u] = at(sums.readout, outputs, k);
        });
        if (member.index == 0) std::copy_n(sums.readout_bias, outputs, problem_.d_readout_bias);
    }

    const DecoupledProblem<Real>& problem_;
    const bool goes_back_;
    bool streams_;  // h goes to memory past the caches
    std::vector<Index> places_;  // of the rows inside, where not all are
    Index rows_;                 // that are inside
    Index blocks_;
    Index columns_;  // X + F
    Index depth_;    // of U's product
    Index entries_;  // of the table
    Index units_;    // H, whole panels
    Index segments_;
    int members_;
    Buffers buffers_;
    Panels<Format> into_, out_, back_, to_x_;  // by which x, h, d_o and d_a are multiplied
    Real *table_, *readout_bias_;
    std::array<Index, 6> desk_sizes_{};
    Index desk_ = 0;
    Real* desks_;
    std::array<Index, 4> sizes_of_sums_;
    Index sums_ = 0;
    Real* all_sums_ = nullptr;  // of each segment
    std::atomic<Index> next_{0};
};

}  // namespace throughtime
