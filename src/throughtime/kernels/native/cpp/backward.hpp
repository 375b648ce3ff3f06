// A cell backward through time: step by step the gates' gradients and what they send to h(t-1); then, each one product
// over some steps, the gradients of x, of the weights and of the biases (eqs. 10.22-10.28 of Goodfellow, Bengio &
// Courville 2016, for any cell).
#pragma once

#include <memory>

#include "pass.hpp"

namespace throughtime {

// About so many rows of a block of steps go into one product of the gradient of the weights, which is read and written.
inline constexpr Index kChunkRows = 256;

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
        chunk_steps_ = std::max<Index>(1, std::min(problem.steps, kChunkRows / std::max<Index>(1, problem.batch)));
        of_state_ = {gates_ * h_, 1, p_};
        of_inputs_ = {gates_ * h_, 1, problem.inputs};
        of_middle_ = {p_, 1, h_};
        // With one chunk W has done its work when U is wanted: they stand in one place, one after the other.
        one_place_ = gradients.x && chunks() <= 1;
        of_state_.data = buffers_.template take<Packed>(std::max(of_state_.size(), one_place_ ? of_inputs_.size() : 0));
        if (one_place_) of_inputs_.data = of_state_.data;
        else if (gradients.x) of_inputs_.data = buffers_.template take<Packed>(of_inputs_.size());
        if (problem.weight_hr) of_middle_.data = buffers_.template take<Packed>(of_middle_.size());
        const Index rows = chunk_steps_ * problem.batch;
        slab_size_ = Panels<Format>{rows, 1, std::max({problem.inputs, p_, h_})}.size();
        slab_ = buffers_.template take<Packed>(3 * slab_size_);
        sums_stride_ = padded_stride<Plain<Real>>(saved_ * h_);
        stride_ = Format::kRounds ? padded_stride<Format>(round_up(gates_ * h_, Format::kUnit)) : sums_stride_;
        middle_stride_ = padded_stride<Format>(round_up(std::max(h_, p_), Format::kUnit));
        // Rows that do not run yet share a tile with rows that do: what stands there is multiplied too, and not used.
        if (Format::kRounds)
            for (auto& operand : operands_) operand = this->take_operand(stride_);
        for (auto& middle : middles_) middle = this->take_operand(middle_stride_);
        d_h_ = buffers_.template take<Real>(problem.batch * p_);
        d_c_ = buffers_.template take<Real>(problem.batch * h_);
        d_sums_ = buffers_.template take<Real>((rows + kTileRows) * sums_stride_);
        products_ = buffers_.template take<Real>(threads * products_size<Format>(1));
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        next_ = std::make_unique<std::atomic<Index>[]>(static_cast<std::size_t>(kFixed + kPerChunk * chunks()));
    }

    void run(const Member& member) {
        for (Index p = next_[0]++; p < of_state_.panels(); p = next_[0]++)
            pack_matrix(of_state_, p, problem_.weight_hh);
        if (gradients_.x && !one_place_) pack_inputs_weight();
        if (problem_.weight_hr)
            for (Index p = next_[2]++; p < of_middle_.panels(); p = next_[2]++)
                pack_matrix(of_middle_, p, problem_.weight_hr);
        if (member.index == 0) begin();
        member.wait();
        this->with_cell([&]<Cell cell>() { chunks_of<cell>(member); });
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
    // Counters of pieces: for the whole pass, and for each chunk of steps.
    static constexpr Index kFixed = 3;
    static constexpr Index kPerChunk = 9;

    Index chunks() const { return ceil_divide(schedule_.steps(), chunk_steps_); }

    void pack_inputs_weight() {
        for (Index p = next_[1]++; p < of_inputs_.panels(); p = next_[1]++)
            pack_matrix(of_inputs_, p, problem_.weight_ih);
    }

    void begin() {
        const auto zero = [](Real* to, Index count) {
            if (to) std::fill_n(to, count, Real(0));
        };
        // The other sums are written by the first chunk; these are added to.
        zero(gradients_.bias_ih, gates_ * h_);
        zero(gradients_.bias_hh, gates_ * h_);
        zero(gradients_.peephole, 3 * h_);
        if (!schedule_.rows()) {
            zero(gradients_.weight_ih, gates_ * h_ * problem_.inputs);
            zero(gradients_.weight_hh, gates_ * h_ * p_);
            zero(gradients_.weight_hr, p_ * h_);
        }
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

    // Some steps at a time, from the last to the first; what the sums over steps want of them while it is in the cache.
    template <Cell cell>
    void chunks_of(const Member& member) {
        const Split split(member, problem_.batch, of_state_.panels(),
                          of_state_.size() * static_cast<Index>(sizeof(Packed)));
        for (Index chunk = chunks() - 1; chunk >= 0; --chunk) {
            const Index first = chunk * chunk_steps_;
            const Index end = std::min(schedule_.steps(), first + chunk_steps_);
            loop<cell>(member, split, first, end);
            std::atomic<Index>* next = next_.get() + kFixed + kPerChunk * chunk;
            const Chunk rows{first, schedule_.begin(first), schedule_.begin(end), next, chunk == chunks() - 1};
            if (one_place_) {
                member.wait();
                pack_inputs_weight();
            }
            pack_slab(rows);
            member.wait();
            if (gradients_.x) inputs(member, rows);
            weights(member, rows);
            sums(rows);
            if (gradients_.table) table(rows);
            if (gradients_.sums) hand_out(rows);
            member.wait();
        }
    }

    // Rows [begin, end), which are those of some steps.
    struct Chunk {
        Index step;  // of the first row
        Index begin;
        Index end;
        std::atomic<Index>* next;  // kPerChunk counters of pieces
        bool first;                // nothing has been summed yet
    };

    template <Cell cell>
    void loop(const Member& member, const Split& split, Index first_step, Index end_step) {
        constexpr bool kTwice = has_two_products(cell);
        const GroupTiles tiles(problem_.batch, split);
        const Index chunk_begin = schedule_.begin(first_step);
        const Panels<Format> units{h_, 1, h_};
        const auto begin = [&](const Panels<Format>& b) {
            return std::min(b.columns, split.first_panel(b.group_panels()) * kWidth<Format>);
        };
        const auto end = [&](const Panels<Format>& b) {
            return std::min(b.columns, split.end_panel(b.group_panels()) * kWidth<Format>);
        };
        Real* scratch = products_ + member.index * products_size<Format>(1);
        for (Index s = end_step - 1; s >= first_step; --s) {
            const Index running = schedule_.running(s);
            const bool back = s % 2;
            Packed* middle = middles_[static_cast<std::size_t>(s % 2)];
            if (split.takes_part) {
                // Of the units of h, which a projected LSTM has P of.
                const Panels<Format>& of_h = cell == Cell::kLstmProjected ? of_state_ : units;
                tiles.each_row(running, [&](Index j) {
                    auto row = backward_row<cell>(s, j, begin(of_h), end(of_h), chunk_begin);
                    step_backward<cell>(row);
                    if constexpr (kTwice) {
                        constexpr Index kMiddle = cell == Cell::kGruBefore ? 2 : 4;
                        pack_row(row.products + kMiddle * h_, begin(of_h), end(of_h), middle + j * middle_stride_);
                    } else {
                        leave<cell>(s, j, row);
                    }
                });
            }
            if (split.together()) member.wait();
            if constexpr (kTwice) {
                if (split.takes_part) {
                    StepProduct<Format> product{middle, middle_stride_, &of_middle_, 0, 1, 0, p_};
                    if (cell == Cell::kGruBefore) product = {middle, middle_stride_, &of_state_, 0, 1, 2 * h_, h_};
                    multiply_step(product, split, tiles, running, back, scratch,
                                  [&](Index j, Index first, int count, const Real* sums, Index) {
                                      auto row = backward_row<cell>(s, j, first, first + count, chunk_begin);
                                      row.product = sums;
                                      finish_backward<cell>(row);
                                      leave<cell>(s, j, row);
                                  });
                }
                if (split.together()) member.wait();
            }
            if (split.takes_part) {
                const Index depth = (cell == Cell::kGruBefore ? 2 : gates_) * h_;
                const Packed* sums = operand(s, schedule_.begin(s) - chunk_begin);
                multiply_step(StepProduct<Format>{sums, stride_, &of_state_, 0, 1, 0, depth}, split, tiles, running, back,
                              scratch, [&](Index j, Index first, int count, const Real* products, Index) {
                                  arrive(s, j, first, count, products);
                              });
            }
        }
    }

    template <Cell cell>
    BackwardRow<Real> backward_row(Index s, Index j, Index first, Index end, Index chunk_begin) const {
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
        row.products = d_sums_ + (schedule_.begin(s) + j - chunk_begin) * sums_stride_;
        row.d_state = gradients_.states ? gradients_.states + place * p_ : nullptr;
        row.d_memory = gradients_.cells_of_steps ? gradients_.cells_of_steps + place * h_ : nullptr;
        return row;
    }

    // The gradients of a step's summed inputs as the product with W takes them: rounded, or where they stand.
    const Packed* operand(Index s, Index first_row) const {
        if constexpr (Format::kRounds) return operands_[static_cast<std::size_t>(s % 2)];
        else return d_sums_at(first_row);
    }

    // The row's gradients of summed inputs, for the product with W; nothing else goes beyond a sequence's beginning.
    template <Cell cell>
    void leave(Index s, Index j, const BackwardRow<Real>& row) const {
        const Index end = row.first + row.count;
        if constexpr (Format::kRounds) {
            Packed* to = operands_[static_cast<std::size_t>(s % 2)] + j * stride_;
            for (Index gate = 0; gate < (cell == Cell::kGruBefore ? 2 : gates_); ++gate)
                pack_row(row.products + gate * h_, row.first, end, to + gate * h_);
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

    // -- the sums over steps -----------------------------------------------------------------------------------------------

    // da of a chunk's k-th row, in the order of BackwardRow's `products`.
    const Real* d_sums_at(Index k) const { return d_sums_ + k * sums_stride_; }

    // The slot with a gate's gradient as x saw it.
    Index slot_of(Index gate) const { return problem_.cell == Cell::kGru && gate == 2 ? 3 : gate; }

    // da itself, to who asks for it: as x saw it, and the rest.
    void hand_out(const Chunk& rows) const {
        for (Index k = rows.next[7]++; k < rows.end - rows.begin; k = rows.next[7]++) {
            const Real* from = d_sums_at(k);
            Real* to = gradients_.sums + schedule_.place(rows.begin + k) * saved_ * h_;
            for (Index gate = 0; gate < gates_; ++gate) std::copy_n(from + slot_of(gate) * h_, h_, to + gate * h_);
            if (problem_.cell == Cell::kGru) std::copy_n(from + 2 * h_, h_, to + 3 * h_);
            // Of a projected LSTM's last slot only P values mean something.
            if (problem_.cell == Cell::kLstmProjected) std::copy_n(from + 4 * h_, p_, to + 4 * h_);
        }
    }

    // Rows of da as x saw it, for a product with U.
    struct RowsOfSums {
        static constexpr Layout kLayout = Layout::kRowMajor;
        const Backward& all;

        void pack(Index begin, Index end, Index k0, Index k1, Packed* to) const {
            // As in U, but that a GRU's last gate has another before it.
            const bool is_gru = all.problem_.cell == Cell::kGru;
            const Index middle = is_gru ? std::clamp(2 * all.h_, k0, k1) : k1;
            const Index stride = padded_stride<Format>(k1 - k0);
            const Index filled = round_up(k1 - k0, Format::kUnit);
            for (Index i = begin; i < end; ++i, to += stride) {
                const Real* from = all.d_sums_at(i);
                if (i + 1 < end) prefetch(all.d_sums_at(i + 1) + k0, k1 - k0);
                Base::pack_row(from, k0, middle, to - k0);
                Base::pack_row(from + all.h_, middle, k1, to - k0);
                for (Index k = k1 - k0; k < filled; ++k) to[k] = Format::pack(0);
            }
        }
    };

    // dx = da U
    void inputs(const Member& member, const Chunk& rows) {
        multiply<Format>(
            member, rows.next[0], rows.end - rows.begin, RowsOfSums{*this}, of_inputs_,
            [&](Index k) { return gradients_.x + schedule_.place(rows.begin + k) * problem_.inputs; }, false, nullptr,
            scratch_ + member.index * kScratchOfA<Format>);
    }

    // The gradient of a table is what its rows' uses add up to: each column by one member, over the rows in one order.
    void table(const Chunk& rows) const {
        constexpr Index kColumns = 128;
        const Index pieces = ceil_divide(h_, kColumns);
        std::atomic<Index>& next = rows.next[8];
        for (Index piece = next++; piece < gates_ * pieces; piece = next++) {
            const Index gate = piece / pieces, first = piece % pieces * kColumns;
            const Index count = std::min(kColumns, h_ - first);
            for (Index k = 0; k < rows.end - rows.begin; ++k) {
                const Real* from = d_sums_at(k) + slot_of(gate) * h_ + first;
                const Index token = problem_.tokens[schedule_.place(rows.begin + k)];
                Real* to = gradients_.table + (token * gates_ + gate) * h_ + first;
                for (Index i = 0; i < count; ++i) to[i] += from[i];
            }
        }
    }

    // What da is multiplied with: x, h(t-1), or the middle of a step with two products.
    enum Operand { kOfInputs, kOfState, kOfMiddle };

    Panels<Format> slab_of(const Chunk& rows, Operand operand) const {
        const std::array<Index, 3> columns{problem_.inputs, p_, h_};
        return {rows.end - rows.begin, 1, columns[operand], slab_ + operand * slab_size_};
    }

    // dU = Σ da xᵀ, dW = Σ da h(t-1)ᵀ and their kin.
    void weights(const Member& member, const Chunk& rows) {
        int counter = 1;
        // Rows of a weight's gradient: from column `first` of da on.
        const auto add = [&](Real* to, Index first, Index count, Operand operand) {
            std::atomic<Index>& next = rows.next[counter++];
            if (!to) return;
            const Panels<Format> b = slab_of(rows, operand);
            const auto row = [&](Index k) { return d_sums_at(k) + first; };
            multiply<Format>(
                member, next, count, ColumnsOfA<Format, decltype(row)>{row}, b,
                [&](Index r) { return to + r * b.columns; }, !rows.first, nullptr,
                scratch_ + member.index * kScratchOfA<Format>);
        };
        Real* of_inputs = gradients_.weight_ih;
        Real* of_state = gradients_.weight_hh;
        switch (problem_.cell) {
            case Cell::kGru:
                add(of_inputs, 0, 2 * h_, kOfInputs);
                add(of_inputs ? of_inputs + 2 * h_ * problem_.inputs : nullptr, 3 * h_, h_, kOfInputs);
                add(of_state, 0, 3 * h_, kOfState);
                break;
            case Cell::kGruBefore:
                add(of_inputs, 0, 3 * h_, kOfInputs);
                add(of_state, 0, 2 * h_, kOfState);
                add(of_state ? of_state + 2 * h_ * p_ : nullptr, 2 * h_, h_, kOfMiddle);
                break;
            default:
                add(of_inputs, 0, gates_ * h_, kOfInputs);
                add(of_state, 0, gates_ * h_, kOfState);
                if (problem_.weight_hr) add(gradients_.weight_hr, 4 * h_, p_, kOfMiddle);
        }
    }

    // The member's share of the panels that the chunk's weight gradients are made with.
    void pack_slab(const Chunk& rows) const {
        const bool middle = has_two_products(problem_.cell);
        const std::array<Panels<Format>, 3> slabs{slab_of(rows, kOfInputs), slab_of(rows, kOfState),
                                                  slab_of(rows, kOfMiddle)};
        const Index of_inputs = gradients_.weight_ih ? slabs[0].panels() : 0;
        const Index of_state = gradients_.weight_hh ? slabs[1].panels() : 0;
        const Index of_middle = middle ? slabs[2].panels() : 0;
        std::atomic<Index>& next = rows.next[4];
        for (Index p = next++; p < of_inputs + of_state + of_middle; p = next++) {
            if (p < of_inputs) {
                pack_rows(slabs[0], p,
                          [&](Index k) { return problem_.x + schedule_.place(rows.begin + k) * problem_.inputs; });
            } else if (p < of_inputs + of_state) {
                pack_states(slabs[1], p - of_inputs, rows);
            } else {
                const Index slot = problem_.cell == Cell::kGruBefore ? 3 : 4;
                pack_rows(slabs[2], p - of_inputs - of_state, [&](Index k) {
                    return problem_.saved + (schedule_.place(rows.begin + k) * saved_ + slot) * h_;
                });
            }
        }
    }

    // Panel p of the states before a chunk's rows, masked as the product saw them.
    void pack_states(const Panels<Format>& b, Index p, const Chunk& rows) const {
        const Index first = b.first_column(p);
        const int columns = b.panel_columns(p);
        std::array<Real, static_cast<std::size_t>(kWidth<Format> * Format::kUnit)> masked;
        Index s = rows.step;
        pack_rows(b, p, [&](Index k) -> const Real* {
            while (schedule_.begin(s + 1) <= rows.begin + k) ++s;
            const Index place = schedule_.place(rows.begin + k);
            const Real* state = before(problem_.outputs, problem_.h_first, s, place, p_);
            if (!state || !problem_.mask) return state;
            const Real* mask = problem_.mask + place % problem_.batch * p_;
            Real* own = masked.data() + k % Format::kUnit * kWidth<Format>;
            for (int j = 0; j < columns; ++j) own[j] = mask[first + j] * state[first + j];
            return own - first;
        });
    }

    // db = Σ da, and the peepholes' gradients: each column by one member, over the rows in one order.
    void sums(const Chunk& rows) const {
        constexpr int kColumns = 2 * kLanes<Real>;
        const Index width = std::min<Index>(saved_, 4) * h_;
        if (gradients_.bias_ih || gradients_.bias_hh) {
            for (Index first = kColumns * rows.next[5]++; first < width; first = kColumns * rows.next[5]++) {
                const int count = static_cast<int>(std::min<Index>(kColumns, width - first));
                Vector<Real> total[2] = {};
                for (Index k = 0; k < rows.end - rows.begin; ++k) {
                    const Real* from = d_sums_at(k) + first;
                    total[0] += load(from, count);
                    if (count > kLanes<Real>) total[1] += load(from + kLanes<Real>, count - kLanes<Real>);
                }
                for (int i = 0; i < count; ++i) add_bias(first + i, total[i / kLanes<Real>][i % kLanes<Real>]);
            }
        }
        if (gradients_.peephole)
            for (Index u = rows.next[6]++; u < h_; u = rows.next[6]++) peephole_sums(rows, u);
    }

    void add_bias(Index column, Real value) const {
        const auto add = [&](Real* to, Index at) {
            if (to) to[at] += value;
        };
        if (problem_.cell != Cell::kGru) {
            if (column >= gates_ * h_) return;
            add(gradients_.bias_ih, column);
            add(gradients_.bias_hh, column);
        } else {
            if (column < 2 * h_) add(gradients_.bias_ih, column);
            if (column >= 3 * h_) add(gradients_.bias_ih, column - h_);
            if (column < 3 * h_) add(gradients_.bias_hh, column);
        }
    }

    void peephole_sums(const Chunk& rows, Index u) const {
        Real of_i = 0, of_f = 0, of_o = 0;
        Index s = rows.step;
        for (Index row = rows.begin; row < rows.end; ++row) {
            while (schedule_.begin(s + 1) <= row) ++s;
            const Index place = schedule_.place(row);
            const Real* c_before = before(problem_.cells, problem_.c_first, s, place, h_);
            const Real c_old = c_before ? c_before[u] : Real(0);
            const Real* gates = problem_.saved + place * saved_ * h_;
            const Real* d_sums = d_sums_at(row - rows.begin);
            of_i += d_sums[u] * c_old;
            of_f += d_sums[h_ + u] * c_old;
            of_o += d_sums[3 * h_ + u] * (gates[h_ + u] * c_old + gates[u] * gates[2 * h_ + u]);
        }
        gradients_.peephole[u] += of_i;
        gradients_.peephole[h_ + u] += of_f;
        gradients_.peephole[2 * h_ + u] += of_o;
    }

    const Gradients<Real>& gradients_;
    Index chunk_steps_, slab_size_, stride_, middle_stride_, sums_stride_;
    bool one_place_;
    Panels<Format> of_state_, of_inputs_, of_middle_;
    Packed* slab_;                     // panels of x, of h(t-1) and of a step's middle for the rows of a chunk
    std::array<Packed*, 2> operands_;  // (B, stride): da(t), in turn, where it is rounded
    std::array<Packed*, 2> middles_;   // (B, middle stride): the operand of the other product, in turn
    Real* d_h_;        // (B, P), sorted
    Real* d_c_;        // (B, H), sorted
    Real* d_sums_;     // (row of a chunk, sums stride): da, the gradients of the summed inputs
    Real* products_;   // for each thread
    Packed* scratch_;  // for each thread
    std::unique_ptr<std::atomic<Index>[]> next_;
};

}  // namespace throughtime
