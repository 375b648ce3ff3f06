// One token from the logits of a row: throughtime.decoding.filters and the draw of throughtime.decoding.sampling, in
// their order and by their rules, in double precision.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "problem.hpp"

namespace throughtime {

// e^v for v ≤ 0, zero below -708. 1 unit in the last place: e^v = 2^n e^r with |r| ≤ ln 2 / 2 and Taylor's series.
inline Vector<double> exponential_below_zero(Vector<double> v) {
    constexpr double kRound = 6755399441055744.0;  // 1.5 · 2^52: adding it rounds to a whole number
    const Vector<double> x = clamp<double>(v, -708.0, 0.0);
    const Vector<double> shifted = x * 1.4426950408889634 + kRound;
    const Vector<double> n = shifted - kRound;
    const Vector<double> r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    Vector<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // n stands in the low bits of `shifted`; added to the exponent it multiplies by 2^n.
    const Vector<double> e = bits_to_real<double>(real_to_bits<double>(p) + (real_to_bits<double>(shifted) << 52));
    return select<double>(v < -708.0, Vector<double>{}, e);
}

// How tokens are chosen; the names and their ranges are those of throughtime.decoding.Filters.
struct ChoiceRule {
    double temperature;
    Index top_k;
    double top_p;
    double min_p;
    double repetition_penalty;
    Index end;  // the token that ends a row, -1 for none
};

struct Choice {
    Index token;
    double log_prob;  // under the model itself, before any filter
};

// Chooses among the tokens of one vocabulary; each thread has its own. Rows of logits are padded to whole vectors with
// -infinity.
class Chooser {
  public:
    void prepare(Buffers& memory, Index vocabulary, Index padded) {
        vocabulary_ = vocabulary;
        padded_ = round_up(padded, kLanes<double>);
        values_ = memory.take<double>(padded_);
        ordered_ = memory.take<std::int32_t>(vocabulary);
        largest_ = memory.take<double>(vocabulary);
    }

    // log Σ e^logit
    double log_total(const float* logits) {
        read(logits);
        const double most = largest_value();
        return most + std::log(exponentials(most));
    }

    // `seen` (V) marks the tokens of the row so far, null where nobody counts; `uniform` is in [0, 1).
    Choice choose(const float* logits, const std::uint8_t* seen, double uniform, const ChoiceRule& rule) {
        const double log_total_of_model = log_total(logits);
        const bool plain = !seen && rule.temperature == 1 && rule.top_k == 0 && rule.top_p >= 1 && rule.min_p == 0;
        if (!plain) {
            read(logits);
            if (seen) penalise(seen, rule);
            if (rule.temperature == 0) return chosen(first_of_largest(), logits, log_total_of_model);
            if (rule.temperature != 1) scale(rule.temperature);
            if (rule.top_k > 0 && rule.top_k < vocabulary_) keep_top_k(rule.top_k);
            if (rule.top_p < 1) keep_top_p(rule.top_p);
            if (rule.min_p > 0) keep_above(largest_value() + std::log(rule.min_p));
            exponentials(largest_value());
        }
        return chosen(draw(uniform), logits, log_total_of_model);
    }

  private:
    static constexpr double kNever = -std::numeric_limits<double>::infinity();

    static Choice chosen(Index token, const float* logits, double log_total) {
        return {token, static_cast<double>(logits[token]) - log_total};
    }

    void read(const float* logits) {
        for (Index i = 0; i < vocabulary_; ++i) values_[i] = static_cast<double>(logits[i]);
        for (Index i = vocabulary_; i < padded_; ++i) values_[i] = kNever;
    }

    double largest_value() const {
        Vector<double> most = load(values_);
        for (Index i = kLanes<double>; i < padded_; i += kLanes<double>) {
            const Vector<double> v = load(values_ + i);
            most = select<double>(v > most, v, most);
        }
        return largest<double>(most);
    }

    Index first_of_largest() const {
        Index best = 0;
        for (Index i = 1; i < vocabulary_; ++i)
            if (values_[i] > values_[best]) best = i;
        return best;
    }

    // Values become e^(value - most); returns their sum.
    double exponentials(double most) {
        Vector<double> total = {};
        for (Index i = 0; i < padded_; i += kLanes<double>) {
            const Vector<double> e = exponential_below_zero(load(values_ + i) - most);
            store(values_ + i, e);
            total += e;
        }
        return sum<double>(total);
    }

    void penalise(const std::uint8_t* seen, const ChoiceRule& rule) {
        for (Index i = 0; i < vocabulary_; ++i) {
            // The end of a text is no repetition: a border in the prompt must not make texts run on.
            if (!seen[i] || i == rule.end) continue;
            values_[i] = values_[i] > 0 ? values_[i] / rule.repetition_penalty : values_[i] * rule.repetition_penalty;
        }
    }

    void scale(double temperature) {
        const double most = largest_value();
        for (Index i = 0; i < padded_; ++i) values_[i] = (values_[i] - most) / temperature;
    }

    void keep_above(double least) {
        for (Index i = 0; i < vocabulary_; ++i)
            if (values_[i] < least) values_[i] = kNever;
    }

    // The k likeliest, and those as likely as the k-th: the k largest values so far stand in a heap, the least on top.
    void keep_top_k(Index k) {
        const auto greater = [](double a, double b) { return a > b; };
        std::copy(values_, values_ + k, largest_);
        std::make_heap(largest_, largest_ + k, greater);
        for (Index i = k; i < vocabulary_; ++i) {
            if (!(values_[i] > largest_[0])) continue;
            std::pop_heap(largest_, largest_ + k, greater);
            largest_[k - 1] = values_[i];
            std::push_heap(largest_, largest_ + k, greater);
        }
        keep_above(largest_[0]);
    }

    // The fewest likeliest that sum to p or more; of equals the first ones.
    void keep_top_p(double p) {
        const double most = largest_value();
        double total = 0;
        Index count = 0;
        for (Index i = 0; i < vocabulary_; ++i) {
            if (values_[i] > kNever) ordered_[count++] = static_cast<std::int32_t>(i);
        }
        std::copy(values_, values_ + vocabulary_, largest_);
        total = exponentials(most);
        const auto less = [&](std::int32_t a, std::int32_t b) {
            return largest_[a] != largest_[b] ? largest_[a] < largest_[b] : a > b;
        };
        std::make_heap(ordered_, ordered_ + count, less);
        double reached = 0;
        Index rest = count;
        while (rest > 0 && (rest == count || reached < p)) {
            std::pop_heap(ordered_, ordered_ + rest, less);
            reached += values_[ordered_[--rest]] / total;
        }
        std::copy(largest_, largest_ + vocabulary_, values_);
        for (Index i = vocabulary_; i < padded_; ++i) values_[i] = kNever;
        for (Index i = 0; i < rest; ++i) values_[ordered_[i]] = kNever;
    }

    // By inverting the cumulative distribution of the values: the first token that rises above the height, which has a
    // probability even at height 0. Only where the logits are not numbers is there none; the log-probability tells.
    Index draw(double uniform) const {
        double total = 0;
        for (Index i = 0; i < vocabulary_; ++i) total += values_[i];
        const double height = uniform * total;
        double reached = 0;
        for (Index i = 0; i < vocabulary_; ++i) {
            reached += values_[i];
            if (reached > height) return i;
        }
        return vocabulary_ - 1;
    }

    Index vocabulary_ = 0, padded_ = 0;
    double* values_ = nullptr;         // (V), padded with what is never chosen
    double* largest_ = nullptr;        // (V) scratch
    std::int32_t* ordered_ = nullptr;  // (V) scratch
};

}  // namespace throughtime
