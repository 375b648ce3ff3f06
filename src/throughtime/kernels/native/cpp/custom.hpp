// A cell of the user's own over the steps of a batch, forward and backward through time.
//
// Python has traced one step and cut it into sections: each begins with products W v of whole rows v, and goes on with
// a pointwise program over its units. Members of a team share rows or units as for the built-in cells; where they share
// units they wait for each other behind every section. What follows the loop, dW and the gradients of what is one per
// unit, is one large product or sum each.
#pragma once

#include <memory>
#include <vector>

#include "pointwise.hpp"
#include "problem.hpp"
#include "team.hpp"

namespace throughtime::custom {

// Where a section's values stand. The numbers are those of throughtime.kernels.native.custom.planning.
enum class Place : int {
    kRegister,    // of the thread, (register, kBlockUnits)
    kConstant,    // (constant, kBlockUnits)
    kProduct,     // of the thread, (row, gate of the section, kBlockUnits)
    kVector,      // (all vectors): one value a unit, the same for all rows
    kInput,       // (T, B, G)
    kBefore,      // field of the state before the step
    kAfter,       // and after it
    kSaved,       // (T, B, S), or (B, S) where nothing is kept
    kDInput,      // (T, B, G)
    kDOutput,     // (T, B, size of the field)
    kDCarried,    // gradient of a field after the step, in so far as no product carries it
    kDBefore,     // the same of the field before the step
    kDCarriedOperand,  // gradient of a product's operand at the step after this one
    kDOperand,         // and at this step
    kDRow,        // (T, B, R)
    kDValue,      // (B, D)
};

struct Base {
    Place place;
    int index;  // of the field or the product
};

// A part of a product's operand: a field of the state before the step, or a value saved at the step.
struct Segment {
    Place place;  // kBefore or kSaved
    Index index;  // the field; the column
    Index position, length;
    bool flows;  // whether its gradient goes on to the field
};

// W v: weight (gates · units, depth), v the segments one after another.
struct Product {
    Index gates, units, depth;
    std::vector<Segment> segments;
    std::vector<Operand> gradients;  // for each gate its place, kDInput or kDRow, and column
};

// A part of an operand that a section computes: `units` of it go to `position` of the product's packed operand.
struct Packing {
    int product;
    Index position;
    Place from;
    Index index;
};

inline constexpr std::size_t kMaxBases = 64;

struct Section {
    Index units;
    int registers;
    std::vector<int> products;  // forward: computed before the program; backward: behind it
    std::vector<Base> bases;
    std::vector<Instruction> code;
    std::vector<Packing> packings;
};

template <class Format>
inline Index panels_of(const Section& section) {
    return ceil_divide(section.units, kWidth<Format>);
}

// The gradient of a vector: the sum over all rows of `length` columns.
struct VectorGradient {
    Place place;  // kDInput or kDRow
    Index column, length, to;
};

struct Plan {
    std::vector<Index> fields;  // sizes
    Index inputs, saved, rows, values;
    std::vector<double> constants;
    std::vector<Product> products;
    std::vector<Section> forward, backward;
    std::vector<VectorGradient> vectors;
};

// Every buffer is C-contiguous; null where there is none.
template <class Real>
struct CustomProblem {
    Index steps, batch;
    bool reverse;
    const std::int64_t* lengths;  // (B)
    const std::uint8_t* resets;   // (T, B)
    const Real* x;                // (T, B, G)
    const Real* vectors;
    std::vector<const Real*> weights;  // of each product (gates · units, depth)
    std::vector<const Real*> first;    // of each field (B, size)
    std::vector<Real*> after;          // (T, B, size); the first field's is there always
    std::vector<Real*> last;           // (B, size)
    Real* saved;                       // (T, B, S)

    Schedule schedule() const {
        Problem<Real> problem{};
        problem.steps = steps;
        problem.batch = batch;
        problem.reverse = reverse;
        problem.lengths = lengths;
        return Schedule(problem);
    }
};

template <class Real>
struct CustomGradients {
    std::vector<const Real*> outputs;  // of each field (T, B, size), null for zero
    std::vector<const Real*> last;     // (B, size), null for zero
    Real* x;                           // (T, B, G)
    Real* vectors;                     // null: not wanted
    std::vector<Real*> weights;        // null: not wanted
    std::vector<Real*> first;          // (B, size), null: not wanted
    Real* rows;                        // (T, B, R) scratch
};

// What the forward and the backward pass have in common.
template <class Format>
class CustomPass {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

  protected:
    static_assert(kBlockUnits % kWidth<Format> == 0);

    CustomPass(const Plan& plan, const std::vector<Section>& sections, const CustomProblem<Real>& problem, int threads)
        : plan_(plan), problem_(problem), schedule_(problem.schedule()) {
        Index widest = 1, registers = 1;
        for (const Index size : plan.fields) widest = std::max(widest, size);
        for (const Product& product : plan.products) widest = std::max(widest, round_up(product.depth, kWidth<Format>));
        for (const Section& section : sections) registers = std::max<Index>(registers, section.registers);
        zeros_ = buffers_.template take<Real>(widest);
        std::fill_n(zeros_, widest, Real(0));
        const Index constants = static_cast<Index>(plan.constants.size());
        constants_ = buffers_.template take<Real>(constants * kBlockUnits);
        for (Index i = 0; i < constants; ++i)
            std::fill_n(constants_ + i * kBlockUnits, kBlockUnits,
                        static_cast<Real>(plan.constants[static_cast<std::size_t>(i)]));
        registers_size_ = registers * kBlockUnits;
        registers_ = buffers_.template take<Real>(threads * registers_size_);
        for (std::size_t f = 0; f < plan.fields.size(); ++f) {
            const bool kept = problem.after[f] != nullptr;
            turns_.push_back(kept ? nullptr : buffers_.template take<Real>(2 * problem.batch * plan.fields[f]));
        }
        if (!problem.saved) saved_here_ = buffers_.template take<Real>(problem.batch * plan.saved);
    }

    // Of the widest section or operand.
    Index most_panels() const {
        Index most = 1;
        for (const Section& section : plan_.forward) most = std::max(most, panels_of<Format>(section));
        for (const Product& product : plan_.products)
            most = std::max(most, ceil_divide(product.depth, kWidth<Format>));
        return most;
    }

    bool fresh(Index s, Index j) const { return problem_.resets && problem_.resets[schedule_.place(s, j)]; }

    // Field f of the j-th sorted sequence after step s: in its history, or in one of two rows in turn.
    Real* after(std::size_t f, Index s, Index j) const {
        const Index size = plan_.fields[f];
        if (Real* history = problem_.after[f]) return history + schedule_.place(s, j) * size;
        return turns_[f] + ((s & 1) * problem_.batch + j) * size;
    }

    // Field f before step s.
    const Real* before(std::size_t f, Index s, Index j) const {
        if (fresh(s, j)) return zeros_;
        return s ? after(f, s - 1, j) : problem_.first[f] + schedule_.sequence(j) * plan_.fields[f];
    }

    Real* saved(Index place, Index j) const {
        return problem_.saved ? problem_.saved + place * plan_.saved : saved_here_ + j * plan_.saved;
    }

    const Plan& plan_;
    const CustomProblem<Real>& problem_;
    Schedule schedule_;
    Buffers buffers_;
    Real* zeros_;          // as long as the longest row
    Real* constants_;      // (constant, kBlockUnits)
    Real* registers_;      // for each thread
    Index registers_size_;
    std::vector<Real*> turns_;    // of each field without a history (2, B, size), sorted
    Real* saved_here_ = nullptr;  // (B, S), sorted
};

template <class Format>
class CustomForward : CustomPass<Format> {
  public:
    using Base_ = CustomPass<Format>;
    using typename Base_::Packed;
    using typename Base_::Real;

    CustomForward(const Plan& plan, const CustomProblem<Real>& problem, int threads)
        : Base_(plan, plan.forward, problem, threads), next_(std::make_unique<std::atomic<Index>[]>(plan.products.size())) {
        for (const Product& product : plan.products) {
            Panels<Format> weight = {product.depth, product.gates, product.units};
            weight.data = this->buffers_.template take<Packed>(weight.size());
            bytes_ += weight.size() * static_cast<Index>(sizeof(Packed));
            weights_.push_back(weight);
            const Index stride = padded_stride<Format>(round_up(product.depth, Format::kUnit));
            strides_.push_back(stride);
            std::array<Packed*, 2> turns;
            for (auto& turn : turns) {
                turn = this->buffers_.template take<Packed>(problem.batch * stride);
                std::fill_n(turn, problem.batch * stride, Format::pack(0));
            }
            operands_.push_back(turns);
        }
        for (const Section& section : plan.forward) gates_ = std::max(gates_, gates_of(section));
        products_size_ = kPassRows * gates_ * kBlockUnits;
        products_ = this->buffers_.template take<Real>(threads * products_size_);
    }

    void run(const Member& member) {
        for (std::size_t q = 0; q < weights_.size(); ++q)
            for (Index p = next_[q]++; p < weights_[q].panels(); p = next_[q]++)
                pack_weight_rows(weights_[q], p, this->problem_.weights[q]);
        if (member.index == 0) begin();
        member.wait();
        const std::vector<Section>& sections = this->plan_.forward;
        const Split split(member, this->problem_.batch, this->most_panels(), bytes_);
        const GroupTiles tiles(this->problem_.batch, split);
        for (Index s = 0; s < this->schedule_.steps(); ++s) {
            for (const Section& section : sections) {
                if (split.takes_part) run_section(section, s, split, tiles, member.index);
                if (split.together()) member.wait();
            }
        }
    }

    // To be called when all members have returned.
    void finish() {
        const auto& problem = this->problem_;
        for (std::size_t f = 0; f < this->plan_.fields.size(); ++f) {
            const Index size = this->plan_.fields[f];
            for (Index j = 0; j < problem.batch; ++j) {
                const Index b = this->schedule_.sequence(j);
                const Index steps = problem.lengths ? problem.lengths[b] : problem.steps;
                const Real* from = steps ? this->after(f, steps - 1, j) : problem.first[f] + b * size;
                std::copy_n(from, size, problem.last[f] + b * size);
            }
        }
    }

  private:
    // Rows of one pass of the time loop, so that its products stay in the second cache.
    static constexpr Index kPassTiles = 4 * kTilePanels;
    static constexpr Index kPassRows = kPassTiles * kTileRows;

    Index gates_of(const Section& section) const {
        Index gates = 0;
        for (const int q : section.products) gates += this->plan_.products[static_cast<std::size_t>(q)].gates;
        return gates;
    }

    void begin() {
        if (!this->schedule_.steps()) return;
        for (std::size_t q = 0; q < operands_.size(); ++q) {
            for (const Segment& segment : this->plan_.products[q].segments) {
                if (segment.place != Place::kBefore) continue;
                for (Index j = 0; j < this->schedule_.running(0); ++j) {
                    const Real* from = this->before(static_cast<std::size_t>(segment.index), 0, j);
                    pack(from, segment.length, operands_[q][0] + j * strides_[q] + segment.position);
                }
            }
        }
    }

    static void pack(const Real* from, Index count, Packed* to) {
        for (Index u = 0; u < count; ++u) to[u] = Format::pack(from[u]);
    }

    void run_section(const Section& section, Index s, const Split& split, const GroupTiles& tiles, int member) {
        constexpr Index kMost = kBlockUnits / kWidth<Format>;
        const Index running = this->schedule_.running(s);
        const Index end_panel = split.end_panel(panels_of<Format>(section));
        std::array<Index, kPassTiles> pass;
        for (Index next = tiles.first; next < tiles.all.count && tiles.all.begin(next) < running;) {
            Index taken = 0;
            for (; taken < kPassTiles && next < tiles.all.count && tiles.all.begin(next) < running; next += tiles.step)
                pass[static_cast<std::size_t>(taken++)] = next;
            for (Index p = split.first_panel(panels_of<Format>(section)); p < end_panel; p += kMost) {
                const Index panels = std::min(kMost, end_panel - p);
                multiply_pass(section, s, p, panels, tiles.all, pass.data(), taken, member);
                Index row = 0;
                for (Index i = 0; i < taken; ++i) {
                    const Index tile = pass[static_cast<std::size_t>(i)];
                    for (Index j = tiles.all.begin(tile); j < tiles.all.begin(tile + 1); ++j, ++row)
                        if (j < running) run_row(section, s, j, p, panels, row, member);
                }
            }
        }
    }

    // Panels [p, p + panels) of the section's products for the rows of a pass.
    void multiply_pass(const Section& section, Index s, Index p, Index panels, const Tiles& tiles, const Index* pass,
                       Index count, int member) {
        const Index at_once = panels_at_once(tiles.height(pass[0]));
        const Index row_size = gates_ * kBlockUnits;
        std::array<Real*, kTileRows> rows;
        Index slot = 0;
        for (const int of : section.products) {
            const auto q = static_cast<std::size_t>(of);
            const Panels<Format>& weight = weights_[q];
            const Packed* operand = operands_[q][static_cast<std::size_t>(s % 2)];
            for (Index gate = 0; gate < weight.groups; ++gate, ++slot) {
                for (Index first = 0; first < panels; first += at_once) {
                    const Index now = std::min(at_once, panels - first);
                    for (Index k0 = 0; k0 < weight.depth; k0 += kBlockDepth<Format>) {
                        TileCall<Format> call{};
                        call.units = ceil_divide(std::min(weight.depth - k0, kBlockDepth<Format>), Format::kUnit);
                        call.stride = strides_[q];
                        call.b = weight.panel(gate * weight.group_panels() + p + first) + k0 * kWidth<Format>;
                        call.panel_stride = weight.panel_size();
                        call.column = first * kWidth<Format>;
                        call.add = k0 > 0;
                        Real* to = products_ + member * products_size_ + slot * kBlockUnits;
                        for (Index i = 0; i < count; ++i) {
                            const int height = tiles.height(pass[i]);
                            for (int r = 0; r < height; ++r, to += row_size) rows[static_cast<std::size_t>(r)] = to;
                            call.a = operand + tiles.begin(pass[i]) * strides_[q] + k0;
                            call.c = rows.data();
                            multiply_tile<Format, Layout::kRowMajor>(height, call, now, kWidth<Format>);
                        }
                    }
                }
            }
        }
    }

    void run_row(const Section& section, Index s, Index j, Index p, Index panels, Index row, int member) {
        const Index first = p * kWidth<Format>;
        const Index count = std::min(section.units - first, panels * kWidth<Format>);
        const Index place = this->schedule_.place(s, j);
        const auto& problem = this->problem_;
        std::array<Real*, kMaxBases> bases;
        for (std::size_t i = 0; i < section.bases.size(); ++i) {
            const Base base = section.bases[i];
            const auto f = static_cast<std::size_t>(base.index);
            Real* at = nullptr;
            switch (base.place) {
                case Place::kRegister: at = this->registers_ + member * this->registers_size_; break;
                case Place::kConstant: at = this->constants_; break;
                case Place::kProduct: at = products_ + member * products_size_ + row * gates_ * kBlockUnits; break;
                case Place::kVector: at = const_cast<Real*>(problem.vectors) + first; break;
                case Place::kInput: at = const_cast<Real*>(problem.x) + place * this->plan_.inputs + first; break;
                case Place::kBefore: at = const_cast<Real*>(this->before(f, s, j)) + first; break;
                case Place::kAfter: at = this->after(f, s, j) + first; break;
                case Place::kSaved: at = this->saved(place, j) + first; break;
                default: break;  // only backward
            }
            bases[i] = at;
        }
        run_program(section.code, bases.data(), static_cast<int>(count));
        for (const Packing& packing : section.packings) {
            const auto q = static_cast<std::size_t>(packing.product);
            Packed* to = operands_[q][static_cast<std::size_t>(s % 2)] + j * strides_[q] + packing.position + first;
            if (packing.from == Place::kSaved) {
                pack(this->saved(place, j) + packing.index + first, count, to);
                continue;
            }
            if (s + 1 == this->schedule_.steps() || j >= this->schedule_.running(s + 1)) continue;
            to = operands_[q][static_cast<std::size_t>((s + 1) % 2)] + j * strides_[q] + packing.position + first;
            const Real* from = this->fresh(s + 1, j) ? this->zeros_
                                                     : this->after(static_cast<std::size_t>(packing.index), s, j);
            pack(from + first, count, to);
        }
    }

    Index bytes_ = 0, gates_ = 0, products_size_;
    std::vector<Panels<Format>> weights_;
    std::vector<Index> strides_;
    std::vector<std::array<Packed*, 2>> operands_;  // of each product (B, stride), for even and odd steps
    Real* products_;                                // for each thread (row of the pass, gate, kBlockUnits)
    std::unique_ptr<std::atomic<Index>[]> next_;
};

template <class Format>
class CustomBackward : CustomPass<Format> {
  public:
    using Base_ = CustomPass<Format>;
    using typename Base_::Packed;
    using typename Base_::Real;

    CustomBackward(const Plan& plan, const CustomProblem<Real>& problem, const CustomGradients<Real>& gradients, int threads)
        : Base_(plan, plan.backward, problem, threads), gradients_(gradients) {
        auto& buffers = this->buffers_;
        const Index batch = problem.batch;
        Index longest = 1;
        std::size_t counters = 1;
        for (const Product& product : plan.products) {
            Panels<Format> weight = {product.gates * product.units, 1, product.depth};
            weight.data = buffers.template take<Packed>(weight.size());
            bytes_ += weight.size() * static_cast<Index>(sizeof(Packed));
            weights_.push_back(weight);
            const Index stride = padded_stride<Format>(round_up(weight.depth, Format::kUnit));
            strides_.push_back(stride);
            packed_.push_back(buffers.template take<Packed>(batch * stride));
            // Rows that do not run yet share a tile with rows that do: their products must be nothing.
            std::fill_n(packed_.back(), batch * stride, Format::pack(0));
            const Index depth = round_up(product.depth, kWidth<Format>);
            operand_strides_.push_back(depth);
            d_operands_.push_back(buffers.template take<Real>(batch * depth));
            std::fill_n(d_operands_.back(), batch * depth, Real(0));
            for (const Segment& segment : product.segments) {
                longest = std::max(longest, segment.length);
                counters += static_cast<std::size_t>(slabs()) * static_cast<std::size_t>(product.gates + 1);
            }
            ++counters;
        }
        for (std::size_t f = 0; f < plan.fields.size(); ++f) {
            const Index size = plan.fields[f];
            std::array<Real*, 2> turns;
            for (auto& turn : turns) {
                turn = buffers.template take<Real>(batch * size);
                for (Index j = 0; j < batch; ++j) {
                    const Real* last = gradients.last[f] ? gradients.last[f] + this->schedule_.sequence(j) * size : nullptr;
                    for (Index u = 0; u < size; ++u) turn[j * size + u] = last ? last[u] : Real(0);
                }
            }
            d_carried_.push_back(turns);
        }
        values_ = buffers.template take<Real>(batch * plan.values);
        const Panels<Format> slab = {kBlockDepth<Format>, 1, longest};
        for (auto& data : slabs_) data = buffers.template take<Packed>(slab.size());
        scratch_ = buffers.template take<Packed>(threads * kScratchOfA<Format>);
        next_ = std::make_unique<std::atomic<Index>[]>(counters);
    }

    void run(const Member& member) {
        std::atomic<Index>* next = next_.get();
        for (std::size_t q = 0; q < weights_.size(); ++q, ++next) {
            for (Index p = (*next)++; p < weights_[q].panels(); p = (*next)++)
                pack_matrix(weights_[q], p, this->problem_.weights[q]);
        }
        member.wait();
        loop(member);
        member.wait();
        int turn = 0;
        for (std::size_t q = 0; q < weights_.size(); ++q) next = weights(member, q, next, turn);
        sums(*next);
    }

    // To be called when all members have returned.
    void finish() {
        for (std::size_t f = 0; f < this->plan_.fields.size(); ++f) {
            if (!gradients_.first[f]) continue;
            const Index size = this->plan_.fields[f];
            for (Index j = 0; j < this->problem_.batch; ++j) {
                Real* to = gradients_.first[f] + this->schedule_.sequence(j) * size;
                if (this->schedule_.steps() && j < this->schedule_.running(0) && this->fresh(0, j)) {
                    std::fill_n(to, size, Real(0));
                    continue;
                }
                std::copy_n(d_carried_[f][0] + j * size, size, to);
                for (std::size_t q = 0; q < weights_.size(); ++q)
                    for (const Segment& segment : this->plan_.products[q].segments)
                        if (segment.flows && segment.index == static_cast<Index>(f))
                            for (Index u = 0; u < size; ++u)
                                to[u] += d_operands_[q][j * operand_strides_[q] + segment.position + u];
            }
        }
    }

  private:
    Index slabs() const { return ceil_divide(this->schedule_.rows(), kBlockDepth<Format>); }

    // -- the time loop ------------------------------------------------------------------------------------------------

    void loop(const Member& member) {
        const Split split(member, this->problem_.batch, this->most_panels(), bytes_);
        const GroupTiles tiles(this->problem_.batch, split);
        for (Index s = this->schedule_.steps() - 1; s >= 0; --s) {
            for (const Section& section : this->plan_.backward) {
                if (split.takes_part) run_section(section, s, split, tiles, member.index);
                if (split.together()) member.wait();
                if (section.products.empty()) continue;
                if (split.takes_part)
                    for (const int q : section.products) send_back(static_cast<std::size_t>(q), s, split, tiles);
                if (split.together()) member.wait();
            }
        }
    }

    void run_section(const Section& section, Index s, const Split& split, const GroupTiles& tiles, int member) {
        const Index panels = panels_of<Format>(section);
        const Index begin = std::min(section.units, split.first_panel(panels) * kWidth<Format>);
        const Index end = std::min(section.units, split.end_panel(panels) * kWidth<Format>);
        tiles.each_row(this->schedule_.running(s), [&](Index j) {
            for (Index first = begin; first < end; first += kBlockUnits)
                run_row(section, s, j, first, std::min<Index>(kBlockUnits, end - first), member);
        });
    }

    void run_row(const Section& section, Index s, Index j, Index first, Index count, int member) {
        const Index place = this->schedule_.place(s, j);
        const auto& problem = this->problem_;
        // Where the step after this one began anew, nothing comes back from it.
        const bool cut = s + 1 < this->schedule_.steps() && j < this->schedule_.running(s + 1) && this->fresh(s + 1, j);
        std::array<Real*, kMaxBases> bases;
        for (std::size_t i = 0; i < section.bases.size(); ++i) {
            const Base base = section.bases[i];
            const auto f = static_cast<std::size_t>(base.index);
            Real* at = nullptr;
            switch (base.place) {
                case Place::kRegister: bases[i] = this->registers_ + member * this->registers_size_; continue;
                case Place::kConstant: bases[i] = this->constants_; continue;
                case Place::kProduct: break;  // only forward
                case Place::kVector: at = const_cast<Real*>(problem.vectors); break;
                case Place::kInput: at = const_cast<Real*>(problem.x) + place * this->plan_.inputs; break;
                case Place::kBefore: at = const_cast<Real*>(this->before(f, s, j)); break;
                case Place::kAfter: at = this->after(f, s, j); break;
                case Place::kSaved: at = this->saved(place, j); break;
                case Place::kDInput: at = gradients_.x + place * this->plan_.inputs; break;
                case Place::kDOutput:
                    at = gradients_.outputs[f] ? const_cast<Real*>(gradients_.outputs[f]) + place * this->plan_.fields[f]
                                               : this->zeros_;
                    break;
                case Place::kDCarried: at = cut ? this->zeros_ : carried(f, s + 1, j); break;
                case Place::kDBefore: at = carried(f, s, j); break;
                case Place::kDCarriedOperand: at = cut ? this->zeros_ : d_operands_[f] + j * operand_strides_[f]; break;
                case Place::kDOperand: at = d_operands_[f] + j * operand_strides_[f]; break;
                case Place::kDRow: at = gradients_.rows + place * this->plan_.rows; break;
                case Place::kDValue: at = values_ + j * this->plan_.values; break;
            }
            bases[i] = at + first;
        }
        run_program(section.code, bases.data(), static_cast<int>(count));
        for (const Packing& packing : section.packings) {
            const auto q = static_cast<std::size_t>(packing.product);
            const Real* from = gradient_row(packing.from, place) + packing.index + first;
            Packed* to = packed_[q] + j * strides_[q] + packing.position + first;
            for (Index u = 0; u < count; ++u) to[u] = Format::pack(from[u]);
        }
    }

    Real* carried(std::size_t f, Index s, Index j) const {
        return d_carried_[f][static_cast<std::size_t>(s % 2)] + j * this->plan_.fields[f];
    }

    const Real* gradient_row(Place of, Index place) const {
        return of == Place::kDInput ? gradients_.x + place * this->plan_.inputs : gradients_.rows + place * this->plan_.rows;
    }

    // d v = (d a) W of one product, for the member's rows and columns.
    void send_back(std::size_t q, Index s, const Split& split, const GroupTiles& tiles) {
        const Panels<Format>& weight = weights_[q];
        const Index end_panel = split.end_panel(weight.panels());
        const Index running = this->schedule_.running(s);
        std::array<Real*, kTileRows> rows;
        const Index at_once = panels_at_once(tiles.all.height(tiles.first));
        for (Index p = split.first_panel(weight.panels()); p < end_panel; p += at_once) {
            const Index panels = std::min(at_once, end_panel - p);
            for (Index k0 = 0; k0 < weight.depth; k0 += kBlockDepth<Format>) {
                TileCall<Format> call{};
                call.units = ceil_divide(std::min(weight.depth - k0, kBlockDepth<Format>), Format::kUnit);
                call.stride = strides_[q];
                call.b = weight.panel(p) + k0 * kWidth<Format>;
                call.panel_stride = weight.panel_size();
                call.column = p * kWidth<Format>;
                call.add = k0 > 0;
                for (Index tile = tiles.first; tile < tiles.all.count; tile += tiles.step) {
                    const int height = tiles.all.height(tile);
                    const Index first = tiles.all.begin(tile);
                    if (first >= running) break;
                    for (int r = 0; r < height; ++r)
                        rows[static_cast<std::size_t>(r)] = d_operands_[q] + (first + r) * operand_strides_[q];
                    call.a = packed_[q] + first * strides_[q] + k0;
                    call.c = rows.data();
                    multiply_tile<Format, Layout::kRowMajor>(height, call, panels, kWidth<Format>);
                }
            }
        }
    }

    // -- after the loop -----------------------------------------------------------------------------------------------

    // dW = Σ da vᵀ: the sum over all rows in slabs, whose v all members pack together, into two places in turn. Returns
    // the first unused counter.
    std::atomic<Index>* weights(const Member& member, std::size_t q, std::atomic<Index>* next, int& turn) {
        const Product& product = this->plan_.products[q];
        Real* to = gradients_.weights[q];
        if (!to) return next;
        if (!this->schedule_.rows()) {
            if (member.index == 0) std::fill_n(to, product.gates * product.units * product.depth, Real(0));
            return next;
        }
        Packed* scratch = scratch_ + member.index * kScratchOfA<Format>;
        for (const Segment& segment : product.segments) {
            Index s = 0;
            for (Index slab = 0; slab < slabs(); ++slab) {
                const Index begin = slab * kBlockDepth<Format>;
                Panels<Format> v = {std::min(kBlockDepth<Format>, this->schedule_.rows() - begin), 1, segment.length};
                v.data = slabs_[static_cast<std::size_t>(turn++ % 2)];
                while (this->schedule_.begin(s + 1) <= begin) ++s;
                for (Index p = (*next)++; p < v.panels(); p = (*next)++) pack_operand(v, p, segment, begin, s);
                ++next;
                member.wait();
                for (Index gate = 0; gate < product.gates; ++next) {
                    const Operand place = product.gradients[static_cast<std::size_t>(gate)];
                    Index gates = 1;  // that stand next to each other
                    for (; gate + gates < product.gates; ++gates) {
                        const Operand other = product.gradients[static_cast<std::size_t>(gate + gates)];
                        if (other.base != place.base || other.offset != place.offset + gates * product.units) break;
                    }
                    const auto column = [&](Index k) {
                        return gradient_row(static_cast<Place>(place.base), this->schedule_.place(begin + k)) + place.offset;
                    };
                    Real* part = to + gate * product.units * product.depth + segment.position;
                    multiply<Format>(
                        member, *next, gates * product.units, ColumnsOfA<Format, decltype(column)>{column}, v,
                        [&](Index i) { return part + i * product.depth; }, slab > 0, nullptr, scratch);
                    gate += gates;
                }
            }
        }
        return next;
    }

    // Panel p of the operands' rows [begin, begin + depth); s is the step of the first.
    void pack_operand(const Panels<Format>& v, Index p, const Segment& segment, Index begin, Index s) const {
        pack_rows(v, p, [&](Index k) -> const Real* {
            while (this->schedule_.begin(s + 1) <= begin + k) ++s;
            if (segment.place == Place::kSaved)
                return this->problem_.saved + this->schedule_.place(begin + k) * this->plan_.saved + segment.index;
            return this->before(static_cast<std::size_t>(segment.index), s, begin + k - this->schedule_.begin(s));
        });
    }

    // Each column by one member, over the rows in one order.
    void sums(std::atomic<Index>& next) {
        if (!gradients_.vectors) return;
        constexpr Index kChunk = kLanes<Real>;
        Index before = 0;
        Index chunk = next++;
        for (const VectorGradient& vector : this->plan_.vectors) {
            const Index chunks = ceil_divide(vector.length, kChunk);
            for (; chunk < before + chunks; chunk = next++) {
                const Index first = (chunk - before) * kChunk;
                const int count = static_cast<int>(std::min(kChunk, vector.length - first));
                Vector<Real> total = {};
                for (Index row = 0; row < this->schedule_.rows(); ++row)
                    total += load(gradient_row(vector.place, this->schedule_.place(row)) + vector.column + first, count);
                store(gradients_.vectors + vector.to + first, total, count);
            }
            before += chunks;
        }
    }

    const CustomGradients<Real>& gradients_;
    Index bytes_ = 0;
    std::vector<Panels<Format>> weights_;
    std::vector<Index> strides_, operand_strides_;
    std::vector<Packed*> packed_;                   // of each product (B, stride): da(t)
    std::vector<Real*> d_operands_;                 // of each product (B, depth rounded up)
    std::vector<std::array<Real*, 2>> d_carried_;   // of each field (B, size), for even and odd steps
    Real* values_;                                  // (B, D)
    std::array<Packed*, 2> slabs_;
    Packed* scratch_;  // for each thread
    std::unique_ptr<std::atomic<Index>[]> next_;
};

}  // namespace throughtime::custom
