// The best few of many candidates, in an order in which no two are equal.
#pragma once

#include <algorithm>

#include "problem.hpp"

namespace throughtime {

// The best candidates so far: in order where they are few, else a heap with the worst in front. A candidate tells
// whether it `is_better` than another, and is worse than all others as `none()`.
template <class Candidate>
class Best {
  public:
    Best(Candidate* candidates, Index count) : all_(candidates), count_(count) {}

    void clear() const { std::fill_n(all_, count_, Candidate::none()); }

    Candidate worst() const { return all_[is_sorted() ? count_ - 1 : 0]; }

    // Takes in a candidate that is better than the worst one, in whose place it comes.
    void take(Candidate candidate) const {
        if (!is_sorted()) {
            std::pop_heap(all_, all_ + count_, is_better);
            all_[count_ - 1] = candidate;
            std::push_heap(all_, all_ + count_, is_better);
            return;
        }
        Index place = count_ - 1;
        for (; place > 0 && candidate.is_better(all_[place - 1]); --place) all_[place] = all_[place - 1];
        all_[place] = candidate;
    }

    void merge(const Best& other) const {
        for (Index i = 0; i < count_; ++i)
            if (other.all_[i].is_better(worst())) take(other.all_[i]);
    }

    // To be called last.
    void sort() const {
        if (!is_sorted()) std::sort_heap(all_, all_ + count_, is_better);
    }

  private:
    static bool is_better(const Candidate& a, const Candidate& b) { return a.is_better(b); }
    bool is_sorted() const { return count_ <= 64; }

    Candidate* all_;
    Index count_;
};

}  // namespace throughtime
