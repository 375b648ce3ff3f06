// One cell over the steps of a batch in one direction, as Python hands it over.
#pragma once

#include <vector>

#include "gemm.hpp"

namespace throughtime {

// kLstmProjected: h(t) = R (o ⊙ tanh c). kGruBefore: the reset gate acts before the product, as in 2014.
enum class Cell { kRnnTanh, kRnnRelu, kLstm, kLstmProjected, kGru, kGruBefore };

// Every buffer is C-contiguous. T steps, B sequences, I inputs, H units, P the size of h, which is H but with a
// projection; G gates that see x; S values saved for each unit and step:
//   LSTM: i f g o, and with a projection o ⊙ tanh c; GRU: r z n, and W_n h + b_hn, or r ⊙ h where the gate acts before the
//   product; RNN: h before zoneout.
// Null where there is none.
template <class Number>
struct Problem {
    using Real = Number;
    Cell cell;
    Index steps, batch, inputs, units, state;
    bool reverse;
    const Real* x;          // (T, B, I)
    const std::int64_t* tokens;  // (T, B) where x is a row of a table: which one
    const Real* table;      // (V, G H) what each contributes, U x and the biases; then there is no x, and I is 0
    const Real* weight_ih;  // (G H, I)
    const Real* weight_hh;  // (G H, P)
    const Real* weight_hr;  // (P, H)
    const Real* bias_ih;    // (G H)
    const Real* bias_hh;    // (G H)
    const Real* peephole;   // (3, H) for i, f, o
    const Real* h_first;    // (B, P)
    const Real* c_first;    // (B, H)
    const std::int64_t* lengths;  // (B)
    const std::uint8_t* resets;   // (T, B)
    const Real* mask;       // (B, P), scales h(t-1) where it enters the product
    const Real* zoneout_h;  // (T, B, P), the share of the old value that stays
    const Real* zoneout_c;  // (T, B, H)

    Real* outputs;  // (T, B, P); zero behind a sequence's length
    Real* h_last;   // (B, P)
    Real* c_last;   // (B, H)
    Real* saved;    // (T, B, S H); null where nobody needs it and a step has one product
    Real* cells;    // (T, B, H), c(t); null where nobody needs it
};

// What a backward pass reads and writes beyond that. Null gradients are zero, null results are not wanted.
template <class Number>
struct Gradients {
    using Real = Number;
    const Real* outputs;   // (T, B, P)
    const Real* h_last;    // (B, P)
    const Real* c_last;    // (B, H)
    const Real* cells;     // (T, B, H)
    const Real* saved;     // (T, B, S H), of the gates handed out

    Real* x;          // (T, B, I)
    Real* table;      // (V, G H), zeros before
    Real* weight_ih;  // (G H, I)
    Real* weight_hh;  // (G H, P)
    Real* weight_hr;  // (P, H)
    Real* bias_ih;    // (G H)
    Real* bias_hh;    // (G H)
    Real* peephole;   // (3, H)
    Real* h_first;    // (B, P)
    Real* c_first;    // (B, H)

    // Of every step by itself, for those who ask how the gradient travels; zero behind a sequence's length, where nothing
    // is written.
    Real* sums;    // (T, B, S H), of the summed inputs; a slot for each gate that sees x, then:
                   //   GRU: of W_n h + b_hn; LSTM with a projection: of h, P values
    Real* states;  // (T, B, P), of h(t), by every way that it has to the loss
    Real* cells_of_steps;  // (T, B, H), of c(t), the same
};

inline constexpr bool is_lstm(Cell cell) { return cell == Cell::kLstm || cell == Cell::kLstmProjected; }
inline constexpr bool is_gru(Cell cell) { return cell == Cell::kGru || cell == Cell::kGruBefore; }
// In a step: W h(t-1), and R (o ⊙ tanh c) or W_n (r ⊙ h).
inline constexpr bool has_two_products(Cell cell) { return cell == Cell::kLstmProjected || cell == Cell::kGruBefore; }
inline constexpr int gates_of(Cell cell) { return is_lstm(cell) ? 4 : is_gru(cell) ? 3 : 1; }
inline constexpr int saved_of(Cell cell) {
    return cell == Cell::kLstmProjected ? 5 : is_lstm(cell) || is_gru(cell) ? 4 : 1;
}

// Which sequences run at which step. Sorted by length, the longest first, those that run are always the first ones:
// padding costs nothing. Row (s, j) is the j-th sorted sequence at its s-th step, in the order of the recurrence.
class Schedule {
  public:
    template <class Real>
    explicit Schedule(const Problem<Real>& problem)
        : batch_(problem.batch), reverse_(problem.reverse), order_(static_cast<std::size_t>(problem.batch)) {
        for (Index b = 0; b < batch_; ++b) order_[static_cast<std::size_t>(b)] = b;
        const auto length = [&](Index b) { return problem.lengths ? problem.lengths[b] : problem.steps; };
        if (problem.lengths) {
            std::stable_sort(order_.begin(), order_.end(), [&](Index a, Index b) { return length(a) > length(b); });
        }
        steps_ = batch_ ? length(order_[0]) : 0;
        offsets_.resize(static_cast<std::size_t>(steps_ + 1));
        Index running = batch_;
        for (Index s = 0; s < steps_; ++s) {
            while (running > 0 && length(order_[static_cast<std::size_t>(running - 1)]) <= s) --running;
            for (Index j = 0; j < running; ++j) {
                const Index b = order_[static_cast<std::size_t>(j)];
                rows_.push_back((reverse_ ? length(b) - 1 - s : s) * batch_ + b);
            }
            offsets_[static_cast<std::size_t>(s + 1)] = static_cast<Index>(rows_.size());
        }
    }

    Index steps() const { return steps_; }
    Index rows() const { return static_cast<Index>(rows_.size()); }
    // How many sequences run at step s.
    Index running(Index s) const { return begin(s + 1) - begin(s); }
    Index begin(Index s) const { return offsets_[static_cast<std::size_t>(s)]; }
    // Where row (s, j) stands among the T · B rows of the caller's tensors.
    Index place(Index s, Index j) const { return place(begin(s) + j); }
    Index place(Index row) const { return rows_[static_cast<std::size_t>(row)]; }
    Index sequence(Index j) const { return order_[static_cast<std::size_t>(j)]; }
    // The same sequence one step earlier in the order of the recurrence.
    Index previous(Index place) const { return reverse_ ? place + batch_ : place - batch_; }

  private:
    Index batch_, steps_ = 0;
    bool reverse_;
    std::vector<Index> order_, offsets_, rows_;
};

// Asks for large pages under memory that nobody has touched yet: faster to get, and to find one's way in.
void advise_large_pages(const void* memory, Index bytes);

// Memory on lines of the cache and, where there is much of it, on large pages. What is given back is kept for the next
// call, up to kKeptBytes: fresh memory costs the operating system longer to clear than a step of training to use.
inline constexpr Index kKeptBytes = Index{1} << 29;
void* take_memory(Index bytes);
void give_memory_back(void* memory);

// Memory for the length of one call.
class Buffers {
  public:
    Buffers() = default;
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;
    ~Buffers() {
        for (void* memory : taken_) give_memory_back(memory);
    }

    template <class Element>
    Element* take(Index count) {
        taken_.reserve(taken_.size() + 1);
        taken_.push_back(take_memory(count * static_cast<Index>(sizeof(Element))));
        return static_cast<Element*>(taken_.back());
    }

  private:
    std::vector<void*> taken_;
};

}  // namespace throughtime
