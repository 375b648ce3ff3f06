// A model's rows, advanced one step or one block of steps at a time by a team of threads.
#pragma once

#include "many_rows_step.hpp"

namespace throughtime {

// One layer's rows; H padded. A block has up to S steps.
struct LayerRows {
    float* h;        // (B, H) the state
    float* c;        // (B, H)
    float* before;   // (B, H) the state before a block, as the product of few rows reads it
    float* outputs;  // (S, B, H); of many rows, the state itself
    float* summed;   // (S, B, H) outputs plus inputs, null without residual connection
    float* ahead;    // (B, G H) W_hh h of the next step, of few rows, where it is known

    const float* results() const { return summed ? summed : outputs; }
};

template <class Storage>
class StepperOf : public Stepper {
  public:
    explicit StepperOf(const PackedModelOf<Storage>& model) : model_(model) { begin(1); }

    void begin(Index rows) override {
        if (!state_ || rows != state_->rows) state_ = std::make_unique<State>(model_, rows);
        state_->clear(model_);
        siblings_.clear();
        paired_since_ = turn_;
        has_logits_ = false;
    }

    Index rows() const override { return state_->rows; }
    bool has_logits() const override { return has_logits_; }

    void read(const std::int64_t* tokens, Index steps, int threads) override {
        const Index block = state_->block;
        const Index rows = state_->rows;
        last_ = (steps - 1) % block;
        in_pairs_ = steps == 1 && rows <= kFewRows;
        together(rows * std::min(block, steps), threads, [&](const Member& member) {
            for (Index t = 0; t < steps; t += block) {
                const Index now = std::min(block, steps - t);
                look_up(member, tokens + t * rows, now);
                advance(member, tokens + t * rows, now, t);
                member.wait();
            }
            if (model_.has_readout()) read_out(member, last_);
        });
        count_steps(steps);
        has_logits_ = model_.has_readout();
    }

    void feed(const float* inputs, int threads) override {
        const PackedLayer<Storage>& first = model_.layers.front();
        const Index stride = padded(first.inputs);
        for (Index b = 0; b < rows(); ++b)
            std::copy(inputs + b * first.inputs, inputs + (b + 1) * first.inputs, state_->inputs + b * stride);
        in_pairs_ = rows() <= kFewRows;
        together(rows(), threads, [&](const Member& member) { advance(member, nullptr, 1, 0); });
        count_steps(1);
        last_ = 0;
    }

    void outputs(float* to) const override {
        const PackedLayer<Storage>& layer = model_.layers.back();
        const float* from = state_->layers.back().results() + last_ * rows() * layer.width();
        copy_rows(from, layer.width(), layer.units, to);
    }

    void logits(float* to, bool normalised, int threads) override {
        const Index width = model_.readout.width();
        const Index vocabulary = model_.vocabulary;
        const auto copy = [&](const Member& member) {
            for (Index b = member.index; b < rows(); b += member.count) {
                const float* from = state_->logits + b * width;
                float* row = to + b * vocabulary;
                if (!normalised) {
                    std::copy(from, from + vocabulary, row);
                    continue;
                }
                const double total = thread(member).chooser.log_total(from);
                for (Index i = 0; i < vocabulary; ++i) row[i] = static_cast<float>(static_cast<double>(from[i]) - total);
            }
        };
        together(rows(), rows() > 1 ? threads : 1, copy);
    }

    Index generate(const Chunk& chunk, int threads) override {
        const Index rows = state_->rows;
        Index made = 0;
        std::int64_t* fed = state_->tokens;
        if (chunk.first) std::copy(chunk.first, chunk.first + rows, fed);
        in_pairs_ = rows <= kFewRows;
        const Index waiting = chunk.first ? 0 : 1;  // the first choice needs no step
        together(rows, threads, [&](const Member& member) {
            for (Index i = 0; i < chunk.steps; ++i) {
                if (i > 0 || chunk.first) {
                    look_up(member, fed, 1);
                    advance(member, fed, 1, i - waiting);
                    read_out(member, 0);
                    member.wait();
                }
                for (Index b = member.index; b < rows; b += member.count) choose(chunk, i, b, thread(member).chooser);
                member.wait();
                if (member.index == 0) made = i + 1;
                if (std::all_of(chunk.alive, chunk.alive + rows, [](std::uint8_t alive) { return !alive; })) break;
            }
        });
        count_steps(std::max<Index>(0, made - waiting));
        last_ = 0;
        has_logits_ = true;
        return made;
    }

    void reorder(const std::int64_t* indices, Index rows) override {
        auto next = std::move(state_);
        if (!spare_ || spare_->rows != rows) spare_ = std::make_unique<State>(model_, rows);
        state_ = std::move(spare_);
        for (std::size_t l = 0; l < model_.layers.size(); ++l) {
            const Index width = model_.layers[l].width();
            const LayerRows &from = next->layers[l], &to = state_->layers[l];
            for (Index i = 0; i < rows; ++i) {
                for (const auto& [old, now] : {std::pair{from.h, to.h}, {from.c, to.c}, {from.h, to.before}})
                    if (now) std::copy(old + indices[i] * width, old + (indices[i] + 1) * width, now + i * width);
                const Index wide = model_.layers[l].h.width();
                if (from.ahead && to.ahead)
                    std::copy(from.ahead + indices[i] * wide, from.ahead + (indices[i] + 1) * wide, to.ahead + i * wide);
            }
        }
        if (std::max(next->rows, rows) > kFewRows) paired_since_ = turn_;
        spare_ = std::move(next);
        has_logits_ = false;
        siblings_.clear();
        if (is_many(rows)) siblings_.find(indices, rows);
    }

    bool copy_state(Index layer, bool memory, float* to) const override {
        const PackedLayer<Storage>& packed = model_.layers[static_cast<std::size_t>(layer)];
        const LayerRows& own = state_->layers[static_cast<std::size_t>(layer)];
        if (memory && packed.cell != Cell::kLstm) return false;
        copy_rows(memory ? own.c : own.h, packed.width(), packed.units, to);
        return true;
    }

    bool set_state(Index layer, bool memory, const float* from) override {
        const PackedLayer<Storage>& packed = model_.layers[static_cast<std::size_t>(layer)];
        const LayerRows& own = state_->layers[static_cast<std::size_t>(layer)];
        if (memory && packed.cell != Cell::kLstm) return false;
        siblings_.clear();
        for (Index b = 0; b < rows(); ++b) {
            const float* row = from + b * packed.units;
            std::copy(row, row + packed.units, (memory ? own.c : own.h) + b * packed.width());
            if (!memory && !is_many(rows())) std::copy(row, row + packed.units, own.before + b * packed.width());
        }
        paired_since_ = turn_;
        has_logits_ = false;
        return true;
    }


  private:
    // What depends on the number of rows.
    struct State {
        State(const PackedModelOf<Storage>& model, Index rows_)
            : rows(rows_), block(is_many(rows_) ? 1 : std::max<Index>(1, kReadRows / std::max<Index>(1, rows_))) {
            Index most = 0;
            for (const PackedLayer<Storage>& layer : model.layers) {
                const Index width = layer.width();
                const bool sums = model.residual && !layers.empty();
                const auto take = [&](Index count) { return zeros(count * width); };
                float* h = take(rows);
                layers.push_back({h, take(rows), is_many(rows) ? nullptr : take(rows), is_many(rows) ? h : take(block * rows),
                                  sums ? take(block * rows) : nullptr,
                                  rows <= kFewRows ? zeros(rows * layer.h.width()) : nullptr});
                if (!layer.from_table) most = std::max(most, layer.h.width());
            }
            if (!model.layers.front().from_table) inputs = zeros(block * rows * padded(model.layers.front().inputs));
            if (!is_many(rows)) scratch = zeros(block * rows * most);
            if constexpr (!Storage::kQuantised)
                if (is_many(rows)) many = std::make_unique<ManyRowsStep<Storage>>(model);
            if (model.vocabulary) tokens = memory.template take<std::int64_t>(rows);
            if (!model.has_readout()) return;
            logits = memory.template take<float>(rows * model.readout.width());
            std::fill_n(logits, rows * model.readout.width(), -std::numeric_limits<float>::infinity());
        }

        void clear(const PackedModelOf<Storage>& model) {
            for (std::size_t l = 0; l < layers.size(); ++l)
                for (float* state : {layers[l].h, layers[l].c, layers[l].before})
                    if (state) std::fill(state, state + rows * model.layers[l].width(), 0.0f);
        }

        float* zeros(Index count) {
            float* values = memory.template take<float>(count);
            std::fill(values, values + count, 0.0f);
            return values;
        }

        Buffers memory;
        Index rows, block;
        std::vector<LayerRows> layers;
        float* inputs = nullptr;   // (S, B, I padded)
        float* scratch = nullptr;  // (S, B, G H padded, the most of any layer) what the inputs contribute
        float* logits = nullptr;   // (B, V padded)
        std::unique_ptr<ManyRowsStep<Storage>> many;  // of many rows
        std::int64_t* tokens = nullptr;  // (B) fed next
    };

    // What each thread has for itself.
    struct Thread {
        Thread(const PackedModelOf<Storage>& model, Index room_) : room(room_) {
            product = memory.template take<float>(room * kPanelSums * kBlock);
            if constexpr (Storage::kQuantised) {
                Index widest = 0;
                for (const PackedLayer<Storage>& layer : model.layers)
                    widest = std::max({widest, padded(layer.inputs), layer.width()});
                operands = memory.template take<typename Storage::Operand>(room * widest);
                scales = memory.template take<float>(room);
            }
            if (model.has_readout()) chooser.prepare(memory, model.vocabulary, model.readout.width());
        }

        Buffers memory;
        Index room;      // for rows of a block
        float* product;  // (B, columns of a panel)
        typename Storage::Operand* operands = nullptr;
        float* scales = nullptr;
        Chooser chooser;
    };

    static bool is_many(Index rows) { return !Storage::kQuantised && rows >= kManyRows; }

    Thread& thread(const Member& member) { return *threads_[static_cast<std::size_t>(member.index)]; }

    // Runs `work` on as many threads as it is worth.
    template <class Work>
    void together(Index rows, int threads, Work work) {
        const Index bytes = model_.bytes() * std::max<Index>(1, rows / 4);
        const int count = worthwhile(bytes, threads);
        const Index room = state_->rows * state_->block;
        if (!threads_.empty() && threads_.front()->room < room) threads_.clear();
        while (static_cast<int>(threads_.size()) < count)
            threads_.push_back(std::make_unique<Thread>(model_, room));
        if constexpr (!Storage::kQuantised)
            if (state_->many) state_->many->prepare(state_->rows, count);
        run_together(count, work);
    }

    void count_steps(Index steps) {
        turn_ += steps;
        siblings_.clear();
        if (!in_pairs_) paired_since_ = turn_;
    }

    void copy_rows(const float* from, Index stride, Index columns, float* to) const {
        for (Index b = 0; b < rows(); ++b) std::copy(from + b * stride, from + b * stride + columns, to + b * columns);
    }

    // Where there is no table: the embeddings of a block's tokens.
    void look_up(const Member& member, const std::int64_t* tokens, Index steps) const {
        const PackedLayer<Storage>& first = model_.layers.front();
        if (first.from_table) return;
        for (Index i = member.index; i < steps * rows(); i += member.count) {
            const float* from = model_.embedding + tokens[i] * first.inputs;
            std::copy(from, from + first.inputs, state_->inputs + i * padded(first.inputs));
        }
        member.wait();
    }

    Operands<Storage> operands(const Member& member, const float* from, Index width, Index count) {
        if constexpr (Storage::kQuantised) {
            Thread& own = thread(member);
            for (Index i = 0; i < count; ++i)
                own.scales[i] = quantise(from + i * width, width, own.operands + i * width);
            return {own.operands, width, own.scales};
        } else {
            (void)member;
            return {from, width, nullptr};
        }
    }

    // A member's panels, first to last or, with `back`, last to first.
    template <class Visit>
    static void each_panel(const Member& member, Index panels, bool back, Visit visit) {
        const Index first = panels * member.index / member.count;
        const Index end = panels * (member.index + 1) / member.count;
        for (Index i = first; i < end; ++i) visit(back ? first + end - 1 - i : i);
    }

    // All layers over a block of steps. Members must have waited for each other before the next block.
    //
    // Steps one at a time, of few rows, wait for the weights: where these are more than a core's own cache holds, what
    // counts is how often each is read from beyond. So each layer multiplies by W_hh twice in a row at every other step,
    // there and back: for this step, and ahead for the next one; and W_ih is read in one direction at even steps and in
    // the other at odd ones. Neighbouring layers take turns, so that a W_ih too is read twice with little in between.
    void advance(const Member& member, const std::int64_t* tokens, Index steps, Index turn) {
        const bool single = in_pairs_;
        for (std::size_t l = 0; l < model_.layers.size(); ++l) {
            const PackedLayer<Storage>& layer = model_.layers[l];
            const LayerRows& own = state_->layers[l];
            if constexpr (!Storage::kQuantised) {
                if (is_many(rows())) {
                    if (l == 0) state_->many->advance(member, many_call(tokens, turn));
                    continue;
                }
            }
            const Index time = turn_ + turn;
            const Index phase = time + static_cast<Index>(l);
            if (!layer.from_table) contribute(member, l, steps, single && time % 2);
            for (Index s = 0; s < steps; ++s) {
                if (!single) {
                    step(member, l, s, tokens);
                } else if (phase % 2 && time > paired_since_) {
                    each_panel(member, layer.h.panels(), false, [&](Index p) {
                        advance_panel(l, s, p, tokens, {own.ahead + layer.h.place(p), layer.h.width()});
                    });
                } else {
                    step_and_keep(member, l, tokens);
                }
                member.wait();
            }
            if (single && phase % 2 == 0) look_ahead(member, l);
            each_panel(member, layer.h.panels(), false, [&](Index p) {
                for (Index b = 0; b < rows(); ++b) {
                    const Index at = b * layer.width() + layer.first_unit(p);
                    std::copy(own.h + at, own.h + at + layer.panel_units(p), own.before + at);
                }
            });
        }
    }

    // A step of many rows, in their place.
    ManyRowsCall many_call(const std::int64_t* tokens, Index turn) const {
        ManyRowsCall call{rows(), tokens, state_->inputs, padded(model_.layers.front().inputs), {}, nullptr};
        for (std::size_t l = 0; l < model_.layers.size(); ++l) {
            const LayerRows& own = state_->layers[l];
            const Index width = model_.layers[l].width();
            const StateRows rows{own.h, is_lstm(model_.layers[l].cell) ? own.c : nullptr, width};
            call.layers.push_back({rows, rows, own.summed, width});
        }
        if (turn == 0 && siblings_.families() > 0) call.siblings = &siblings_;
        return call;
    }

    // scratch = start + W_ih x for the member's panels and all rows of a block.
    void contribute(const Member& member, std::size_t l, Index steps, bool back) {
        const PackedLayer<Storage>& layer = model_.layers[l];
        const PackedMatrix<Storage>& x = layer.x;
        const Index count = steps * rows();
        const float* from = l ? state_->layers[l - 1].results() : state_->inputs;
        const auto a = operands(member, from, padded(layer.inputs), count);
        each_panel(member, x.panels(), back, [&](Index p) {
            multiply_panel(x, p, count, a, layer.start + x.place(p), state_->scratch + x.place(p), x.width());
        });
    }

    // Step s of a block, of layer l, for the member's panels, where the inputs have contributed: W_hh h and the cell.
    void step(const Member& member, std::size_t l, Index s, const std::int64_t* tokens) {
        const PackedLayer<Storage>& layer = model_.layers[l];
        const LayerRows& own = state_->layers[l];
        const Index rows_before = (s - 1) * rows() * layer.width();
        const auto a = operands(member, s ? own.outputs + rows_before : own.before, layer.width(), rows());
        float* product = thread(member).product;
        each_panel(member, layer.h.panels(), false, [&](Index p) {
            const Index columns = layer.h.vectors(p) * kBlock;
            multiply_panel(layer.h, p, rows(), a, nullptr, product, columns);
            advance_panel(l, s, p, tokens, {product, columns});
        });
    }

    // The same for a single step, its product where `look_ahead` leaves that of the next one.
    void step_and_keep(const Member& member, std::size_t l, const std::int64_t* tokens) {
        const PackedMatrix<Storage>& h = model_.layers[l].h;
        const LayerRows& own = state_->layers[l];
        const auto a = operands(member, own.before, model_.layers[l].width(), rows());
        each_panel(member, h.panels(), false, [&](Index p) {
            multiply_panel(h, p, rows(), a, nullptr, own.ahead + h.place(p), h.width());
            advance_panel(l, 0, p, tokens, {own.ahead + h.place(p), h.width()});
        });
    }

    // W_hh h for the next step, once all members have advanced the layer.
    void look_ahead(const Member& member, std::size_t l) {
        const PackedMatrix<Storage>& h = model_.layers[l].h;
        const LayerRows& own = state_->layers[l];
        const auto a = operands(member, own.h, model_.layers[l].width(), rows());
        each_panel(member, h.panels(), true, [&](Index p) {
            multiply_panel(h, p, rows(), a, nullptr, own.ahead + h.place(p), h.width());
        });
    }

    // The cell, and the residual connection, for the units of panel p at step s of a block; `product` is W_hh h of all
    // rows.
    void advance_panel(std::size_t l, Index s, Index p, const std::int64_t* tokens, StridedSums product) const {
        const PackedLayer<Storage>& layer = model_.layers[l];
        const PackedMatrix<Storage>& h = layer.h;
        const Index units = layer.panel_units(p);
        for (Index i = s * rows(); i < (s + 1) * rows(); ++i) {
            const float* inputs = layer.from_table ? model_.table + tokens[i] * h.width() : state_->scratch + i * h.width();
            const LayerRows& own = state_->layers[l];
            const Index first = layer.first_unit(p);
            const Index at = i % rows() * layer.width() + first;
            const StateUnits state{own.h + at, own.c + at, own.outputs + i * layer.width() + first};
            for (const float* place : {state.h, state.c, state.h_out})
                come_near<1>(place + kRowsAhead * layer.width(), units);
            advance_units(layer, p, first, static_cast<int>(units), {inputs + h.place(p), units},
                          {product.values + (i - s * rows()) * product.stride, units}, state);
            if (own.summed) add_inputs(l, i * layer.width() + first, units);
        }
    }

    // Layers with a residual connection have one size, so that the inputs stand where the outputs do.
    void add_inputs(std::size_t l, Index at, Index count) const {
        const float* inputs = state_->layers[l - 1].results() + at;
        const LayerRows& own = state_->layers[l];
        for (Index i = 0; i < count; ++i) own.summed[at + i] = own.outputs[at + i] + inputs[i];
    }

    // Logits after step s of the last block.
    void read_out(const Member& member, Index s) {
        const PackedLayer<Storage>& last = model_.layers.back();
        const float* from = state_->layers.back().results() + s * rows() * last.width();
        const PackedMatrix<Storage>& matrix = model_.readout;
        if constexpr (!Storage::kQuantised) {
            if (is_many(rows())) return read_out_many(member, from);
        }
        const auto a = operands(member, from, last.width(), rows());
        each_panel(member, matrix.panels(), false, [&](Index p) {
            multiply_panel(matrix, p, rows(), a, model_.readout_start + matrix.place(p),
                           state_->logits + matrix.place(p), matrix.width());
        });
    }

    void read_out_many(const Member& member, const float* from) {
        const ManyColumns& columns = model_.readout_of_many();
        const PackedLayer<Storage>& last = model_.layers.back();
        const ManyRows h = ManyRows::standing(member, from, last.width(), rows(), last.units, state_->many->room());
        member.wait();
        const Index width = model_.readout.width();
        float* scratch = state_->many->scratch(member);
        const Index first = columns.blocks() * member.index / member.count;
        const Index end = columns.blocks() * (member.index + 1) / member.count;
        for (Index block = first; block < end; ++block) {
            const Index at = block * ManyColumns::kColumns;
            const Index count = std::min(ManyColumns::kColumns, width - at);
            columns.each_row(h, block, 0, rows(), scratch, [&](Index row, const float* sums) {
                std::copy_n(sums, count, state_->logits + row * width + at);
            });
        }
    }

    // Step i of a chunk for row b.
    void choose(const Chunk& chunk, Index i, Index b, Chooser& chooser) {
        const Index rows = state_->rows;
        const Index vocabulary = model_.vocabulary;
        std::uint8_t* seen = chunk.seen ? chunk.seen + b * vocabulary : nullptr;
        if (seen && (i > 0 || chunk.first)) seen[state_->tokens[b]] = 1;
        if (!chunk.alive[b]) {
            chunk.log_probs[i * rows + b] = 0;
            state_->tokens[b] = chunk.rule.end;
        } else {
            const Choice choice = chooser.choose(state_->logits + b * model_.readout.width(), seen,
                                                 chunk.uniforms[b * chunk.steps + i], chunk.rule);
            chunk.log_probs[i * rows + b] = choice.log_prob;
            chunk.alive[b] = choice.token != chunk.rule.end;
            state_->tokens[b] = choice.token;
        }
        chunk.went_on[i * rows + b] = chunk.alive[b];
        chunk.tokens[i * rows + b] = state_->tokens[b];
    }

    const PackedModelOf<Storage>& model_;
    std::unique_ptr<State> state_;
    std::unique_ptr<State> spare_;  // of the last reordering
    std::vector<std::unique_ptr<Thread>> threads_;
    Index turn_ = 0;           // steps made
    bool in_pairs_ = false;    // whether the steps now made look ahead
    Index paired_since_ = 0;   // all steps since this one have looked ahead in their turn
    Index last_ = 0;           // the last step within its block
    bool has_logits_ = false;
    Siblings siblings_;
};

template <class Storage>
class StatelessStepperOf : public StatelessStepper {
  public:
    explicit StatelessStepperOf(const PackedModelOf<Storage>& model) : model_(model), step_(model) {}

    void advance(const AdvanceCall& call, int threads) override {
        const Index bytes = model_.bytes() * std::max<Index>(1, call.rows / 4);
        const int members = worthwhile(bytes, threads);
        step_.prepare(call.rows, members);
        ManyRowsCall many{call.rows, call.tokens, call.inputs, model_.layers.front().inputs, {}, call.picked};
        Buffers memory;
        for (std::size_t l = 0; l < model_.layers.size(); ++l) {
            const Index units = model_.layers[l].units;
            float* summed = nullptr;
            if (l && model_.residual)
                summed = l + 1 == model_.layers.size() ? call.outputs : memory.template take<float>(call.rows * units);
            many.layers.push_back({{call.before[l].h, call.before[l].c, units}, {call.after[l].h, call.after[l].c, units},
                                   summed, units});
        }
        siblings_.find(call.picked, call.rows);
        if (siblings_.families()) many.siblings = &siblings_;
        run_together(members, [&](const Member& member) { step_.advance(member, many); });
    }

  private:
    const PackedModelOf<Storage>& model_;
    ManyRowsStep<Storage> step_;
    Siblings siblings_;
};

template <class Storage>
std::unique_ptr<StatelessStepper> PackedModelOf<Storage>::stateless_stepper() const {
    if constexpr (Storage::kQuantised) {
        return nullptr;
    } else {
        return std::make_unique<StatelessStepperOf<Storage>>(*this);
    }
}

template <class Storage>
std::unique_ptr<Stepper> PackedModelOf<Storage>::stepper() const {
    return std::make_unique<StepperOf<Storage>>(*this);
}

}  // namespace throughtime
