// A cell over the steps of a batch, forward and backward through time.
//
// Forward: all that x contributes is one product over T · B rows; then, step by step, W h(t-1) and the gates, fused.
// Backward: step by step the gates' gradients and what they send to h(t-1); then, each one product over all steps, the
// gradients of x, of the weights and of the biases (eqs. 10.22-10.28 of Goodfellow, Bengio & Courville 2016, for any cell).
#pragma once

#include <memory>

#include "cells.hpp"
#include "team.hpp"

namespace throughtime {

// What both directions know of a problem.
template <class Format>
class Pass {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

  protected:
    explicit Pass(const Problem<Real>& problem)
        : problem_(problem),
          schedule_(problem),
          h_(problem.units),
          p_(problem.state),
          gates_(gates_of(problem.cell)),
          saved_(saved_of(problem.cell)) {}

    // Calls run<cell>() for the problem's cell.
    template <class Run>
    void with_cell(Run run) const {
        switch (problem_.cell) {
            case Cell::kRnnTanh: return run.template operator()<Cell::kRnnTanh>();
            case Cell::kRnnRelu: return run.template operator()<Cell::kRnnRelu>();
            case Cell::kLstm: return run.template operator()<Cell::kLstm>();
            case Cell::kLstmProjected: return run.template operator()<Cell::kLstmProjected>();
            case Cell::kGru: return run.template operator()<Cell::kGru>();
            case Cell::kGruBefore: return run.template operator()<Cell::kGruBefore>();
        }
    }

    bool fresh(Index place) const { return problem_.resets && problem_.resets[place]; }

    const Real* mask_of(Index j) const {
        return problem_.mask ? problem_.mask + schedule_.sequence(j) * p_ : nullptr;
    }

    static const Real* row_of(const Real* rows, Index place, Index width) { return rows ? rows + place * width : nullptr; }

    // Packed rows (B, stride) for the operand of a product within a step, all zero.
    Packed* take_operand(Index stride) {
        Packed* rows = buffers_.template take<Packed>(problem_.batch * stride);
        std::fill_n(rows, problem_.batch * stride, Format::pack(0));
        return rows;
    }

    static void pack_row(const Real* from, Index begin, Index end, Packed* to) {
        for (Index u = begin; u < end; ++u) to[u] = Format::pack(from[u]);
    }

    const Problem<Real>& problem_;
    Schedule schedule_;
    Index h_, p_;  // the sizes H and P
    Index gates_, saved_;
    Buffers buffers_;
};

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
        of_inputs_.data = buffers_.template take<Packed>(of_inputs_.size());
        of_state_.data = buffers_.template take<Packed>(of_state_.size());
        if (problem.weight_hr) of_middle_.data = buffers_.template take<Packed>(of_middle_.size());
        stride_ = padded_stride<Format>(round_up(p_, Format::kUnit));
        middle_stride_ = padded_stride<Format>(round_up(h_, Format::kUnit));
        for (auto& state : states_) state = this->take_operand(stride_);
        middle_ = this->take_operand(middle_stride_);
        h_now_ = buffers_.template take<Real>(problem.batch * p_);
        c_now_ = buffers_.template take<Real>(problem.batch * h_);
        bias_ = buffers_.template take<Real>(gates_ * h_);
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        products_ = buffers_.template take<Real>(threads * products_size<Format>(gates_));
    }

    void run(const Member& member) {
        for (Index p = next_[0]++; p < of_inputs_.panels(); p = next_[0]++)
            pack_weight_rows(of_inputs_, p, problem_.weight_ih);
        for (Index p = next_[1]++; p < of_state_.panels(); p = next_[1]++)
            pack_weight_rows(of_state_, p, problem_.weight_hh);
        if (problem_.weight_hr)
            for (Index p = next_[2]++; p < of_middle_.panels(); p = next_[2]++)
                pack_weight_rows(of_middle_, p, problem_.weight_hr);
        if (member.index == 0) begin();
        member.wait();
        const auto input = [&](Index i) { return problem_.x + schedule_.place(i) * problem_.inputs; };
        multiply<Format>(
            member, next_[3], schedule_.rows(), RowsOfA<Format, decltype(input)>{input}, of_inputs_,
            [&](Index i) { return problem_.saved + schedule_.place(i) * saved_ * h_; }, false, bias_,
            scratch_ + member.index * kScratchOfA<Format>);
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
    void begin() {
        for (Index i = 0; i < gates_ * h_; ++i) {
            bias_[i] = problem_.bias_ih ? problem_.bias_ih[i] : Real(0);
            if (problem_.bias_hh && !is_gru(problem_.cell)) bias_[i] += problem_.bias_hh[i];
        }
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

    template <Cell cell>
    void loop(const Member& member) {
        constexpr bool kTwice = cell == Cell::kLstmProjected || cell == Cell::kGruBefore;
        const Split split(member, problem_.batch, of_state_.group_panels(),
                          of_state_.size() * static_cast<Index>(sizeof(Packed)));
        const GroupTiles tiles(problem_.batch, split);
        Real* scratch = products_ + member.index * products_size<Format>(gates_);
        for (Index s = 0; s < schedule_.steps(); ++s) {
            if (split.takes_part) {
                const StepProduct<Format> product{state_operand(s), stride_, &of_state_, 0,
                                                  cell == Cell::kGruBefore ? 2 : gates_, 0, p_};
                multiply_step(product, split, tiles, schedule_.running(s), scratch,
                              [&](Index j, Index first, int count, const Real* sums, Index width) {
                                  const auto row = forward_row(s, j, first, count, sums, width);
                                  step_forward<cell>(row);
                                  if constexpr (kTwice) {
                                      constexpr Index kMiddle = cell == Cell::kGruBefore ? 3 : 4;
                                      pack_row(row.saved + kMiddle * h_, first, first + count,
                                               middle_ + j * middle_stride_);
                                  } else {
                                      pack_state(s + 1, j, first, first + count);
                                  }
                              });
            }
            if (split.together()) member.wait();
            if constexpr (kTwice) {
                if (split.takes_part) {
                    StepProduct<Format> product{middle_, middle_stride_, &of_middle_, 0, 1, 0, h_};
                    if (cell == Cell::kGruBefore) product = {middle_, middle_stride_, &of_state_, 2, 1, 0, h_};
                    multiply_step(product, split, tiles, schedule_.running(s), scratch,
                                  [&](Index j, Index first, int count, const Real* sums, Index width) {
                                      finish_forward<cell>(forward_row(s, j, first, count, sums, width));
                                      pack_state(s + 1, j, first, first + count);
                                  });
                }
                if (split.together()) member.wait();
            }
        }
    }

    ForwardRow<Real> forward_row(Index s, Index j, Index first, int count, const Real* product, Index stride) const {
        const Index place = schedule_.place(s, j);
        ForwardRow<Real> row;
        row.units = h_;
        row.first = first;
        row.count = count;
        row.product = product;
        row.product_stride = stride;
        row.saved = problem_.saved + place * saved_ * h_;
        row.bias_hh = problem_.bias_hh;
        row.peephole = problem_.peephole;
        row.mask = mask_of(j);
        row.zoneout_h = row_of(problem_.zoneout_h, place, p_);
        row.zoneout_c = row_of(problem_.zoneout_c, place, h_);
        row.fresh = fresh(place);
        row.h = h_now_ + j * p_;
        row.c = c_now_ + j * h_;
        row.h_out = problem_.outputs + place * p_;
        row.c_out = problem_.cells ? problem_.cells + place * h_ : nullptr;
        return row;
    }

    Index stride_, middle_stride_;
    Panels<Format> of_inputs_, of_state_, of_middle_;
    std::array<Packed*, 2> states_;  // (B, stride): h(t-1) and h(t), in turn
    Packed* middle_;                 // (B, middle stride): o ⊙ tanh c, or r ⊙ h
    Real* h_now_;                    // (B, P), sorted
    Real* c_now_;                    // (B, H), sorted
    Real* bias_;                     // (G H)
    Packed* scratch_;                // for each thread
    Real* products_;                 // for each thread
    std::array<std::atomic<Index>, 4> next_{};
};

template <class Format>
class Backward : Pass<Format> {
    using Base = Pass<Format>;
    using Base::buffers_, Base::fresh, Base::gates_, Base::h_, Base::mask_of, Base::p_, Base::pack_row, Base::problem_,
        Base::row_of, Base::saved_, Base::schedule_;

  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    Backward(const Problem<Real>& problem, const Gradients<Real>& gradients, int threads)
        : Base(problem), gradients_(gradients) {
        of_state_ = {gates_ * h_, 1, p_};
        of_inputs_ = {gates_ * h_, 1, problem.inputs};
        of_middle_ = {p_, 1, h_};
        of_state_.data = buffers_.template take<Packed>(of_state_.size());
        if (gradients.x) of_inputs_.data = buffers_.template take<Packed>(of_inputs_.size());
        if (problem.weight_hr) of_middle_.data = buffers_.template take<Packed>(of_middle_.size());
        slab_size_ = Panels<Format>{kBlockDepth, 1, std::max({problem.inputs, p_, h_})}.size();
        for (auto& slab : slabs_) slab = buffers_.template take<Packed>(3 * slab_size_);
        stride_ = padded_stride<Format>(round_up(gates_ * h_, Format::kUnit));
        middle_stride_ = padded_stride<Format>(round_up(std::max(h_, p_), Format::kUnit));
        // Rows that do not run yet share a tile with rows that do: their operands are zero.
        for (auto& operand : operands_) operand = this->take_operand(stride_);
        for (auto& middle : middles_) middle = this->take_operand(middle_stride_);
        d_h_ = buffers_.template take<Real>(problem.batch * p_);
        d_c_ = buffers_.template take<Real>(problem.batch * h_);
        products_ = buffers_.template take<Real>(threads * products_size<Format>(1));
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        next_ = std::make_unique<std::atomic<Index>[]>(static_cast<std::size_t>(kFixed + kPerSlab * slabs()));
    }

    void run(const Member& member) {
        for (Index p = next_[0]++; p < of_state_.panels(); p = next_[0]++)
            pack_rows(of_state_, p, [&](Index k) { return problem_.weight_hh + k * p_; });
        if (gradients_.x)
            for (Index p = next_[1]++; p < of_inputs_.panels(); p = next_[1]++)
                pack_rows(of_inputs_, p, [&](Index k) { return problem_.weight_ih + k * problem_.inputs; });
        if (problem_.weight_hr)
            for (Index p = next_[2]++; p < of_middle_.panels(); p = next_[2]++)
                pack_rows(of_middle_, p, [&](Index k) { return problem_.weight_hr + k * h_; });
        if (member.index == 0) begin();
        member.wait();
        this->with_cell([&]<Cell cell>() { loop<cell>(member); });
        member.wait();
        if (gradients_.x) inputs(member);
        weights(member);
        sums();
    }

    // To be called when all members have returned.
    void finish() {
        for (Index j = 0; j < problem_.batch; ++j) {
            const Index b = schedule_.sequence(j);
            if (gradients_.h_first) std::copy_n(d_h_ + j * p_, p_, gradients_.h_first + b * p_);
            if (gradients_.c_first) std::copy_n(d_c_ + j * h_, h_, gradients_.c_first + b * h_);
        }
    }

  private:
    // Counters of pieces: for the whole pass, and for each slab of rows.
    static constexpr Index kFixed = 6;
    static constexpr Index kPerSlab = 5;

    Index slabs() const { return ceil_divide(schedule_.rows(), kBlockDepth); }

    void begin() {
        const auto from = [&](const Real* gradient, Index j, Index size, Real* to) {
            if (gradient) {
                std::copy_n(gradient + schedule_.sequence(j) * size, size, to + j * size);
            } else {
                std::fill_n(to + j * size, size, Real(0));
            }
        };
        for (Index j = 0; j < problem_.batch; ++j) {
            from(gradients_.h_last, j, p_, d_h_);
            from(gradients_.c_last, j, h_, d_c_);
        }
    }

    // The row of `states` (T, B, size), or of `first` (B, size), with the state before a row of step s; null for zero.
    const Real* before(const Real* states, const Real* first, Index s, Index place, Index size) const {
        if (fresh(place)) return nullptr;
        return s ? states + schedule_.previous(place) * size : first + place % problem_.batch * size;
    }

    // -- the time loop ------------------------------------------------------------------------------------------------

    template <Cell cell>
    void loop(const Member& member) {
        constexpr bool kTwice = cell == Cell::kLstmProjected || cell == Cell::kGruBefore;
        const Split split(member, problem_.batch, of_state_.panels(),
                          of_state_.size() * static_cast<Index>(sizeof(Packed)));
        const GroupTiles tiles(problem_.batch, split);
        const Panels<Format> units{h_, 1, h_};
        const auto begin = [&](const Panels<Format>& b) {
            return std::min(b.columns, split.first_panel(b.group_panels()) * kWidth<Format>);
        };
        const auto end = [&](const Panels<Format>& b) {
            return std::min(b.columns, split.end_panel(b.group_panels()) * kWidth<Format>);
        };
        Real* scratch = products_ + member.index * products_size<Format>(1);
        for (Index s = schedule_.steps() - 1; s >= 0; --s) {
            const Index running = schedule_.running(s);
            Packed* operand = operands_[static_cast<std::size_t>(s % 2)];
            Packed* middle = middles_[static_cast<std::size_t>(s % 2)];
            if (split.takes_part) {
                // Of the units of h, which a projected LSTM has P of.
                const Panels<Format>& of_h = cell == Cell::kLstmProjected ? of_state_ : units;
                tiles.each_row(running, [&](Index j) {
                    auto row = backward_row<cell>(s, j, begin(of_h), end(of_h));
                    step_backward<cell>(row);
                    if constexpr (kTwice) {
                        constexpr Index kMiddle = cell == Cell::kGruBefore ? 2 : 4;
                        pack_row(row.products + kMiddle * h_, begin(of_h), end(of_h), middle + j * middle_stride_);
                    } else {
                        leave<cell>(s, j, row, operand);
                    }
                });
            }
            if (split.together()) member.wait();
            if constexpr (kTwice) {
                if (split.takes_part) {
                    StepProduct<Format> product{middle, middle_stride_, &of_middle_, 0, 1, 0, p_};
                    if (cell == Cell::kGruBefore) product = {middle, middle_stride_, &of_state_, 0, 1, 2 * h_, h_};
                    multiply_step(product, split, tiles, running, scratch,
                                  [&](Index j, Index first, int count, const Real* sums, Index) {
                                      auto row = backward_row<cell>(s, j, first, first + count);
                                      row.product = sums;
                                      finish_backward<cell>(row);
                                      leave<cell>(s, j, row, operand);
                                  });
                }
                if (split.together()) member.wait();
            }
            if (split.takes_part) {
                const Index depth = (cell == Cell::kGruBefore ? 2 : gates_) * h_;
                multiply_step(StepProduct<Format>{operand, stride_, &of_state_, 0, 1, 0, depth}, split, tiles, running,
                              scratch, [&](Index j, Index first, int count, const Real* sums, Index) {
                                  arrive(s, j, first, count, sums);
                              });
            }
        }
    }

    template <Cell cell>
    BackwardRow<Real> backward_row(Index s, Index j, Index first, Index end) const {
        const Index place = schedule_.place(s, j);
        BackwardRow<Real> row;
        row.units = h_;
        row.first = first;
        row.count = static_cast<int>(end - first);
        row.saved = problem_.saved + place * saved_ * h_;
        row.h_old = is_gru(cell) ? before(problem_.outputs, problem_.h_first, s, place, p_) : nullptr;
        row.c_old = is_lstm(cell) ? before(problem_.cells, problem_.c_first, s, place, h_) : nullptr;
        row.peephole = problem_.peephole;
        row.mask = mask_of(j);
        row.zoneout_h = row_of(problem_.zoneout_h, place, p_);
        row.zoneout_c = row_of(problem_.zoneout_c, place, h_);
        row.d_output = row_of(gradients_.outputs, place, p_);
        row.d_cell = row_of(gradients_.cells, place, h_);
        row.d_saved = row_of(gradients_.saved, place, saved_ * h_);
        row.product = nullptr;
        row.d_h = d_h_ + j * p_;
        row.d_c = d_c_ + j * h_;
        row.products = gradients_.products + place * saved_ * h_;
        return row;
    }

    // The row's gradients of summed inputs, for the product with W; nothing else goes beyond a sequence's beginning.
    template <Cell cell>
    void leave(Index s, Index j, const BackwardRow<Real>& row, Packed* operand) const {
        const Index end = row.first + row.count;
        for (Index gate = 0; gate < (cell == Cell::kGruBefore ? 2 : gates_); ++gate) {
            // What W h saw: the third product of a GRU has a gradient of its own.
            const Index slot = cell == Cell::kGru && gate == 2 ? 3 : gate;
            pack_row(row.products + slot * h_, row.first, end, operand + j * stride_ + gate * h_);
        }
        if (is_lstm(cell) && fresh(schedule_.place(s, j))) std::fill(row.d_c + row.first, row.d_c + end, Real(0));
    }

    // d h(t-1) += (da(t) W) ⊙ mask
    void arrive(Index s, Index j, Index first, int count, const Real* sums) const {
        Real* to = d_h_ + j * p_ + first;
        if (fresh(schedule_.place(s, j))) {
            std::fill_n(to, count, Real(0));
        } else if (const Real* mask = mask_of(j)) {
            for (int u = 0; u < count; ++u) to[u] += mask[first + u] * sums[u];
        } else {
            for (int u = 0; u < count; ++u) to[u] += sums[u];
        }
    }

    // -- after the loop -----------------------------------------------------------------------------------------------

    const Real* products_at(Index row) const { return gradients_.products + schedule_.place(row) * saved_ * h_; }

    // dx = da U
    void inputs(const Member& member) {
        const auto row = [&](Index i) { return products_at(i); };
        multiply<Format>(
            member, next_[3], schedule_.rows(), RowsOfA<Format, decltype(row)>{row}, of_inputs_,
            [&](Index i) { return gradients_.x + schedule_.place(i) * problem_.inputs; }, false, nullptr,
            scratch_ + member.index * kScratchOfA<Format>);
    }

    // One sum over all steps: rows [first, first + count) of a weight's gradient, Σ da ⊗ what the weight was applied to.
    struct WeightSum {
        Real* to;       // (count, columns)
        Index first;    // column of da
        Index count;
        int operand;    // which slab of operands: 0 of x, 1 of h(t-1), 2 of the middle of a step with two products
    };

    // dU = Σ da xᵀ, dW = Σ da h(t-1)ᵀ and their kin: the sum over all steps in slabs, which all members pack together.
    void weights(const Member& member) {
        std::array<WeightSum, 4> sums;
        std::size_t count = 0;
        std::array<bool, 3> used{};
        const auto want = [&](Real* to, Index first, Index rows, int operand) {
            if (!to) return;
            sums[count++] = {to, first, rows, operand};
            used[static_cast<std::size_t>(operand)] = true;
        };
        Real* of_hh = gradients_.weight_hh;
        want(gradients_.weight_ih, 0, gates_ * h_, 0);
        if (is_gru(problem_.cell)) {
            const bool before = problem_.cell == Cell::kGruBefore;
            want(of_hh, 0, 2 * h_, 1);
            want(of_hh ? of_hh + 2 * h_ * p_ : nullptr, (before ? 2 : 3) * h_, h_, before ? 2 : 1);
        } else {
            want(of_hh, 0, gates_ * h_, 1);
        }
        if (problem_.weight_hr) want(gradients_.weight_hr, 4 * h_, p_, 2);
        const std::array<Index, 3> columns{problem_.inputs, p_, h_};
        if (!schedule_.rows()) {
            if (member.index == 0)
                for (std::size_t i = 0; i < count; ++i)
                    std::fill_n(sums[i].to, sums[i].count * columns[static_cast<std::size_t>(sums[i].operand)], Real(0));
            return;
        }
        Packed* scratch = scratch_ + member.index * kScratchOfA<Format>;
        Index s = 0;
        for (Index slab = 0; slab < slabs(); ++slab) {
            const Index begin = slab * kBlockDepth;
            std::atomic<Index>* next = next_.get() + kFixed + kPerSlab * slab;
            while (schedule_.begin(s + 1) <= begin) ++s;
            std::array<Panels<Format>, 3> operands;
            for (std::size_t i = 0; i < 3; ++i)
                operands[i] = {std::min(kBlockDepth, schedule_.rows() - begin), 1, used[i] ? columns[i] : 0,
                               slabs_[static_cast<std::size_t>(slab % 2)] + static_cast<Index>(i) * slab_size_};
            pack_slab(operands, begin, s, next[0]);
            member.wait();
            for (std::size_t i = 0; i < count; ++i) {
                const WeightSum& sum = sums[i];
                const auto row = [&](Index k) { return products_at(begin + k) + sum.first; };
                const Panels<Format>& b = operands[static_cast<std::size_t>(sum.operand)];
                multiply<Format>(
                    member, next[1 + i], sum.count, ColumnsOfA<Format, decltype(row)>{row}, b,
                    [&](Index r) { return sum.to + r * b.columns; }, slab > 0, nullptr, scratch);
            }
        }
    }

    // The member's share of the panels of a slab that begins at row `begin`, of step s.
    void pack_slab(const std::array<Panels<Format>, 3>& operands, Index begin, Index s, std::atomic<Index>& next) const {
        const Index of_x = operands[0].panels(), of_h = operands[1].panels(), of_middle = operands[2].panels();
        for (Index p = next++; p < of_x + of_h + of_middle; p = next++) {
            if (p < of_x) {
                pack_rows(operands[0], p,
                          [&](Index k) { return problem_.x + schedule_.place(begin + k) * problem_.inputs; });
            } else if (p < of_x + of_h) {
                pack_states(operands[1], p - of_x, begin, s);
            } else {
                const Index slot = problem_.cell == Cell::kGruBefore ? 3 : 4;
                pack_rows(operands[2], p - of_x - of_h, [&](Index k) {
                    return problem_.saved + (schedule_.place(begin + k) * saved_ + slot) * h_;
                });
            }
        }
    }

    // Panel p of the states before rows [begin, begin + depth), masked as the product saw them.
    void pack_states(const Panels<Format>& b, Index p, Index begin, Index s) const {
        const Index first = b.first_column(p);
        const int columns = b.panel_columns(p);
        std::array<Real, static_cast<std::size_t>(kWidth<Format>)> masked;
        pack_rows(b, p, [&](Index k) -> const Real* {
            while (schedule_.begin(s + 1) <= begin + k) ++s;
            const Index place = schedule_.place(begin + k);
            const Real* state = before(problem_.outputs, problem_.h_first, s, place, p_);
            if (!state || !problem_.mask) return state;
            const Real* mask = problem_.mask + place % problem_.batch * p_;
            for (int j = 0; j < columns; ++j)
                masked[static_cast<std::size_t>(j)] = mask[first + j] * state[first + j];
            return masked.data() - first;
        });
    }

    // db = Σ da, and the peepholes' gradients: each column by one member, over the rows in one order.
    void sums() {
        constexpr int kChunk = 2 * kLanes<Real>;
        const Index width = std::min<Index>(saved_, 4) * h_;
        if (gradients_.bias_ih || gradients_.bias_hh) {
            for (Index first = kChunk * next_[4]++; first < width; first = kChunk * next_[4]++) {
                const int count = static_cast<int>(std::min<Index>(kChunk, width - first));
                Vector<Real> total[2] = {};
                for (Index row = 0; row < schedule_.rows(); ++row) {
                    const Real* from = products_at(row) + first;
                    total[0] += load(from, count);
                    if (count > kLanes<Real>) total[1] += load(from + kLanes<Real>, count - kLanes<Real>);
                }
                for (int i = 0; i < count; ++i) put_bias(first + i, total[i / kLanes<Real>][i % kLanes<Real>]);
            }
        }
        if (gradients_.peephole)
            for (Index u = next_[5]++; u < h_; u = next_[5]++) peephole_sums(u);
    }

    void put_bias(Index column, Real value) const {
        if (problem_.cell == Cell::kGru) {
            if (column < 3 * h_ && gradients_.bias_ih) gradients_.bias_ih[column] = value;
            if (column < 2 * h_ && gradients_.bias_hh) gradients_.bias_hh[column] = value;
            if (column >= 3 * h_ && gradients_.bias_hh) gradients_.bias_hh[column - h_] = value;
        } else if (column < gates_ * h_) {
            if (gradients_.bias_ih) gradients_.bias_ih[column] = value;
            if (gradients_.bias_hh) gradients_.bias_hh[column] = value;
        }
    }

    void peephole_sums(Index u) const {
        Real of_i = 0, of_f = 0, of_o = 0;
        Index s = 0;
        for (Index row = 0; row < schedule_.rows(); ++row) {
            while (schedule_.begin(s + 1) <= row) ++s;
            const Index place = schedule_.place(row);
            const Real* c_before = before(problem_.cells, problem_.c_first, s, place, h_);
            const Real c_old = c_before ? c_before[u] : Real(0);
            const Real* gates = problem_.saved + place * saved_ * h_;
            const Real* products = products_at(row);
            of_i += products[u] * c_old;
            of_f += products[h_ + u] * c_old;
            of_o += products[3 * h_ + u] * (gates[h_ + u] * c_old + gates[u] * gates[2 * h_ + u]);
        }
        gradients_.peephole[u] = of_i;
        gradients_.peephole[h_ + u] = of_f;
        gradients_.peephole[2 * h_ + u] = of_o;
    }

    const Gradients<Real>& gradients_;
    Index slab_size_, stride_, middle_stride_;
    Panels<Format> of_state_, of_inputs_, of_middle_;
    std::array<Packed*, 2> slabs_;     // panels of x, of h(t-1) and of a step's middle for a slab of rows, in turn
    std::array<Packed*, 2> operands_;  // (B, stride): da(t), in turn
    std::array<Packed*, 2> middles_;   // (B, middle stride): the operand of the other product, in turn
    Real* d_h_;        // (B, P), sorted
    Real* d_c_;        // (B, H), sorted
    Real* products_;   // for each thread
    Packed* scratch_;  // for each thread
    std::unique_ptr<std::atomic<Index>[]> next_;
};

template <class Format>
void run_forward(const Problem<typename Format::Real>& problem, int threads) {
    Forward<Format> forward(problem, threads);
    run_together(threads, [&](const Member& member) { forward.run(member); });
    forward.finish();
}

template <class Format>
void run_backward(const Problem<typename Format::Real>& problem, const Gradients<typename Format::Real>& gradients,
                  int threads) {
    Backward<Format> backward(problem, gradients, threads);
    run_together(threads, [&](const Member& member) { backward.run(member); });
    backward.finish();
}

}  // namespace throughtime
