// The loss of a readout at each position, −log softmax(W h + b)[target], and its gradients, without the logits.
//
// Logits are made for kLossPositions positions and kLossWords words at a time, turned: (word, position), so that the
// lanes of a vector are positions. Forward: the highest logit and the sum of exponentials go along as words come by;
// what stays is one number for each position, log Σ exp. Backward: the same logits once more, from them
// p − [word = target] times the position's gradient, and at once what that adds to the gradients of h, W and b.
//
// So training computes four products, where holding all logits takes three. To make the gradients in the forward pass
// already, for few positions and all words at a time, takes three too, and was not done: for V = 33,000 and H = 650, the
// logits of R positions (V R numbers) stand beside the gradient of W (V H numbers), and within an eighth of what all
// logits and their gradients take, R may be 100. The 86 MB of that gradient, and of W, are then read and written for
// every 100 positions, which costs more time than the fourth product. Besides, it knows the sum of all losses only;
// here each position has a loss and a gradient of its own. Where logits are few, `logits` keeps them for the backward
// pass, which spares the fourth product; who calls decides.
//
// Positions whose target is `ignored` are left out of every product. Sums are in ascending order of words or of
// positions, whatever the threads: results do not depend on their number.
#pragma once

#include <cmath>
#include <limits>

#include "functions.hpp"
#include "problem.hpp"

namespace throughtime {

inline constexpr Index kLossPositions = 1120;
inline constexpr Index kLossWords = 896;

// Every buffer is C-contiguous. N positions, H units, V words. Null where there is none.
template <class Number>
struct Loss {
    using Real = Number;
    Index positions, units, words;
    const Real* h;                // (N, H)
    const Real* weight;           // (V, H)
    const Real* bias;             // (V)
    const std::int64_t* targets;  // (N), each in [0, V) or `ignored`
    std::int64_t ignored;

    Real* nats;        // (N); zero where the target is ignored
    Real* normaliser;  // (N), log Σ exp of the logits
    Real* logits;      // (V, N): W h, the positions that count in the first columns, zeros in the others
};

// Null results are not wanted.
template <class Number>
struct LossGradients {
    using Real = Number;
    const Real* nats;  // (N)

    Real* h;       // (N, H)
    Real* weight;  // (V, H)
    Real* bias;    // (V)
};

// What both directions share: the positions that count, in blocks, and the words, in waves.
template <class Format>
class LossPass {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

    LossPass(const Loss<Real>& loss, int threads) : loss_(loss) {
        for (Index i = 0; i < loss.positions; ++i)
            if (loss.targets[i] != loss.ignored) places_.push_back(i);
        blocks_ = ceil_divide(counted(), kLossPositions);
        waves_ = ceil_divide(loss.words, kLossWords);
        next_ = std::vector<std::atomic<Index>>(static_cast<std::size_t>(blocks_ * (waves_ + 1) * kPhases));
        const Index most = std::min(counted(), kLossPositions);
        const Index most_words = std::min(loss.words, kLossWords);
        stride_ = padded_stride<Plain<Real>>(most);
        tile_ = buffers_.template take<Real>(most_words * stride_);
        positions_ = buffers_.template take<Packed>(Panels<Format>{loss.units, 1, most}.size());
        scratch_ = buffers_.template take<Packed>(threads * kScratchOfA<Format>);
        gathered_ = buffers_.template take<Real>(threads * kWidth<Format> * loss.units);
        bias_ = loss.bias;
        if (!bias_) {
            Real* zeros = buffers_.template take<Real>(loss.words);
            std::fill_n(zeros, loss.words, Real(0));
            bias_ = zeros;
        }
    }

  protected:
    static constexpr Index kPhases = 5;

    // Numbers [begin, end) of something.
    struct Range {
        Index begin, end;
        Index count() const { return end - begin; }
    };

    Index counted() const { return static_cast<Index>(places_.size()); }
    // Where the i-th position that counts stands among all.
    Index place(Index i) const { return places_[static_cast<std::size_t>(i)]; }
    std::int64_t target(Index i) const { return loss_.targets[place(i)]; }
    const Real* h_row(Index i) const { return loss_.h + place(i) * loss_.units; }
    Range positions_of(Index block) const {
        return {counted() * block / blocks_, counted() * (block + 1) / blocks_};
    }
    Range words_of(Index wave) const { return {loss_.words * wave / waves_, loss_.words * (wave + 1) / waves_}; }
    // A block's positions (columns) at a wave's words (rows): kept logits, or the tile.
    struct View {
        Real* data;
        Index stride;
        Real* row(Index word_of_wave) const { return data + word_of_wave * stride; }
    };
    View tile() const { return {tile_, stride_}; }
    View logits(Range block, Range wave) const {
        if (!loss_.logits) return tile();
        return {loss_.logits + wave.begin * loss_.positions + block.begin, loss_.positions};
    }
    // The pieces of work handed out so far in one phase; wave `waves_` is what comes before a block's waves.
    std::atomic<Index>& next(Index block, Index wave, Index phase) {
        return next_[static_cast<std::size_t>((block * (waves_ + 1) + wave) * kPhases + phase)];
    }
    Packed* scratch(const Member& member) const { return scratch_ + member.index * kScratchOfA<Format>; }

    // hᵀ of a block's positions as the second factor of the logits.
    void pack_positions(const Member& member, std::atomic<Index>& next, Range block) {
        const Index h = loss_.units;
        const Panels<Format> all{h, 1, block.count(), positions_};
        Real* rows = gathered_ + member.index * kWidth<Format> * h;
        for (Index p = next++; p < all.panels(); p = next++) {
            const Panels<Format> one{h, 1, all.panel_columns(p), all.panel(p)};
            for (Index j = 0; j < one.columns; ++j)
                std::copy_n(h_row(block.begin + all.first_column(p) + j), h, rows + j * h);
            pack_weight_rows(one, 0, rows);
        }
    }

    // W h of a wave's words and a block's positions, without b.
    void multiply_logits(const Member& member, std::atomic<Index>& next, Range block, Range wave) {
        const View to = logits(block, wave);
        const auto weight = [&](Index i) { return loss_.weight + (wave.begin + i) * loss_.units; };
        const Panels<Format> positions{loss_.units, 1, block.count(), positions_};
        multiply<Format>(
            member, next, wave.count(), RowsOfA<Format, decltype(weight)>{weight}, positions,
            [&](Index i) { return to.row(i); }, false, nullptr, scratch(member));
    }

    const Loss<Real> loss_;
    std::vector<Index> places_;
    Index blocks_, waves_;
    const Real* bias_;  // (V)
    Buffers buffers_;

  private:
    std::vector<std::atomic<Index>> next_;
    Index stride_;       // between rows of the tile
    Real* tile_;         // (words of a wave, stride), a block's positions in each row
    Packed* positions_;  // the panels of hᵀ
    Packed* scratch_;    // (threads, kScratchOfA)
    Real* gathered_;     // (threads, kWidth, H)
};

template <class Format>
class LossForward : LossPass<Format> {
  public:
    using Base = LossPass<Format>;
    using typename Base::Range;
    using typename Base::Real;

    LossForward(const Loss<Real>& loss, int threads)
        : Base(loss, threads),
          highest_(static_cast<std::size_t>(this->counted()), std::numeric_limits<Real>::lowest()),
          sums_(static_cast<std::size_t>(this->counted()), 0.0),
          at_target_(static_cast<std::size_t>(this->counted())) {}

    void run(const Member& member) {
        for (Index b = 0; b < this->blocks_; ++b) {
            const Range block = this->positions_of(b);
            this->pack_positions(member, this->next(b, this->waves_, 0), block);
            member.wait();
            for (Index w = 0; w < this->waves_; ++w) {
                const Range wave = this->words_of(w);
                this->multiply_logits(member, this->next(b, w, 0), block, wave);
                member.wait();
                auto& next = this->next(b, w, 1);
                const Index groups = ceil_divide(block.count(), kGroup);
                for (Index group = next++; group < groups; group = next++) {
                    const Index begin = block.begin + group * kGroup;
                    take_in(block, wave, {begin, std::min(begin + kGroup, block.end)});
                }
                member.wait();
            }
        }
    }

    // To be called when all members have returned.
    void finish() {
        const Loss<Real>& loss = this->loss_;
        std::fill_n(loss.nats, loss.positions, Real(0));
        std::fill_n(loss.normaliser, loss.positions, Real(0));
        for (Index v = 0; loss.logits && v < loss.words; ++v)
            std::fill_n(loss.logits + v * loss.positions + this->counted(), loss.positions - this->counted(), Real(0));
        for (Index i = 0; i < this->counted(); ++i) {
            const auto n = static_cast<std::size_t>(i);
            const double normaliser = static_cast<double>(highest_[n]) + std::log(sums_[n]);
            loss.normaliser[this->place(i)] = static_cast<Real>(normaliser);
            loss.nats[this->place(i)] = static_cast<Real>(normaliser - static_cast<double>(at_target_[n]));
        }
    }

  private:
    static constexpr int kVectors = 4;
    static constexpr Index kGroup = kVectors * kLanes<Real>;  // positions that are taken together
    static constexpr Index kRows = 64;                        // their logits stay in the first cache

    // Carries the highest logit and the sum of exponentials of some positions over a wave's words.
    void take_in(Range block, Range wave, Range group) {
        const auto logits = this->logits(block, wave);
        const Real* bias = this->bias_ + wave.begin;
        const Index first = group.begin - block.begin;
        Vector<Real> highest[kVectors], sums[kVectors];
        for (int i = 0; i < kVectors; ++i) {
            highest[i] = broadcast(std::numeric_limits<Real>::lowest());
            sums[i] = Vector<Real>{};
        }
        for (Index v0 = 0; v0 < wave.count(); v0 += kRows) {
            const Index v1 = std::min(v0 + kRows, wave.count());
            for (int i = 0; i * kLanes<Real> < group.count(); ++i) {
                const Index j = first + i * kLanes<Real>;
                const int columns = static_cast<int>(block.count() - j);
                Vector<Real> most = highest[i];
                for (Index v = v0; v < v1; ++v) {
                    const Vector<Real> logit = load(logits.row(v) + j, columns) + bias[v];
                    most = select<Real>(logit > most, logit, most);
                }
                Vector<Real> sum = {};
                for (Index v = v0; v < v1; ++v) sum += exponential(load(logits.row(v) + j, columns) + bias[v] - most);
                sums[i] = sums[i] * exponential(highest[i] - most) + sum;
                highest[i] = most;
            }
        }
        for (Index i = group.begin; i < group.end; ++i) {
            const auto n = static_cast<std::size_t>(i);
            const Index j = i - group.begin;
            add(n, highest[j / kLanes<Real>][j % kLanes<Real>], sums[j / kLanes<Real>][j % kLanes<Real>]);
            const Index v = this->target(i) - wave.begin;
            if (0 <= v && v < wave.count()) at_target_[n] = logits.row(v)[i - block.begin] + bias[v];
        }
    }

    // Adds a wave's part to a position's sum of exponentials, which is relative to its highest logit.
    void add(std::size_t n, Real highest, Real sum) {
        const Real before = highest_[n];
        if (highest > before) {
            sums_[n] *= std::exp(static_cast<double>(before) - static_cast<double>(highest));
            highest_[n] = highest;
        }
        const double lower = static_cast<double>(highest) - static_cast<double>(highest_[n]);
        sums_[n] += static_cast<double>(sum) * std::exp(lower);
    }

    std::vector<Real> highest_;    // (positions that count), the highest logit so far
    std::vector<double> sums_;     // Σ exp(logit − highest)
    std::vector<Real> at_target_;  // the target's logit
};

template <class Format>
class LossBackward : LossPass<Format> {
  public:
    using Base = LossPass<Format>;
    using typename Base::Packed;
    using typename Base::Range;
    using typename Base::Real;

    LossBackward(const Loss<Real>& loss, const LossGradients<Real>& gradients, int threads)
        : Base(loss, threads), gradients_(gradients) {
        const Index most = std::min(this->counted(), kLossPositions);
        if (gradients.weight) rows_ = this->buffers_.template take<Packed>(of_rows({0, most}).size());
        if (gradients.h)
            weight_ = this->buffers_.template take<Packed>(of_weight({0, std::min(loss.words, kLossWords)}).size());
        for (Index i = 0; i < this->counted(); ++i) {
            normaliser_.push_back(loss.normaliser[this->place(i)]);
            scale_.push_back(gradients.nats[this->place(i)]);
        }
        for (Index i = 0; gradients.h && i < loss.positions; ++i)
            if (loss.targets[i] == loss.ignored) std::fill_n(gradients.h + i * loss.units, loss.units, Real(0));
        if (this->blocks_) return;
        if (gradients.weight) std::fill_n(gradients.weight, loss.words * loss.units, Real(0));
        if (gradients.bias) std::fill_n(gradients.bias, loss.words, Real(0));
    }

    void run(const Member& member) {
        const bool kept = this->loss_.logits;
        for (Index b = 0; b < this->blocks_; ++b) {
            const Range block = this->positions_of(b);
            if (!kept) this->pack_positions(member, this->next(b, this->waves_, 0), block);
            if (gradients_.weight) pack_rows_of(this->next(b, this->waves_, 1), of_rows(block), [&](Index i) {
                return this->h_row(block.begin + i);
            });
            member.wait();
            for (Index w = 0; w < this->waves_; ++w) {
                const Range wave = this->words_of(w);
                if (gradients_.h) pack_rows_of(this->next(b, w, 0), of_weight(wave), [&](Index i) {
                    return this->loss_.weight + (wave.begin + i) * this->loss_.units;
                });
                if (!kept) {
                    this->multiply_logits(member, this->next(b, w, 1), block, wave);
                    member.wait();
                }
                derive(this->next(b, w, 2), b, block, wave);
                member.wait();
                multiply_gradients(member, b, w, block, wave);
                member.wait();
            }
        }
    }

  private:
    static constexpr Index kRows = 32;  // words of one piece of `derive`

    Panels<Format> of_rows(Range block) const { return {block.count(), 1, this->loss_.units, rows_}; }
    Panels<Format> of_weight(Range wave) const { return {wave.count(), 1, this->loss_.units, weight_}; }

    template <class Row>
    static void pack_rows_of(std::atomic<Index>& next, const Panels<Format>& panels, Row row) {
        for (Index p = next++; p < panels.panels(); p = next++) pack_rows(panels, p, row);
    }

    // The gradient of the logits into the tile, and of b.
    void derive(std::atomic<Index>& next, Index b, Range block, Range wave) {
        const auto from = this->logits(block, wave), to = this->tile();
        const Real* bias = this->bias_ + wave.begin;
        const Real* scale = scale_.data() + block.begin;
        const Index pieces = ceil_divide(wave.count(), kRows);
        for (Index piece = next++; piece < pieces; piece = next++) {
            const Range words = {piece * kRows, std::min((piece + 1) * kRows, wave.count())};
            std::array<Real, kRows> sums;
            for (Index v = words.begin; v < words.end; ++v)
                sums[static_cast<std::size_t>(v - words.begin)] = derive_row(block, bias[v], from.row(v), to.row(v));
            for (Index j = 0; j < block.count(); ++j) {
                const Index v = this->target(block.begin + j) - wave.begin;
                if (v < words.begin || v >= words.end) continue;
                to.row(v)[j] -= scale[j];
                sums[static_cast<std::size_t>(v - words.begin)] -= scale[j];
            }
            if (!gradients_.bias) continue;
            for (Index v = words.begin; v < words.end; ++v) {
                const Real sum = sums[static_cast<std::size_t>(v - words.begin)];
                Real& gradient = gradients_.bias[wave.begin + v];
                gradient = b ? gradient + sum : sum;
            }
        }
    }

    // p times the positions' gradients, of one word; returns their sum.
    Real derive_row(Range block, Real bias, const Real* logits, Real* to) const {
        const Real* normaliser = normaliser_.data() + block.begin;
        const Real* scale = scale_.data() + block.begin;
        Vector<Real> sums = {};
        for (Index j = 0; j < block.count(); j += kLanes<Real>) {
            const int columns = static_cast<int>(block.count() - j);
            const Vector<Real> p = exponential(load(logits + j, columns) + bias - load(normaliser + j, columns));
            const Vector<Real> gradient = p * load(scale + j, columns);  // lanes past the block: a scale of zero
            store(to + j, gradient, columns);
            sums += gradient;
        }
        return sum<Real>(sums);
    }

    void multiply_gradients(const Member& member, Index b, Index w, Range block, Range wave) {
        const Index h = this->loss_.units;
        const auto row = [tile = this->tile()](Index i) { return tile.row(i); };
        if (gradients_.weight) {
            multiply<Format>(
                member, this->next(b, w, 3), wave.count(), RowsOfA<Format, decltype(row)>{row}, of_rows(block),
                [&](Index i) { return gradients_.weight + (wave.begin + i) * h; }, b > 0, nullptr,
                this->scratch(member));
        }
        if (gradients_.h) {
            multiply<Format>(
                member, this->next(b, w, 4), block.count(), ColumnsOfA<Format, decltype(row)>{row}, of_weight(wave),
                [&](Index i) { return gradients_.h + this->place(block.begin + i) * h; }, w > 0,
                nullptr, this->scratch(member));
        }
    }

    const LossGradients<Real> gradients_;
    Packed* rows_ = nullptr;        // the panels of h (positions of a block, H)
    Packed* weight_ = nullptr;      // the panels of W (words of a wave, H)
    std::vector<Real> normaliser_;  // (positions that count)
    std::vector<Real> scale_;       // (positions that count), the gradient of their loss
};

template <class Format>
void run_loss_forward(const Loss<typename Format::Real>& loss, int threads) {
    LossForward<Format> pass(loss, threads);
    run_together(threads, [&](const Member& member) { pass.run(member); });
    pass.finish();
}

template <class Format>
void run_loss_backward(const Loss<typename Format::Real>& loss, const LossGradients<typename Format::Real>& gradients,
                       int threads) {
    LossBackward<Format> pass(loss, gradients, threads);
    run_together(threads, [&](const Member& member) { pass.run(member); });
}

}  // namespace throughtime
