// One step of many rows through all layers of a packed model, from where their states stand to where the next are wanted.
#pragma once

#include <numeric>

#include "packing.hpp"

namespace throughtime {

// A row's next state from unit `row.first` on.
inline void advance_row(Cell cell, const ForwardRow<float>& row) {
    switch (cell) {
        case Cell::kRnnTanh: return step_forward<Cell::kRnnTanh>(row);
        case Cell::kRnnRelu: return step_forward<Cell::kRnnRelu>(row);
        case Cell::kLstm: return step_forward<Cell::kLstm>(row);
        case Cell::kGru: return step_forward<Cell::kGru>(row);
        default: return;  // cells with two products are not packed
    }
}

// Rows that go on from one row have one product W_hh h: which rows these are, until the next step.
struct Siblings {
    std::vector<Index> family;   // (B) of each row
    std::vector<Index> first;    // (F + 1) where a family begins among the rows in their order
    std::vector<Index> members;  // (B) rows, family by family

    Index families() const { return std::max<Index>(0, static_cast<Index>(first.size()) - 1); }
    Index head(Index f) const { return members[static_cast<std::size_t>(first[static_cast<std::size_t>(f)])]; }

    template <class Visit>
    void each(Index f, Visit visit) const {
        const auto at = static_cast<std::size_t>(f);
        for (Index i = first[at]; i < first[at + 1]; ++i) visit(members[static_cast<std::size_t>(i)]);
    }

    void clear() { first.clear(); }

    // Row i goes on from row picked[i].
    void find(const std::int64_t* picked, Index rows) {
        const Index parents = *std::max_element(picked, picked + rows) + 1;
        std::vector<Index> of_parent(static_cast<std::size_t>(parents), -1);
        family.resize(static_cast<std::size_t>(rows));
        first.assign(1, 0);
        for (Index i = 0; i < rows; ++i) {
            Index& known = of_parent[static_cast<std::size_t>(picked[i])];
            if (known < 0) {
                known = families();
                first.push_back(0);
            }
            family[static_cast<std::size_t>(i)] = known;
            ++first[static_cast<std::size_t>(known) + 1];
        }
        std::partial_sum(first.begin(), first.end(), first.begin());
        members.resize(static_cast<std::size_t>(rows));
        std::vector<Index> next(first.begin(), first.end() - 1);
        for (Index i = 0; i < rows; ++i) {
            Index& place = next[static_cast<std::size_t>(family[static_cast<std::size_t>(i)])];
            members[static_cast<std::size_t>(place++)] = i;
        }
        if (families() == rows) clear();  // nobody shares anything
    }
};

// Sums of some columns: of rows, or of groups, `stride` apart.
struct StridedSums {
    const float* values;
    Index stride;
};

// Some units of a row's state, advanced in their place; h goes to `h_out` too.
struct StateUnits {
    float* h;
    float* c;
    float* h_out;
};

// Rows stand too far apart to be foreseen.
template <int kWrite>
inline void come_near(const float* from, Index count) {
    for (Index j = 0; j < count; j += kBlock) __builtin_prefetch(from + j, kWrite);
}

// The cell for units [first, first + count) of panel p.
template <class Storage>
inline void advance_units(const PackedLayer<Storage>& layer, Index p, Index first, int count, StridedSums inputs,
                          StridedSums product, const StateUnits& state) {
    const Index within = first - layer.first_unit(p);
    ForwardRow<float> row{};
    row.units = layer.panel_units(p);
    row.count = count;
    row.inputs = inputs.values;
    row.inputs_stride = inputs.stride;
    row.product = product.values;
    row.product_stride = product.stride;
    row.bias_hh = layer.bias_hh ? layer.bias_hh + layer.h.place(p) + within : nullptr;
    row.peephole = layer.peephole ? layer.peephole + 3 * layer.first_unit(p) + within : nullptr;
    row.zoneout_h = layer.zoneout_h ? layer.zoneout_h + first : nullptr;
    row.zoneout_c = layer.zoneout_c ? layer.zoneout_c + first : nullptr;
    row.h = state.h;
    row.c = state.c;
    row.h_out = state.h_out;
    advance_row(layer.cell, row);
}

// Where the states of a layer stand, rows `stride` apart.
struct StateRows {
    float* h;
    float* c;  // null where the cell has none
    Index stride;
};

struct ManyRowsCall {
    struct Layer {
        StateRows before, after;  // the same place, or apart
        float* summed;            // (B, ·) outputs plus inputs, null without residual connection
        Index summed_stride;
    };
    Index rows;
    const std::int64_t* tokens;  // (B), or ...
    const float* inputs;         // ... (B, I)
    Index inputs_stride;
    std::vector<Layer> layers;
    const std::int64_t* picked = nullptr;  // row i goes on from row picked[i] of `before`; null: from row i
    const Siblings* siblings = nullptr;    // null: each row goes on from one of its own

    Index parent(Index i) const { return picked ? picked[i] : i; }
};

template <class Storage>
class ManyRowsStep {
  public:
    explicit ManyRowsStep(const PackedModelOf<Storage>& model) : model_(model), packed_(model.layers_of_many()) {
        for (const PackedLayer<Storage>& layer : model.layers) {
            deepest_ = std::max({deepest_, layer.inputs, layer.units});
            gates_ = std::max(gates_, gates_of(layer.cell));
            if (!layer.from_table) widest_ = std::max(widest_, gates_of(layer.cell) * layer.width());
        }
    }

    // Room for so many rows, and members.
    void prepare(Index rows, int members) {
        if (rows <= rows_ && members <= members_) return;
        rows_ = std::max(rows, rows_);
        members_ = std::max(members, members_);
        memory_ = std::make_unique<Buffers>();
        for (float*& operand : operands_) operand = memory_->take<float>(ManyRows::copy_size(rows_, deepest_));
        shared_ = memory_->take<float>(rows_ * widest_);
        scratch_ = memory_->take<float>(members_ * scratch_size());
    }

    // What all members may use between steps: room for a copy of rows, and a member's scratch as `ManyColumns` wants it.
    float* room() const { return operands_[0]; }
    float* scratch(const Member& member) const { return scratch_ + member.index * scratch_size(); }

    // All members call it; `prepare` was called. All have done their part when it returns.
    void advance(const Member& member, const ManyRowsCall& call) const {
        for (std::size_t l = 0; l < model_.layers.size(); ++l) {
            advance_layer(member, l, call);
            member.wait();
        }
    }

  private:
    // One call of one layer, for its visits.
    struct At {
        const PackedLayer<Storage>& layer;
        const ManyRowsCall& call;
        const ManyRowsCall::Layer& rows;
        const float* below;  // (B, ·) what the layer reads, where that is no table
        Index below_stride;

        // The cell for units [first, first + count) of row i, a panel's at most; `inputs` is null where there is a table.
        void advance(const float* table, Index i, Index first, int count, StridedSums inputs, StridedSums product) const {
            const Index p = first / kBlock / layer.h.panel_blocks();
            const Index ahead = std::min(i + kRowsAhead, call.rows - 1);
            if (!inputs.values) {
                const Index stride = layer.panel_units(p);
                const float* of_panel = table + layer.h.place(p) + first - layer.first_unit(p);
                inputs = {of_panel + call.tokens[i] * layer.h.width(), stride};
                for (int gate = 0; gate < layer.h.groups; ++gate)
                    come_near<0>(of_panel + call.tokens[ahead] * layer.h.width() + gate * stride, count);
            }
            float* h = rows.after.h + i * rows.after.stride + first;
            float* c = rows.after.c ? rows.after.c + i * rows.after.stride + first : nullptr;
            if (rows.after.h != rows.before.h) {
                const Index before = call.parent(i) * rows.before.stride + first;
                const Index next = call.parent(ahead) * rows.before.stride + first;
                if (c) {
                    std::copy_n(rows.before.c + before, count, c);
                    come_near<0>(rows.before.c + next, count);
                }
                if (!is_lstm(layer.cell) || layer.zoneout_h) {
                    std::copy_n(rows.before.h + before, count, h);
                    come_near<0>(rows.before.h + next, count);
                }
            }
            const StateUnits state{h, c, h};
            for (const float* place : {h, c})
                if (place) come_near<1>(place + (ahead - i) * rows.after.stride, count);
            advance_units(layer, p, first, count, inputs, product, state);
            if (!rows.summed) return;
            float* summed = rows.summed + i * rows.summed_stride + first;
            for (int j = 0; j < count; ++j) summed[j] = h[j] + below[i * below_stride + first + j];
        }
    };

    Index scratch_size() const { return std::max(2 * products_size<Single>(gates_), ManyColumns::scratch_size()); }

    // Panel by panel the products and the cell, some rows at a time, whose sums stay near. Of rows that go on from one
    // row, W_hh h is that of the first.
    void advance_layer(const Member& member, std::size_t l, const ManyRowsCall& call) const {
        const PackedLayer<Storage>& layer = model_.layers[l];
        const ManyRowsLayer& packed = packed_[l];
        const ManyRowsCall::Layer& own = call.layers[l];
        At at{layer, call, own, call.inputs, call.inputs_stride};
        if (l) {
            const ManyRowsCall::Layer& below = call.layers[l - 1];
            at.below = below.summed ? below.summed : below.after.h;
            at.below_stride = below.summed ? below.summed_stride : below.after.stride;
        }
        const Siblings* siblings = call.siblings;
        const Index families = siblings ? siblings->families() : call.rows;
        const auto weights = (packed.x.size() + packed.h.size()) * static_cast<Index>(sizeof(float));
        const Split split(member, call.rows, packed.h.group_panels(), weights);
        float* scratch = this->scratch(member);

        const auto before = [&](Index i) {
            return own.before.h + call.parent(siblings ? siblings->head(i) : i) * own.before.stride;
        };
        const ManyRows h = ManyRows::copied(member, families, layer.units, before, operands_[1]);
        const StepProduct<Single> of_h{h.data, h.stride, &packed.h, 0, packed.h.groups, 0, layer.units, nullptr};
        const GroupTiles tiles_of_h(families, split);
        // Few rows have the sums of several panels at once.
        const auto each_panel = [](Index first, int count, auto visit) {
            constexpr int kMost = kWidth<Single>;
            for (int done = 0; done < count; done += kMost) visit(first + done, std::min(kMost, count - done), done);
        };

        if (layer.from_table) {
            member.wait();
            const auto advance_family = [&](Index f, Index first, int count, const float* product, Index width) {
                each_panel(first, count, [&](Index unit, int units, int done) {
                    const auto visit = [&](Index i) {
                        at.advance(model_.table, i, unit, units, {nullptr, 0}, {product + done, width});
                    };
                    if (siblings) {
                        siblings->each(f, visit);
                    } else {
                        visit(f);
                    }
                });
            };
            if (split.takes_part) multiply_step(of_h, split, tiles_of_h, families, false, scratch, advance_family);
            return;
        }

        const auto embedded = [&](Index i) { return model_.embedding + call.tokens[i] * layer.inputs; };
        const ManyRows x =
            at.below ? ManyRows::standing(member, at.below, at.below_stride, call.rows, layer.inputs, operands_[0])
                     : ManyRows::copied(member, call.rows, layer.inputs, embedded, operands_[0]);
        const StepProduct<Single> of_x{x.data, x.stride, &packed.x, 0, packed.x.groups, 0, layer.inputs, packed.start};
        const GroupTiles tiles(call.rows, split);
        member.wait();
        if (!siblings) {
            if (split.takes_part)
                multiply_step(std::array{of_x, of_h}, split, tiles, call.rows, false, scratch,
                              [&](Index i, Index first, int count, const auto& products, Index width) {
                                  each_panel(first, count, [&](Index unit, int units, int done) {
                                      at.advance(nullptr, i, unit, units, {products[0] + done, width},
                                                 {products[1] + done, width});
                                  });
                              });
            return;
        }
        const Index gates = packed.h.groups;
        const auto shared = [&](Index f, Index first) { return shared_ + f * gates * layer.width() + first; };
        if (split.takes_part)
            multiply_step(of_h, split, tiles_of_h, families, false, scratch,
                          [&](Index f, Index first, int count, const float* product, Index width) {
                              for (Index gate = 0; gate < gates; ++gate)
                                  std::copy_n(product + gate * width, count, shared(f, first) + gate * layer.width());
                          });
        member.wait();
        if (split.takes_part)
            multiply_step(of_x, split, tiles, call.rows, false, scratch,
                          [&](Index i, Index first, int count, const float* sums, Index width) {
                              const float* of_parent = shared(siblings->family[static_cast<std::size_t>(i)], first);
                              each_panel(first, count, [&](Index unit, int units, int done) {
                                  at.advance(nullptr, i, unit, units, {sums + done, width},
                                             {of_parent + done, layer.width()});
                              });
                          });
    }

    const PackedModelOf<Storage>& model_;
    const std::vector<ManyRowsLayer>& packed_;
    Index deepest_ = 0, widest_ = 0, rows_ = 0;
    int gates_ = 1, members_ = 0;
    std::unique_ptr<Buffers> memory_;
    std::array<float*, 2> operands_{};  // (B, depth) x, and h before the step, as the products take them
    float* shared_ = nullptr;           // (families, G H) W_hh h
    float* scratch_ = nullptr;          // for each member
};

}  // namespace throughtime
