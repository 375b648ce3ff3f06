// The likeliest tokens of each row, from its logits as they come: blocks of columns, never all of them in memory.
//
// Of a block of a row there stay its highest logit m and Σ e^(logit − m); from those of all blocks, in their order and
// in double precision, log Σ e^logit. The likeliest tokens go along in a list of candidates for each row and thread. So
// a result depends neither on the rows beside it nor on the number of threads.
#pragma once

#include <limits>

#include "best.hpp"
#include "functions.hpp"
#include "generation.hpp"
#include "packing.hpp"

namespace throughtime {

// What is asked for, of N rows and V tokens.
struct Ranking {
    Index rows, tokens;
    Index count;          // k, at most V, or V - 1 where there is an end
    Index end;            // a token that is not ranked, -1 for none
    double* log_p;        // (N, k), the likeliest first, of equals the first token; NaN where a row is no distribution
    std::int64_t* ids;    // (N, k)
    double* of_end;       // (N) the log-probability of `end`, null where there is none
};

struct Candidate {
    float logit;
    std::int32_t id;

    static constexpr Candidate none() {
        return {-std::numeric_limits<float>::infinity(), std::numeric_limits<std::int32_t>::max()};
    }
    bool is_better(Candidate b) const { return logit > b.logit || (logit == b.logit && id < b.id); }
};

class Ranker {
  public:
    // Columns of a block.
    static constexpr Index kColumns = ManyColumns::kColumns;

    Ranker(const Ranking& ranking, int members)
        : ranking_(ranking), blocks_(ceil_divide(ranking.tokens, kColumns)) {
        candidates_ = memory_.take<Candidate>(members * ranking.rows * ranking.count);
        parts_ = memory_.take<Part>(blocks_ * ranking.rows);
        at_end_ = memory_.take<float>(ranking.rows);
    }

    // All members call it: visit(block, first, last) is to call `take_in` for those rows.
    template <class Visit>
    void run(const Member& member, Visit visit) const {
        const auto share = [&](Index count, Index i) { return count * i / member.count; };
        for (Index row = 0; row < ranking_.rows; ++row) best(member.index, row).clear();
        each_share(member, blocks_, ranking_.rows, visit);
        member.wait();
        for (Index row = share(ranking_.rows, member.index); row < share(ranking_.rows, member.index + 1); ++row)
            finish(row, member.count);
    }

    int columns(Index block) const { return static_cast<int>(std::min(kColumns, ranking_.tokens - block * kColumns)); }

    // A row's logits in a block, with -infinity behind the last one up to a whole vector.
    void take_in(const Member& member, Index row, Index block, const float* logits) const {
        const int count = columns(block);
        Vector<float> most = load(logits);
        for (int j = kBlock; j < count; j += kBlock) most = greater<float>(most, load(logits + j));
        const float highest = fold<float>(most, greater<float>);
        Vector<float> sums = {};
        for (int j = 0; j < count; j += kBlock) sums += exponential(load(logits + j) - highest);
        parts_[block * ranking_.rows + row] = {highest, fold<float>(sums, [](auto a, auto b) { return a + b; })};
        const Index end = ranking_.end - block * kColumns;
        const bool has_end = ranking_.end >= 0 && end >= 0 && end < count;
        if (has_end) at_end_[row] = logits[end];
        const Best<Candidate> found = best(member.index, row);
        Candidate worst = found.worst();
        if (highest < worst.logit) return;
        float least = std::max(worst.logit, least_of_best(most, highest, ranking_.count + has_end));
        for (int j = 0; j < count; ++j) {
            if (!(logits[j] >= least)) continue;
            const Candidate candidate{logits[j], static_cast<std::int32_t>(block * kColumns + j)};
            if (candidate.id == ranking_.end || !candidate.is_better(worst)) continue;
            found.take(candidate);
            worst = found.worst();
            least = std::max(least, worst.logit);
        }
    }

  private:
    // Of a row's block: its highest logit, NaN where one is, and Σ e^(logit − highest).
    struct Part {
        float highest, sum;
    };

    // A logit that the `count`-th best of a block is not below, from the highest one of each lane: most others need not
    // be looked at. Equal lanes count as one, which can only lower it.
    static float least_of_best(Vector<float> most, float highest, Index count) {
        const Vector<float> none = Vector<float>{} - std::numeric_limits<float>::infinity();
        if (count > kBlock) return none[0];
        for (Index i = 1; i < count; ++i) {
            most = select<float>(most >= highest, none, most);
            highest = fold<float>(most, greater<float>);
        }
        return highest;
    }

    Best<Candidate> best(Index member, Index row) const {
        return {candidates_ + (member * ranking_.rows + row) * ranking_.count, ranking_.count};
    }

    void finish(Index row, Index members) const {
        const Normaliser normaliser = normaliser_of(row);
        const Best<Candidate> found = best(0, row);
        for (Index member = 1; member < members; ++member) found.merge(best(member, row));
        found.sort();
        const Candidate* candidates = candidates_ + row * ranking_.count;
        const bool numbers = normaliser.log_sum == normaliser.log_sum;
        for (Index i = 0; i < ranking_.count; ++i) {
            ranking_.log_p[row * ranking_.count + i] = normaliser.log_p(candidates[i].logit);
            ranking_.ids[row * ranking_.count + i] = numbers ? candidates[i].id : 0;
        }
        if (ranking_.of_end) ranking_.of_end[row] = normaliser.log_p(at_end_[row]);
    }

    // log Σ e^logit = highest + log_sum, kept apart: next to a large logit the other one would be lost.
    struct Normaliser {
        double highest, log_sum;
        double log_p(float logit) const { return (static_cast<double>(logit) - highest) - log_sum; }
    };

    // NaN where a logit is NaN, one is infinite, or all are -infinite.
    Normaliser normaliser_of(Index row) const {
        constexpr float kInfinite = std::numeric_limits<float>::infinity();
        constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
        const auto part = [&](Index block) { return parts_[block * ranking_.rows + row]; };
        float highest = -kInfinite;
        for (Index block = 0; block < blocks_; ++block) {
            const float own = part(block).highest;
            if (own != own) return {kNone, kNone};
            highest = std::max(highest, own);
        }
        if (std::fabs(highest) == kInfinite) return {kNone, kNone};
        double sum = 0;
        for (Index block = 0; block < blocks_; ++block) {
            if (part(block).highest == -kInfinite) continue;  // its sum is none
            const double below = static_cast<double>(part(block).highest) - static_cast<double>(highest);
            sum += static_cast<double>(part(block).sum) * std::exp(below);
        }
        return {static_cast<double>(highest), std::log(sum)};
    }

    const Ranking ranking_;
    Index blocks_;
    Buffers memory_;
    Candidate* candidates_;  // (members, N, k)
    Part* parts_;            // (blocks, N)
    float* at_end_;          // (N)
};

// Ranks logits (N, V) that are there.
inline void rank_logits(const Ranking& ranking, const float* logits, int threads) {
    const int members = worthwhile(ranking.rows * ranking.tokens * static_cast<Index>(sizeof(float)), threads);
    const Ranker ranker(ranking, members);
    run_together(members, [&](const Member& member) {
        ranker.run(member, [&](Index block, Index first, Index last) {
            alignas(kVectorBytes) float filled[Ranker::kColumns];
            const int columns = ranker.columns(block);
            for (Index row = first; row < last; ++row) {
                const float* from = logits + row * ranking.tokens + block * Ranker::kColumns;
                if (columns % kBlock == 0) {
                    ranker.take_in(member, row, block, from);
                    continue;
                }
                std::fill(std::copy_n(from, columns, filled), std::end(filled), -std::numeric_limits<float>::infinity());
                ranker.take_in(member, row, block, filled);
            }
        });
    });
}

// A readout c + V h, packed once, read by any number of threads.
class PackedReadout {
  public:
    PackedReadout(const float* weight, const float* bias, Index tokens, Index units, int threads)
        : columns_(ManyColumns::pack(weight, units, tokens, -std::numeric_limits<float>::infinity(), memory_, threads)) {
        std::copy_n(bias, tokens, columns_.start);
    }

    Index tokens() const { return columns_.panels.columns; }
    Index units() const { return columns_.panels.depth; }

    void logits(const float* h, Index rows, float* to, int threads) const {
        const Pass pass(*this, h, rows, threads);
        run_together(pass.members, [&](const Member& member) {
            const ManyRows all = pass.begin(member);
            const Index first = columns_.blocks() * member.index / member.count;
            const Index end = columns_.blocks() * (member.index + 1) / member.count;
            for (Index block = first; block < end; ++block) {
                const Index at = block * Ranker::kColumns;
                const Index columns = std::min(Ranker::kColumns, tokens() - at);
                pass.each_row(member, all, block, 0, rows, [&](Index row, const float* values) {
                    std::copy_n(values, columns, to + row * tokens() + at);
                });
            }
        });
    }

    void rank(const float* h, const Ranking& ranking, int threads) const {
        const Pass pass(*this, h, ranking.rows, threads);
        const Ranker ranker(ranking, pass.members);
        run_together(pass.members, [&](const Member& member) {
            const ManyRows all = pass.begin(member);
            ranker.run(member, [&](Index block, Index first, Index last) {
                pass.each_row(member, all, block, first, last,
                              [&](Index row, const float* values) { ranker.take_in(member, row, block, values); });
            });
        });
    }

  private:
    // What one call needs.
    struct Pass {
        Pass(const PackedReadout& readout_, const float* h_, Index rows_, int threads)
            : readout(readout_),
              h(h_),
              rows(rows_),
              members(worthwhile(readout_.columns_.panels.size() * static_cast<Index>(sizeof(float)) *
                                     std::max<Index>(1, rows_ / 4),
                                 threads)) {
            if (ManyRows::compete(readout.units())) copy = memory.take<float>(ManyRows::copy_size(rows, readout.units()));
            scratch = memory.take<float>(members * ManyColumns::scratch_size());
        }

        ManyRows begin(const Member& member) const {
            const ManyRows all = ManyRows::standing(member, h, readout.units(), rows, readout.units(), copy);
            if (copy) member.wait();
            return all;
        }

        // Calls visit(row, logits) for rows [first, last) of a block.
        template <class Visit>
        void each_row(const Member& member, const ManyRows& all, Index block, Index first, Index last, Visit visit) const {
            readout.columns_.each_row(all, block, first, last, scratch + member.index * ManyColumns::scratch_size(),
                                      visit);
        }

        const PackedReadout& readout;
        const float* h;
        Index rows;
        int members;
        Buffers memory;
        float* copy = nullptr;  // of h, where it is wanted
        float* scratch;         // for each member
    };

    Arena memory_;
    ManyColumns columns_;  // -infinity where they are filled up
};

}  // namespace throughtime
