// One time step at a time through recurrent layers: weights packed once, states kept, tokens chosen in the same loop.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "cells.hpp"
#include "choice.hpp"
#include "weights.hpp"

namespace throughtime {

// What a model is packed from; every tensor is float, C-contiguous, and read before `pack` returns, but for the
// embedding, which is read at every step where there is no table. Null where there is none.
struct LayerSource {
    Cell cell;
    Index inputs, units;
    const float* weight_ih;  // (G H, I)
    const float* weight_hh;  // (G H, H)
    const float* bias_ih;    // (G H)
    const float* bias_hh;    // (G H)
    const float* peephole;   // (3, H) for i, f, o
    float zoneout_h, zoneout_c;  // the share of the old value that stays
};

struct ModelSource {
    std::vector<LayerSource> layers;
    bool residual;            // from the second layer on, a layer's inputs are added to its outputs
    Index vocabulary;         // 0 without embedding
    const float* embedding;   // (V, E), E the inputs of the first layer
    const float* readout;     // (V, H), H the units of the last layer; null where no logits are wanted
    const float* bias;        // (V)
};

// The tokens of a chunk; B rows, n steps.
struct Chunk {
    Index steps;
    const std::int64_t* first;  // (B) tokens to feed before the first choice, null where logits are there already
    ChoiceRule rule;
    const double* uniforms;     // (B, n)
    std::uint8_t* seen;         // (B, V) tokens that rows have, null where nobody counts; tokens fed are added
    std::uint8_t* alive;        // (B) in and out: rows that have not ended
    std::int64_t* tokens;       // (n, B) out; the end symbol where a row has ended
    std::uint8_t* went_on;      // (n, B) out: rows that have not ended with this step
    double* log_probs;          // (n, B) out; zero where a row had ended before
};

class Stepper;
class StatelessStepper;

// Packed weights: made once, read by any number of steppers, on any number of threads.
class PackedModel {
  public:
    static std::unique_ptr<PackedModel> pack(const std::string& precision, const ModelSource& source, int threads);
    virtual ~PackedModel() = default;
    // It reads this model as long as it lives.
    virtual std::unique_ptr<Stepper> stepper() const = 0;
    // The same; null where weights are stored in a way that it does not know.
    virtual std::unique_ptr<StatelessStepper> stateless_stepper() const = 0;
    virtual Index vocabulary_size() const = 0;
    virtual Index bytes() const = 0;  // of weights that a step reads
    virtual bool has_table() const = 0;
    virtual bool has_readout() const = 0;
};

// What `advance` is told; a state is h (·, H) and c (·, H), null where the cell has none, of each layer.
struct AdvanceCall {
    struct State {
        float* h;
        float* c;
    };
    Index rows;
    const std::int64_t* tokens;  // (B), or ...
    const float* inputs;         // ... (B, I)
    const std::int64_t* picked;  // (B) which of the parents each row goes on from
    std::vector<State> before;   // of the parents
    std::vector<State> after;    // (B) out
    float* outputs;              // (B, H) of the last layer, out; null without residual connections, where it is h
};

// Steps of any rows, whose states stand outside: one call at a time.
class StatelessStepper {
  public:
    virtual ~StatelessStepper() = default;
    virtual void advance(const AdvanceCall& call, int threads) = 0;
};

// Rows on their way through a model: their states, and the logits after their last step. One thread at a time.
class Stepper {
  public:
    virtual ~Stepper() = default;
    // Begins anew, with states of zero.
    virtual void begin(Index rows) = 0;
    virtual Index rows() const = 0;
    // T steps of all rows, without their outputs but the last.
    virtual void read(const std::int64_t* tokens, Index steps, int threads) = 0;    // tokens (T, B)
    virtual void feed(const float* inputs, int threads) = 0;                        // inputs (B, I)
    virtual void outputs(float* to) const = 0;                                      // (B, H) of the last layer
    virtual void logits(float* to, bool normalised, int threads) = 0;               // (B, V)
    virtual Index generate(const Chunk& chunk, int threads) = 0;                    // steps made
    // Row i becomes what row indices[i] was.
    virtual void reorder(const std::int64_t* indices, Index rows) = 0;
    virtual bool has_logits() const = 0;
    // h (B, H), or with `memory` c (B, H), of a layer; false where the cell has none.
    virtual bool copy_state(Index layer, bool memory, float* to) const = 0;
    virtual bool set_state(Index layer, bool memory, const float* from) = 0;
};

// Fewer bytes of weights than this for each thread, and it costs more to wake it than it saves.
inline constexpr Index kThreadBytes = Index{384} << 10;
inline int worthwhile(Index bytes, int threads) {
    return static_cast<int>(std::clamp<Index>(bytes / kThreadBytes, 1, threads));
}
// So few rows wait for the weights, and not the weights for them.
inline constexpr Index kFewRows = 8;
// From so many rows on the weights wait for the rows, and a step's products are those of many_rows.hpp.
inline constexpr Index kManyRows = 16;
// States of a row come this many rows before it is advanced.
inline constexpr Index kRowsAhead = 6;
// A prompt is read in blocks of about so many rows, steps times sequences: what the inputs contribute is one product.
inline constexpr Index kReadRows = 32;
// A table of what each token contributes to the first layer is made up to this size; beyond, making it takes longer
// than it saves in a text of some hundred tokens.
inline constexpr Index kTableBytes = Index{64} << 20;

}  // namespace throughtime
