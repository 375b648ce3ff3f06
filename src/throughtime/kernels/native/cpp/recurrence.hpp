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

// Rows of one pass of the time loop, so that its scratch stays in the second cache.
inline constexpr Index kPassTiles = 8;

template <class Format>
class Forward {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    Forward(const Problem<Real>& problem, int threads)
        : problem_(problem), schedule_(problem), gates_(gates_of(problem.cell)), saved_(saved_of(problem.cell)) {
        const Index h = problem.units;
        of_inputs_ = {problem.inputs, gates_, h};
        of_state_ = {h, gates_, h};
        of_inputs_.data = buffers_.template take<Packed>(of_inputs_.size());
        of_state_.data = buffers_.template take<Packed>(of_state_.size());
        stride_ = padded_stride<Format>(round_up(h, Format::kUnit));
        for (auto& state : packed_state_) state = buffers_.template take<Packed>(problem.batch * stride_);
        h_ = buffers_.template take<Real>(problem.batch * h);
        c_ = buffers_.template take<Real>(problem.batch * h);
        bias_ = buffers_.template take<Real>(gates_ * h);
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        products_size_ = gates_ * kPassTiles * kTileRows * kGroupUnits;
        products_ = buffers_.template take<Real>(threads * products_size_);
    }

    void run(const Member& member) {
        const Index h = problem_.units;
        for (Index p = next_[0]++; p < of_inputs_.panels(); p = next_[0]++)
            pack_weight_rows(of_inputs_, p, problem_.weight_ih);
        for (Index p = next_[1]++; p < of_state_.panels(); p = next_[1]++)
            pack_weight_rows(of_state_, p, problem_.weight_hh);
        if (member.index == 0) begin();
        member.wait();
        const auto input = [&](Index i) { return problem_.x + schedule_.place(i) * problem_.inputs; };
        multiply<Format>(
            member, next_[2], schedule_.rows(), RowsOfA<Format, decltype(input)>{input}, of_inputs_,
            [&](Index i) { return problem_.saved + schedule_.place(i) * saved_ * h; }, false, bias_,
            scratch_ + member.index * kScratchOfA<Format>);
        member.wait();
        switch (problem_.cell) {
            case Cell::kRnnTanh: return loop<Cell::kRnnTanh>(member);
            case Cell::kRnnRelu: return loop<Cell::kRnnRelu>(member);
            case Cell::kLstm: return loop<Cell::kLstm>(member);
            case Cell::kGru: return loop<Cell::kGru>(member);
        }
    }

    // To be called when all members have returned.
    void finish() {
        const Index h = problem_.units;
        for (Index j = 0; j < problem_.batch; ++j) {
            const Index b = schedule_.sequence(j);
            std::copy_n(h_ + j * h, h, problem_.h_last + b * h);
            if (problem_.c_last) std::copy_n(c_ + j * h, h, problem_.c_last + b * h);
        }
    }

  private:
    // Several panels at once where there are few rows (see panels_at_once).
    static constexpr Index kGroupUnits = 4 * kWidth<Format>;

    void begin() {
        const Index h = problem_.units;
        for (Index i = 0; i < gates_ * h; ++i) {
            bias_[i] = problem_.bias_ih ? problem_.bias_ih[i] : Real(0);
            if (problem_.bias_hh && problem_.cell != Cell::kGru) bias_[i] += problem_.bias_hh[i];
        }
        for (Index j = 0; j < problem_.batch; ++j) {
            const Index b = schedule_.sequence(j);
            std::copy_n(problem_.h_first + b * h, h, h_ + j * h);
            if (problem_.c_first) std::copy_n(problem_.c_first + b * h, h, c_ + j * h);
            for (auto* state : packed_state_) std::fill_n(state + j * stride_, stride_, Format::pack(0));
            if (schedule_.steps()) pack_state(0, j, 0, h);
        }
    }

    bool fresh(Index s, Index j) const { return problem_.resets && problem_.resets[schedule_.place(s, j)]; }

    // h of the j-th sequence as the product of step s takes it.
    void pack_state(Index s, Index j, Index begin, Index end) {
        if (s >= schedule_.steps() || j >= schedule_.running(s)) return;
        const Index h = problem_.units;
        Packed* to = packed_state_[static_cast<std::size_t>(s % 2)] + j * stride_;
        const Real* from = h_ + j * h;
        if (fresh(s, j)) {
            for (Index u = begin; u < end; ++u) to[u] = Format::pack(0);
        } else if (problem_.mask) {
            const Real* mask = problem_.mask + schedule_.sequence(j) * h;
            for (Index u = begin; u < end; ++u) to[u] = Format::pack(mask[u] * from[u]);
        } else {
            for (Index u = begin; u < end; ++u) to[u] = Format::pack(from[u]);
        }
    }

    template <Cell cell>
    void loop(const Member& member) {
        const Split split(member, problem_.batch, of_state_.group_panels(),
                          of_state_.size() * static_cast<Index>(sizeof(Packed)));
        const GroupTiles tiles(problem_.batch, split);
        Real* products = products_ + member.index * products_size_;
        for (Index s = 0; s < schedule_.steps(); ++s) {
            if (split.takes_part) step<cell>(s, split, tiles, products);
            if (split.together()) member.wait();
        }
    }

    template <Cell cell>
    void step(Index s, const Split& split, const GroupTiles& tiles, Real* products) {
        std::array<Index, kPassTiles> pass;
        Index taken = 0;
        tiles.each(schedule_.running(s), [&](Index tile) {
            pass[static_cast<std::size_t>(taken++)] = tile;
            if (taken == kPassTiles) {
                pass_of_step<cell>(s, split, tiles.all, pass.data(), taken, products);
                taken = 0;
            }
        });
        if (taken) pass_of_step<cell>(s, split, tiles.all, pass.data(), taken, products);
    }

    template <Cell cell>
    void pass_of_step(Index s, const Split& split, const Tiles& tiles, const Index* pass, Index count, Real* products) {
        const Index h = problem_.units;
        const Index at_once = panels_at_once(tiles.height(pass[0]));
        const Packed* state = packed_state_[static_cast<std::size_t>(s % 2)];
        std::array<Real*, kPassTiles * kTileRows> rows;
        for (Index p = split.first_panel; p < split.end_panel; p += at_once) {
            const Index panels = std::min(at_once, split.end_panel - p);
            const Index first = of_state_.first_column(p);
            const Index width = panels * kWidth<Format>;
            for (Index k0 = 0; k0 < h; k0 += kBlockDepth) {
                TileCall<Format> call{};
                call.units = ceil_divide(std::min(h - k0, kBlockDepth), Format::kUnit);
                call.stride = stride_;
                call.panel_stride = of_state_.panel_size();
                call.add = k0 > 0;
                for (Index gate = 0; gate < gates_; ++gate) {
                    call.b = of_state_.panel(gate * of_state_.group_panels() + p) + k0 * kWidth<Format>;
                    Index row = 0;
                    for (Index i = 0; i < count; ++i) {
                        const int height = tiles.height(pass[i]);
                        for (int r = 0; r < height; ++r)
                            rows[static_cast<std::size_t>(r)] = products + ((row + r) * gates_ + gate) * width;
                        call.a = state + tiles.begin(pass[i]) * stride_ + k0;
                        call.c = rows.data();
                        multiply_tile<Format, Layout::kRowMajor>(height, call, panels, kWidth<Format>);
                        row += height;
                    }
                }
            }
            const int units = static_cast<int>(std::min(width, h - first));
            Index row = 0;
            for (Index i = 0; i < count; ++i) {
                const int height = tiles.height(pass[i]);
                for (int r = 0; r < height; ++r, ++row) {
                    const Index j = tiles.begin(pass[i]) + r;
                    if (j < schedule_.running(s))
                        advance<cell>(s, j, first, units, products + row * gates_ * width, width);
                }
            }
        }
    }

    template <Cell cell>
    void advance(Index s, Index j, Index first, int count, const Real* product, Index product_stride) {
        const Index h = problem_.units;
        const Index place = schedule_.place(s, j);
        ForwardRow<Real> row{};
        row.units = h;
        row.first = first;
        row.count = count;
        row.product = product;
        row.product_stride = product_stride;
        row.gates = problem_.saved + place * saved_ * h;
        row.bias_hh = problem_.bias_hh;
        row.peephole = problem_.peephole;
        row.zoneout_h = problem_.zoneout_h ? problem_.zoneout_h + place * h : nullptr;
        row.zoneout_c = problem_.zoneout_c ? problem_.zoneout_c + place * h : nullptr;
        row.fresh = fresh(s, j);
        row.h = h_ + j * h;
        row.c = c_ + j * h;
        row.h_out = problem_.outputs + place * h;
        row.c_out = problem_.cells ? problem_.cells + place * h : nullptr;
        step_forward<cell>(row);
        pack_state(s + 1, j, first, first + count);
    }

    const Problem<Real>& problem_;
    Schedule schedule_;
    Index gates_, saved_, stride_, products_size_;
    Buffers buffers_;
    Panels<Format> of_inputs_, of_state_;
    std::array<Packed*, 2> packed_state_;  // (B, stride): h(t-1) and h(t), in turn
    Real* h_;         // (B, H), sorted
    Real* c_;         // (B, H), sorted
    Real* bias_;      // (G H)
    Packed* scratch_;  // for each thread
    Real* products_;   // for each thread (row, gate, units)
    std::array<std::atomic<Index>, 3> next_{};
};

template <class Format>
class Backward {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    Backward(const Problem<Real>& problem, const Gradients<Real>& gradients, int threads)
        : problem_(problem),
          gradients_(gradients),
          schedule_(problem),
          gates_(gates_of(problem.cell)),
          saved_(saved_of(problem.cell)) {
        const Index h = problem.units;
        of_state_ = {gates_ * h, 1, h};
        of_inputs_ = {gates_ * h, 1, problem.inputs};
        slab_of_inputs_ = {kBlockDepth, 1, problem.inputs};
        slab_of_state_ = {kBlockDepth, 1, h};
        of_state_.data = buffers_.template take<Packed>(of_state_.size());
        if (gradients.x) of_inputs_.data = buffers_.template take<Packed>(of_inputs_.size());
        for (auto& slab : slabs_)
            slab = buffers_.template take<Packed>(slab_of_inputs_.size() + slab_of_state_.size());
        stride_ = padded_stride<Format>(round_up(gates_ * h, Format::kUnit));
        for (auto& products : packed_products_) {
            products = buffers_.template take<Packed>(problem.batch * stride_);
            // Rows that do not run yet share a tile with rows that do: their products must be nothing.
            std::fill_n(products, problem.batch * stride_, Format::pack(0));
        }
        d_h_ = buffers_.template take<Real>(problem.batch * h);
        d_c_ = buffers_.template take<Real>(problem.batch * h);
        sent_size_ = kPassTiles * kTileRows * 4 * kWidth<Format>;
        sent_ = buffers_.template take<Real>(threads * sent_size_);
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        next_ = std::make_unique<std::atomic<Index>[]>(static_cast<std::size_t>(8 + 4 * slabs()));
    }

    void run(const Member& member) {
        const Index h = problem_.units;
        for (Index p = next_[0]++; p < of_state_.panels(); p = next_[0]++)
            pack_rows(of_state_, p, [&](Index k) { return problem_.weight_hh + k * h; });
        if (gradients_.x) {
            for (Index p = next_[1]++; p < of_inputs_.panels(); p = next_[1]++)
                pack_rows(of_inputs_, p, [&](Index k) { return problem_.weight_ih + k * problem_.inputs; });
        }
        if (member.index == 0) begin();
        member.wait();
        switch (problem_.cell) {
            case Cell::kRnnTanh: loop<Cell::kRnnTanh>(member); break;
            case Cell::kRnnRelu: loop<Cell::kRnnRelu>(member); break;
            case Cell::kLstm: loop<Cell::kLstm>(member); break;
            case Cell::kGru: loop<Cell::kGru>(member); break;
        }
        member.wait();
        if (gradients_.x) inputs(member);
        weights(member);
        sums();
    }

    // To be called when all members have returned.
    void finish() {
        const Index h = problem_.units;
        for (Index j = 0; j < problem_.batch; ++j) {
            const Index b = schedule_.sequence(j);
            if (gradients_.h_first) std::copy_n(d_h_ + j * h, h, gradients_.h_first + b * h);
            if (gradients_.c_first) std::copy_n(d_c_ + j * h, h, gradients_.c_first + b * h);
        }
    }

  private:
    Index slabs() const { return ceil_divide(schedule_.rows(), kBlockDepth); }

    void begin() {
        const Index h = problem_.units;
        const auto from = [&](const Real* gradient, Index j, Real* to) {
            if (gradient) {
                std::copy_n(gradient + schedule_.sequence(j) * h, h, to + j * h);
            } else {
                std::fill_n(to + j * h, h, Real(0));
            }
        };
        for (Index j = 0; j < problem_.batch; ++j) {
            from(gradients_.h_last, j, d_h_);
            from(gradients_.c_last, j, d_c_);
        }
    }

    bool fresh(Index place) const { return problem_.resets && problem_.resets[place]; }

    // The row of `states` (T, B, H), or of `first` (B, H), that holds the state before row (s, j); null where it is zero.
    const Real* before(const Real* states, const Real* first, Index s, Index place) const {
        if (fresh(place)) return nullptr;
        const Index h = problem_.units;
        return s ? states + schedule_.previous(place) * h : first + place % problem_.batch * h;
    }

    // -- the time loop ------------------------------------------------------------------------------------------------

    template <Cell cell>
    void loop(const Member& member) {
        const Split split(member, problem_.batch, of_state_.panels(),
                          of_state_.size() * static_cast<Index>(sizeof(Packed)));
        const GroupTiles tiles(problem_.batch, split);
        const Index first = std::min(problem_.units, split.first_panel * kWidth<Format>);
        const Index end = std::min(problem_.units, split.end_panel * kWidth<Format>);
        for (Index s = schedule_.steps() - 1; s >= 0; --s) {
            if (split.takes_part) {
                tiles.each(schedule_.running(s), [&](Index tile) {
                    const Index stop = std::min(tiles.all.begin(tile + 1), schedule_.running(s));
                    for (Index j = tiles.all.begin(tile); j < stop; ++j) retreat<cell>(s, j, first, end);
                });
            }
            if (split.together()) member.wait();
            if (split.takes_part) send_back(s, split, tiles, sent_ + member.index * sent_size_);
        }
    }

    // The gradients of the summed inputs of row (s, j), units [first, end).
    template <Cell cell>
    void retreat(Index s, Index j, Index first, Index end) {
        const Index h = problem_.units;
        const Index place = schedule_.place(s, j);
        const auto at = [&](const Real* rows, Index width) { return rows ? rows + place * width : nullptr; };
        BackwardRow<Real> row{};
        row.units = h;
        row.first = first;
        row.count = static_cast<int>(end - first);
        row.gates = problem_.saved + place * saved_ * h;
        row.h_old = before(problem_.outputs, problem_.h_first, s, place);
        if (cell == Cell::kLstm) row.c_old = before(problem_.cells, problem_.c_first, s, place);
        row.peephole = problem_.peephole;
        row.zoneout_h = at(problem_.zoneout_h, h);
        row.zoneout_c = at(problem_.zoneout_c, h);
        row.d_output = at(gradients_.outputs, h);
        row.d_cell = at(gradients_.cells, h);
        row.d_gates = at(gradients_.gates, saved_ * h);
        row.d_h = d_h_ + j * h;
        row.d_c = d_c_ + j * h;
        row.products = gradients_.products + place * saved_ * h;
        step_backward<cell>(row);
        Packed* packed = packed_products_[static_cast<std::size_t>(s % 2)] + j * stride_;
        for (Index gate = 0; gate < gates_; ++gate) {
            // What W h saw: the GRU's third product is saved as the fourth value.
            const Real* from = row.products + (cell == Cell::kGru && gate == 2 ? 3 : gate) * h;
            for (Index u = first; u < end; ++u) packed[gate * h + u] = Format::pack(from[u]);
        }
        if (fresh(place)) {
            std::fill(row.d_h + first, row.d_h + end, Real(0));
            if (cell == Cell::kLstm) std::fill(row.d_c + first, row.d_c + end, Real(0));
        }
    }

    // d h(t-1) += (d a(t) W) ⊙ mask, for the member's rows and units.
    void send_back(Index s, const Split& split, const GroupTiles& tiles, Real* sent) {
        const Index h = problem_.units;
        const Index depth = gates_ * h;
        const Packed* products = packed_products_[static_cast<std::size_t>(s % 2)];
        std::array<Index, kPassTiles> pass;
        Index taken = 0;
        const auto go = [&] {
            const Index at_once = panels_at_once(tiles.all.height(pass[0]));
            for (Index p = split.first_panel; p < split.end_panel; p += at_once) {
                const Index panels = std::min(at_once, split.end_panel - p);
                const Index first = p * kWidth<Format>;
                const Index width = panels * kWidth<Format>;
                std::array<Real*, kTileRows> rows;
                for (Index k0 = 0; k0 < depth; k0 += kBlockDepth) {
                    TileCall<Format> call{};
                    call.units = ceil_divide(std::min(depth - k0, kBlockDepth), Format::kUnit);
                    call.stride = stride_;
                    call.b = of_state_.panel(p) + k0 * kWidth<Format>;
                    call.panel_stride = of_state_.panel_size();
                    call.add = k0 > 0;
                    Index row = 0;
                    for (Index i = 0; i < taken; ++i) {
                        const Index tile = pass[static_cast<std::size_t>(i)];
                        const int height = tiles.all.height(tile);
                        for (int r = 0; r < height; ++r) rows[static_cast<std::size_t>(r)] = sent + (row + r) * width;
                        call.a = products + tiles.all.begin(tile) * stride_ + k0;
                        call.c = rows.data();
                        multiply_tile<Format, Layout::kRowMajor>(height, call, panels, kWidth<Format>);
                        row += height;
                    }
                }
                const Index units = std::min(width, h - first);
                Index row = 0;
                for (Index i = 0; i < taken; ++i) {
                    const Index tile = pass[static_cast<std::size_t>(i)];
                    for (int r = 0; r < tiles.all.height(tile); ++r, ++row) {
                        const Index j = tiles.all.begin(tile) + r;
                        if (j >= schedule_.running(s) || fresh(schedule_.place(s, j))) continue;
                        Real* to = d_h_ + j * h + first;
                        const Real* from = sent + row * width;
                        if (problem_.mask) {
                            const Real* mask = problem_.mask + schedule_.sequence(j) * h + first;
                            for (Index u = 0; u < units; ++u) to[u] += mask[u] * from[u];
                        } else {
                            for (Index u = 0; u < units; ++u) to[u] += from[u];
                        }
                    }
                }
            }
            taken = 0;
        };
        tiles.each(schedule_.running(s), [&](Index tile) {
            pass[static_cast<std::size_t>(taken++)] = tile;
            if (taken == kPassTiles) go();
        });
        if (taken) go();
    }

    // -- after the loop -----------------------------------------------------------------------------------------------

    const Real* products_at(Index row) const {
        return gradients_.products + schedule_.place(row) * saved_ * problem_.units;
    }

    // dx = da U
    void inputs(const Member& member) {
        const auto row = [&](Index i) { return products_at(i); };
        multiply<Format>(
            member, next_[2], schedule_.rows(), RowsOfA<Format, decltype(row)>{row}, of_inputs_,
            [&](Index i) { return gradients_.x + schedule_.place(i) * problem_.inputs; }, false, nullptr,
            scratch_ + member.index * kScratchOfA<Format>);
    }

    // dU = Σ da xᵀ, dW = Σ da h(t-1)ᵀ: the sum over all steps in slabs, which all members pack together.
    void weights(const Member& member) {
        const Index h = problem_.units;
        Packed* scratch = scratch_ + member.index * kScratchOfA<Format>;
        if (!schedule_.rows()) {
            if (member.index == 0) {
                if (gradients_.weight_ih) std::fill_n(gradients_.weight_ih, gates_ * h * problem_.inputs, Real(0));
                if (gradients_.weight_hh) std::fill_n(gradients_.weight_hh, gates_ * h * h, Real(0));
            }
            return;
        }
        Index s = 0;
        for (Index slab = 0; slab < slabs(); ++slab) {
            const Index begin = slab * kBlockDepth;
            const Index depth = std::min(kBlockDepth, schedule_.rows() - begin);
            std::atomic<Index>* next = next_.get() + 8 + 4 * slab;
            Panels<Format> x = {depth, 1, problem_.inputs};
            Panels<Format> state = {depth, 1, h};
            x.data = slabs_[static_cast<std::size_t>(slab % 2)];
            state.data = x.data + slab_of_inputs_.size();
            const auto input = [&](Index k) { return problem_.x + schedule_.place(begin + k) * problem_.inputs; };
            while (s + 1 < schedule_.steps() && schedule_.begin(s + 1) <= begin) ++s;
            const Index first_step = s;
            for (Index p = next[0]++; p < (gradients_.weight_ih ? x.panels() : 0) + state.panels(); p = next[0]++) {
                const Index of_x = gradients_.weight_ih ? x.panels() : 0;
                if (p < of_x) {
                    pack_rows(x, p, input);
                } else if (gradients_.weight_hh) {
                    pack_states(state, p - of_x, begin, first_step);
                }
            }
            member.wait();
            const auto column = [&](Index first) {
                return [this, begin, first](Index k) { return products_at(begin + k) + first; };
            };
            const auto add = [&](std::atomic<Index>& counter, Index first, Index count, const Panels<Format>& b, Real* to) {
                const auto row = column(first);
                multiply<Format>(
                    member, counter, count, ColumnsOfA<Format, decltype(row)>{row}, b,
                    [&](Index i) { return to + i * b.columns; }, slab > 0, nullptr, scratch);
            };
            if (gradients_.weight_ih) add(next[1], 0, gates_ * h, x, gradients_.weight_ih);
            if (!gradients_.weight_hh) continue;
            if (problem_.cell == Cell::kGru) {
                add(next[2], 0, 2 * h, state, gradients_.weight_hh);
                add(next[3], 3 * h, h, state, gradients_.weight_hh + 2 * h * h);
            } else {
                add(next[2], 0, gates_ * h, state, gradients_.weight_hh);
            }
        }
    }

    // Panel p of the states before rows [begin, begin + depth), masked as the product saw them.
    void pack_states(const Panels<Format>& b, Index p, Index begin, Index s) const {
        const Index h = problem_.units;
        const Index first = b.first_column(p);
        const int columns = b.panel_columns(p);
        std::array<Real, static_cast<std::size_t>(kWidth<Format>)> masked;
        pack_rows(b, p, [&](Index k) -> const Real* {
            while (schedule_.begin(s + 1) <= begin + k) ++s;
            const Index place = schedule_.place(begin + k);
            const Real* state = before(problem_.outputs, problem_.h_first, s, place);
            if (!state || !problem_.mask) return state;
            const Real* mask = problem_.mask + place % problem_.batch * h;
            for (int j = 0; j < columns; ++j)
                masked[static_cast<std::size_t>(j)] = mask[first + j] * state[first + j];
            return masked.data() - first;
        });
    }

    // db = Σ da, and the peepholes' gradients: each column by one member, over the rows in one order.
    void sums() {
        const Index h = problem_.units;
        const Index width = saved_ * h;
        const Index chunk = 2 * kLanes<Real>;
        if (!gradients_.bias_ih && !gradients_.bias_hh && !gradients_.peephole) return;
        for (Index first = chunk * next_[3]++; first < width; first = chunk * next_[3]++) {
            const int count = static_cast<int>(std::min(chunk, width - first));
            Vector<Real> total[2] = {};
            for (Index row = 0; row < schedule_.rows(); ++row) {
                const Real* from = products_at(row) + first;
                total[0] += load(from, count);
                if (count > kLanes<Real>) total[1] += load(from + kLanes<Real>, count - kLanes<Real>);
            }
            std::array<Real, 2 * kVectorBytes / sizeof(Real)> sums;
            store(sums.data(), total[0]);
            store(sums.data() + kLanes<Real>, total[1]);
            for (int i = 0; i < count; ++i) put_bias(first + i, sums[static_cast<std::size_t>(i)]);
        }
        if (gradients_.peephole) {
            for (Index u = next_[4]++; u < h; u = next_[4]++) peephole_sums(u);
        }
    }

    void put_bias(Index column, Real value) {
        const Index h = problem_.units;
        if (problem_.cell == Cell::kGru) {
            if (column < 3 * h && gradients_.bias_ih) gradients_.bias_ih[column] = value;
            if (column < 2 * h && gradients_.bias_hh) gradients_.bias_hh[column] = value;
            if (column >= 3 * h && gradients_.bias_hh) gradients_.bias_hh[column - h] = value;
        } else {
            if (gradients_.bias_ih) gradients_.bias_ih[column] = value;
            if (gradients_.bias_hh) gradients_.bias_hh[column] = value;
        }
    }

    void peephole_sums(Index u) {
        const Index h = problem_.units;
        Real of_i = 0, of_f = 0, of_o = 0;
        Index s = 0;
        for (Index row = 0; row < schedule_.rows(); ++row) {
            while (schedule_.begin(s + 1) <= row) ++s;
            const Index place = schedule_.place(row);
            const Real* c_before = before(problem_.cells, problem_.c_first, s, place);
            const Real c_old = c_before ? c_before[u] : Real(0);
            const Real* gates = problem_.saved + place * saved_ * h;
            const Real* products = products_at(row);
            of_i += products[u] * c_old;
            of_f += products[h + u] * c_old;
            of_o += products[3 * h + u] * (gates[h + u] * c_old + gates[u] * gates[2 * h + u]);
        }
        gradients_.peephole[u] = of_i;
        gradients_.peephole[h + u] = of_f;
        gradients_.peephole[2 * h + u] = of_o;
    }

    const Problem<Real>& problem_;
    const Gradients<Real>& gradients_;
    Schedule schedule_;
    Index gates_, saved_, stride_, sent_size_;
    Buffers buffers_;
    Panels<Format> of_state_, of_inputs_, slab_of_inputs_, slab_of_state_;
    std::array<Packed*, 2> slabs_;            // the panels of x and of h(t-1) for a slab of rows, in turn
    std::array<Packed*, 2> packed_products_;  // (B, stride): da(t), in turn
    Real* d_h_;        // (B, H), sorted
    Real* d_c_;        // (B, H), sorted
    Real* sent_;       // for each thread (row, units)
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
