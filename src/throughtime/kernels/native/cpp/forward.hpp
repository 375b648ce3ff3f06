// A cell over the steps of a batch: all that x contributes is one product over the rows of some steps; then, step by step,
// W h(t-1) and the gates, fused.
#pragma once

#include "one_row.hpp"
#include "pass.hpp"

namespace throughtime {

// Up to so many rows of x are multiplied one by one with the weights as they stand.
inline constexpr Index kSingleRows = 4;

template <class Format>
class Forward : Pass<Format> {
    using Base = Pass<Format>;
    using Base::buffers_, Base::fresh, Base::gates_, Base::h_, Base::mask_of, Base::p_, Base::pack_row, Base::problem_,
        Base::row_of, Base::saved_, Base::schedule_;

  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    Forward(const Problem<Real>& problem, int threads) : Base(problem) {
        of_inputs_ = {problem.inputs, gates_, h_};
        of_state_ = {p_, gates_, h_};
        of_middle_ = {h_, 1, p_};
        const bool alone = problem.batch == 1;
        as_it_stands_ = alone && !Format::kRounds && !has_two_products(problem.cell);
        turned_ = alone && !problem.table && schedule_.rows() <= kBlockRows;
        row_by_row_ = turned_ && !Format::kRounds && schedule_.rows() <= kSingleRows;
        of_rows_ = {problem.inputs, 1, schedule_.rows()};
        if (!turned_ && !problem.table) of_inputs_.data = buffers_.template take<Packed>(of_inputs_.size());
        if (turned_ && !row_by_row_) of_rows_.data = buffers_.template take<Packed>(of_rows_.size());
        if (!as_it_stands_) of_state_.data = buffers_.template take<Packed>(of_state_.size());
        if (problem.weight_hr) of_middle_.data = buffers_.template take<Packed>(of_middle_.size());
        streams_ = streams_results();
        stride_ = padded_stride<Format>(round_up(p_, Format::kUnit));
        middle_stride_ = padded_stride<Format>(round_up(h_, Format::kUnit));
        for (auto& state : states_) state = this->take_operand(stride_);
        middle_ = this->take_operand(middle_stride_);
        h_now_ = buffers_.template take<Real>(problem.batch * p_);
        c_now_ = buffers_.template take<Real>(problem.batch * h_);
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        products_ = buffers_.template take<Real>(threads * products_size<Format>(gates_));
        // One member alone, where others have the threads, needs no more than all together.
        const Split split = this->split(Member{0, threads, nullptr});
        const Index width = split.most_panels(of_state_.group_panels()) * kWidth<Format>;
        projected_size_ = problem.table ? 0 : chunk_rows(split) * gates_ * width;
        projected_ = buffers_.template take<Real>(threads * projected_size_);
        biases_size_ = gates_ * width;
        biases_ = buffers_.template take<Real>(threads * biases_size_);
        places_ = buffers_.template take<Index>(threads * (chunk_rows(split) + problem.batch));
        if (turned_ && !row_by_row_) turned_values_ = buffers_.template take<Real>(threads * turned_size());
    }

    void run(const Member& member) {
        pack(next_[0], of_inputs_, problem_.weight_ih);
        pack(next_[1], of_state_, problem_.weight_hh);
        pack(next_[2], of_middle_, problem_.weight_hr);
        pack(next_[3], of_rows_, problem_.x);
        if (member.index == 0) begin();
        member.wait();
        this->with_cell([&]<Cell cell>() { loop<cell>(member); });
    }

    // To be called when all members have returned.
    void finish() {
        for (Index j = 0; j < problem_.batch; ++j) {
            const Index b = schedule_.sequence(j);
            std::copy_n(h_now_ + j * p_, p_, problem_.h_last + b * p_);
            if (problem_.c_last) std::copy_n(c_now_ + j * h_, h_, problem_.c_last + b * h_);
        }
    }

  private:
    bool streams_results() const {
        // The second product of a step reads what the first one saved.
        if (has_two_products(problem_.cell)) return false;
        Index bytes = 0;
        bool fits = true;
        const auto add = [&](const Real* to, Index width) {
            if (!to) return;
            bytes += schedule_.rows() * width * static_cast<Index>(sizeof(Real));
            fits = fits && streams_to(to, h_);
        };
        add(problem_.outputs, h_);
        add(problem_.saved, saved_ * h_);
        add(problem_.cells, h_);
        return fits && bytes > kStreamedBytes;
    }

    // Where there is a place for it.
    static void pack(std::atomic<Index>& next, const Panels<Format>& panels, const Real* rows) {
        if (!panels.data) return;
        for (Index p = next++; p < panels.panels(); p = next++) pack_weight_rows(panels, p, rows);
    }

    // What x contributes is computed for some steps at a time, so that it is still in the cache when they come.
    static Index chunk_rows(const Split& split, Index batch) {
        const Index rows = split.most_rows(batch);
        return rows * std::max<Index>(1, kBlockRows / std::max<Index>(1, rows));
    }
    Index chunk_rows(const Split& split) const { return chunk_rows(split, problem_.batch); }

    Split split(const Member& member) const {
        return Split(member, problem_.batch, of_state_.group_panels(),
                     of_state_.size() * static_cast<Index>(sizeof(Packed)));
    }

    void begin() {
        for (Index j = 0; j < problem_.batch; ++j) {
            const Index b = schedule_.sequence(j);
            std::copy_n(problem_.h_first + b * p_, p_, h_now_ + j * p_);
            if (problem_.c_first) std::copy_n(problem_.c_first + b * h_, h_, c_now_ + j * h_);
            pack_state(0, j, 0, p_);
        }
    }

    Packed* state_operand(Index s) { return states_[static_cast<std::size_t>(s % 2)]; }

    // h of the j-th sequence as the product of step s takes it.
    void pack_state(Index s, Index j, Index begin, Index end) {
        if (s >= schedule_.steps() || j >= schedule_.running(s)) return;
        Packed* to = state_operand(s) + j * stride_;
        const Real* from = h_now_ + j * p_;
        const Real* mask = mask_of(j);
        if (fresh(schedule_.place(s, j))) {
            for (Index u = begin; u < end; ++u) to[u] = Format::pack(0);
        } else if (mask) {
            for (Index u = begin; u < end; ++u) to[u] = Format::pack(mask[u] * from[u]);
        } else {
            pack_row(from, begin, end, to);
        }
    }

    // One member's part of b + U x(t) for some steps: (row, G, width), rows and units being the member's own.
    struct Projected {
        Real* values;
        Real* biases;  // (G, width)
        Index width;   // of one gate: the member's panels, whole
        Index first;   // the member's first unit
        Index* places; // (rows) where x stands
        Index* own;    // (B) the how manieth of the member's sequences a sequence is
        Index begin;   // the first row of the present step
        Index next;    // the first of the next
        Index end;     // the step up to which there are values
    };

    void project(const Split& split, const GroupTiles& tiles, Index s, Packed* scratch, Projected& projected) {
        const Index capacity = chunk_rows(split);
        Index rows = 0, step = s;
        for (; step < schedule_.steps() && (step == s || rows + split.most_rows(problem_.batch) <= capacity); ++step)
            tiles.each_row(schedule_.running(step),
                           [&](Index j) { projected.places[rows++] = schedule_.place(step, j); });
        projected.next = 0;
        projected.end = step;
        const auto input = [&](Index i) { return problem_.x + projected.places[i] * problem_.inputs; };
        const RowsOfA<Format, decltype(input)> a{input};
        const Index panels = of_inputs_.group_panels();
        const Columns columns{split.first_panel(panels), split.end_panel(panels), projected.width, true};
        for (Index begin = 0; begin < rows; begin += kBlockRows)
            multiply_block<Format>(
                begin, std::min(rows, begin + kBlockRows), a, of_inputs_, columns,
                [&](Index i) { return projected.values + i * gates_ * projected.width; }, false, projected.biases,
                scratch);
    }

    // The same for one sequence of few steps, for which packing all of U would take as long as the product. Its rows are
    // those of A, x's are the columns of B, and the result, turned, is turned back; for very few, U is read as it stands.
    void project_turned(const Member& member, Packed* scratch, Projected& projected) {
        const Index rows = schedule_.rows();
        projected.next = 0;
        projected.end = schedule_.steps();
        const Index count = std::min(projected.width, h_ - projected.first);
        for (Index gate = 0; gate < gates_; ++gate) {
            const Real* weight = problem_.weight_ih + (gate * h_ + projected.first) * problem_.inputs;
            const Real* biases = projected.biases + gate * projected.width;
            Real* to = projected.values + gate * projected.width;
            const Index step = gates_ * projected.width;
            if (row_by_row_) {
                for (Index s = 0; s < rows; ++s) {
                    Real* own = to + s * step;
                    multiply_rows(weight, problem_.inputs, count, problem_.x + schedule_.place(s, 0) * problem_.inputs, own);
                    for (Index u = 0; u < count; ++u) own[u] += biases[u];
                }
                continue;
            }
            Real* values = turned_values_ + member.index * turned_size();  // (unit, memory's step)
            const Index stride = turned_stride();
            const auto row = [&](Index u) { return weight + u * problem_.inputs; };
            for (Index begin = 0; begin < count; begin += kTurnedUnits) {
                const Index end = std::min(count, begin + kTurnedUnits);
                multiply_block<Format>(
                    begin, end, RowsOfA<Format, decltype(row)>{row}, of_rows_, Columns{0, of_rows_.panels(), 0, true},
                    [&](Index u) { return values + (u - begin) * stride; }, false, nullptr, scratch);
                for (Index u = begin; u < end; u += kLanes<Real>)
                    turn_back(values + (u - begin) * stride, load(biases + u), to + u, step);
            }
        }
    }

    // kLanes units of all steps.
    void turn_back(const Real* values, Vector<Real> bias, Real* to, Index step) const {
        const Index rows = schedule_.rows(), stride = turned_stride();
        for (Index first = 0; first < rows; first += kLanes<Real>) {
            Vector<Real> block[kLanes<Real>];
            for (int i = 0; i < kLanes<Real>; ++i) block[i] = load(values + i * stride + first);
            transpose<Real>(block);
            for (Index i = 0; i < std::min<Index>(kLanes<Real>, rows - first); ++i) {
                const Index s = problem_.reverse ? rows - 1 - first - i : first + i;
                store(to + s * step, block[i] + bias);
            }
        }
    }

    static constexpr Index kTurnedUnits = kBlockRows / kLanes<Real> * kLanes<Real>;
    Index turned_stride() const { return of_rows_.panels() * kWidth<Format>; }
    Index turned_size() const { return kTurnedUnits * turned_stride(); }

    // W h(t-1) of one sequence, with W as it stands, its rows forth and `back` in turns.
    template <class Visit>
    void multiply_alone(const Packed* state, bool back, const Projected& projected, Real* sums, Visit visit) const {
        constexpr Index kAtOnce = 2 * kWidth<Format>;  // no more than `sums` has room for
        const Index end = std::min(h_, projected.first + projected.width);
        const Index pieces = ceil_divide(end - projected.first, kAtOnce);
        for (Index i = 0; i < pieces; ++i) {
            const Index first = projected.first + (back ? pieces - 1 - i : i) * kAtOnce;
            const Index count = std::min(kAtOnce, end - first);
            if constexpr (!Format::kRounds)
                for (Index gate = 0; gate < gates_; ++gate)
                    multiply_rows(problem_.weight_hh + (gate * h_ + first) * p_, p_, count, state, sums + gate * kAtOnce);
            visit(0, first, static_cast<int>(count), sums, kAtOnce);
        }
    }

    template <Cell cell>
    void loop(const Member& member) {
        constexpr bool kTwice = has_two_products(cell);
        const Split split = this->split(member);
        const GroupTiles tiles(problem_.batch, split);
        Real* scratch = products_ + member.index * products_size<Format>(gates_);
        Packed* scratch_of_a = scratch_ + member.index * kScratchOfA<Format>;
        Projected projected = projected_of(member, split, tiles);
        for (Index s = 0; s < schedule_.steps(); ++s) {
            const bool back = s % 2;
            if (split.takes_part) {
                if (s == projected.end && !problem_.table) {
                    if (turned_) project_turned(member, scratch_of_a, projected);
                    else project(split, tiles, s, scratch_of_a, projected);
                }
                projected.begin = projected.next;
                tiles.each_row(schedule_.running(s), [&](Index) { ++projected.next; });
                const StepProduct<Format> product{state_operand(s), stride_, &of_state_, 0,
                                                  cell == Cell::kGruBefore ? 2 : gates_, 0, p_};
                const auto visit = [&](Index j, Index first, int count, const Real* sums, Index width) {
                    const auto row = forward_row(s, j, first, count, sums, width, projected);
                    step_forward<cell>(row);
                    if constexpr (kTwice) {
                        constexpr Index kMiddle = cell == Cell::kGruBefore ? 3 : 4;
                        pack_row(row.saved + kMiddle * h_, first, first + count, middle_ + j * middle_stride_);
                    } else {
                        pack_state(s + 1, j, first, first + count);
                    }
                };
                if (as_it_stands_) multiply_alone(state_operand(s), back, projected, scratch, visit);
                else multiply_step(product, split, tiles, schedule_.running(s), back, scratch, visit);
            }
            if (split.together()) member.wait();
            if constexpr (kTwice) {
                if (split.takes_part) {
                    StepProduct<Format> product{middle_, middle_stride_, &of_middle_, 0, 1, 0, h_};
                    if (cell == Cell::kGruBefore) product = {middle_, middle_stride_, &of_state_, 2, 1, 0, h_};
                    multiply_step(product, split, tiles, schedule_.running(s), back, scratch,
                                  [&](Index j, Index first, int count, const Real* sums, Index width) {
                                      finish_forward<cell>(forward_row(s, j, first, count, sums, width, projected));
                                      pack_state(s + 1, j, first, first + count);
                                  });
                }
                if (split.together()) member.wait();
            }
        }
        if (streams_) intrinsics::finish_streams();
    }

    Projected projected_of(const Member& member, const Split& split, const GroupTiles& tiles) {
        const Index panels = of_state_.group_panels();
        Projected projected{};
        projected.values = projected_ + member.index * projected_size_;
        projected.width = (split.end_panel(panels) - split.first_panel(panels)) * kWidth<Format>;
        projected.first = split.first_panel(panels) * kWidth<Format>;
        projected.places = places_ + member.index * (chunk_rows(split) + problem_.batch);
        projected.own = projected.places + chunk_rows(split);
        if (!split.takes_part) return projected;
        Index count = 0;
        tiles.each_row(problem_.batch, [&](Index j) { projected.own[j] = count++; });
        projected.biases = biases_ + member.index * biases_size_;
        for (Index gate = 0; gate < gates_; ++gate) {
            for (Index i = 0; i < projected.width; ++i) {
                const Index u = projected.first + i;
                Real bias = 0;
                if (problem_.bias_ih && u < h_) bias = problem_.bias_ih[gate * h_ + u];
                if (problem_.bias_hh && u < h_ && !is_gru(problem_.cell)) bias += problem_.bias_hh[gate * h_ + u];
                projected.biases[gate * projected.width + i] = bias;
            }
        }
        return projected;
    }

    ForwardRow<Real> forward_row(Index s, Index j, Index first, int count, const Real* product, Index stride,
                                 const Projected& projected) const {
        const Index place = schedule_.place(s, j);
        ForwardRow<Real> row;
        row.units = h_;
        row.first = first;
        row.count = count;
        if (problem_.table) {
            row.inputs = problem_.table + problem_.tokens[place] * gates_ * h_ + first;
            row.inputs_stride = h_;
        } else {
            row.inputs = projected.values + (projected.begin + projected.own[j]) * gates_ * projected.width +
                         (first - projected.first);
            row.inputs_stride = projected.width;
        }
        row.product = product;
        row.product_stride = stride;
        row.saved = problem_.saved ? problem_.saved + place * saved_ * h_ : nullptr;
        row.bias_hh = problem_.bias_hh;
        row.peephole = problem_.peephole;
        row.mask = mask_of(j);
        row.zoneout_h = row_of(problem_.zoneout_h, place, p_);
        row.zoneout_c = row_of(problem_.zoneout_c, place, h_);
        row.fresh = fresh(place);
        row.streams = streams_;
        row.h = h_now_ + j * p_;
        row.c = c_now_ + j * h_;
        row.h_out = problem_.outputs + place * p_;
        row.c_out = problem_.cells ? problem_.cells + place * h_ : nullptr;
        return row;
    }

    bool streams_;  // the results, past the caches
    // Of a single sequence:
    bool as_it_stands_;  // W is not packed
    bool turned_;        // nor is U, in panels: its rows are those of A
    bool row_by_row_;    // nor in any other way
    Index stride_, middle_stride_;
    Panels<Format> of_inputs_, of_state_, of_middle_;
    Panels<Format> of_rows_;         // x, where U is not packed
    std::array<Packed*, 2> states_;  // (B, stride): h(t-1) and h(t), in turn
    Packed* middle_;                 // (B, middle stride): o ⊙ tanh c, or r ⊙ h
    Real* h_now_;                    // (B, P), sorted
    Real* c_now_;                    // (B, H), sorted
    Real* biases_;                   // for each thread
    Packed* scratch_;                // for each thread
    Real* products_;                 // for each thread
    Real* projected_;                // for each thread
    Index projected_size_, biases_size_;
    Index* places_;                  // for each thread
    Real* turned_values_ = nullptr;  // for each thread
    std::array<std::atomic<Index>, 4> next_{};
};

}  // namespace throughtime
