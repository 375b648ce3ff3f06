// One step of beam search: which whole sequences are among a row's best, and which beginnings go on with which tokens.
// Tensors come as addresses: throughtime.kernels.native.beam, the only caller, has made sure of their types, sizes and
// layout.
#include <limits>
#include <vector>

#include "best.hpp"
#include "bindings.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

// Of B rows with K beginnings each, k tokens that may follow each, and N whole sequences.
struct BeamStep {
    Index rows, beginnings, tokens_each, kept, whole;
    double penalty_of_ends, penalty_of_choice, greatest_penalty;
    std::int64_t first_end;  // what the sequence that ends at the first beginning is called; the next one's is 1 more
    const double* scores;        // (B, K)
    const double* log_p;         // (B, K, k)
    const std::int64_t* ids;     // (B, K, k)
    const double* of_end;        // (B, K); null where none ends
    double* ranking;             // (B, N), the best first; brought up to date, as are ...
    std::int64_t* ends;          // ... (B, N)
    std::int64_t* parents;       // (B, K') out, the best first
    std::int64_t* tokens;        // (B, K') out
    double* added;               // (B, K') out
    double* scores_after;        // (B, K') out
    std::int64_t* origins;       // (B, K') out, parents among all B K
    std::uint8_t* going;         // (B) out
};

// Of equals the one in front; what is no number is the greatest, so that it cannot get lost.
struct Beginning {
    double value;
    Index place;  // j k + i

    static constexpr Beginning none() {
        return {-std::numeric_limits<double>::infinity(), std::numeric_limits<Index>::max()};
    }
    bool is_better(const Beginning& other) const {
        if (value > other.value) return true;
        if (value < other.value) return false;
        const bool none = value != value, other_none = other.value != other.value;
        return none == other_none ? place < other.place : none;
    }
};

// Of equals, the earlier stays before.
void keep_whole(const BeamStep& step, Index row) {
    double* ranking = step.ranking + row * step.whole;
    std::int64_t* ends = step.ends + row * step.whole;
    for (Index j = 0; j < step.beginnings; ++j) {
        const Index at = row * step.beginnings + j;
        const double own = (step.scores[at] + step.of_end[at]) / step.penalty_of_ends;
        Index place = step.whole;
        for (; place > 0 && own > ranking[place - 1]; --place) {
            if (place == step.whole) continue;  // the last one drops out
            ranking[place] = ranking[place - 1];
            ends[place] = ends[place - 1];
        }
        if (place == step.whole) continue;
        ranking[place] = own;
        ends[place] = step.first_end + j;
    }
}

void choose(const BeamStep& step, Index row, const Best<Beginning>& best, const Beginning* chosen) {
    const Index first = row * step.beginnings;
    best.clear();
    for (Index j = 0, place = 0; j < step.beginnings; ++j) {
        const double* log_p = step.log_p + (first + j) * step.tokens_each;
        for (Index i = 0; i < step.tokens_each; ++i, ++place) {
            const Beginning candidate{(step.scores[first + j] + log_p[i]) / step.penalty_of_choice, place};
            if (candidate.is_better(best.worst())) best.take(candidate);
        }
    }
    best.sort();
    double highest = -std::numeric_limits<double>::infinity();
    for (Index i = 0; i < step.kept; ++i) {
        const Index parent = chosen[i].place / step.tokens_each, to = row * step.kept + i;
        const Index from = first * step.tokens_each + chosen[i].place;
        step.parents[to] = parent;
        step.origins[to] = first + parent;
        step.tokens[to] = step.ids[from];
        step.added[to] = step.log_p[from];
        step.scores_after[to] = step.scores[first + parent] + step.log_p[from];
        highest = std::max(highest, step.scores_after[to] / step.greatest_penalty);
    }
    const double first_of_all = step.scores_after[row * step.kept];
    const double worst = step.ranking[(row + 1) * step.whole - 1];
    step.going[row] = first_of_all == first_of_all && highest > worst;
}

// How many rows are going on.
Index lengthen(const nb::tuple& sizes, const nb::tuple& penalties, std::int64_t first_end, const nb::dict& given) {
    const Addresses tensors(given);
    const auto size = [&](int i) { return nb::cast<Index>(sizes[i]); };
    const auto penalty = [&](int i) { return nb::cast<double>(penalties[i]); };
    const BeamStep step{size(0),
                        size(1),
                        size(2),
                        size(3),
                        size(4),
                        penalty(0),
                        penalty(1),
                        penalty(2),
                        first_end,
                        tensors.at<const double>("scores"),
                        tensors.at<const double>("log_p"),
                        tensors.at<const std::int64_t>("ids"),
                        tensors.at<const double>("of_end"),
                        tensors.at<double>("ranking"),
                        tensors.at<std::int64_t>("ends"),
                        tensors.at<std::int64_t>("parents"),
                        tensors.at<std::int64_t>("tokens"),
                        tensors.at<double>("added"),
                        tensors.at<double>("scores_after"),
                        tensors.at<std::int64_t>("origins"),
                        tensors.at<std::uint8_t>("going")};
    const nb::gil_scoped_release released;
    std::vector<Beginning> chosen(static_cast<std::size_t>(step.kept));
    const Best<Beginning> best(chosen.data(), step.kept);
    Index going = 0;
    for (Index row = 0; row < step.rows; ++row) {
        if (step.of_end) keep_whole(step, row);
        choose(step, row, best, chosen.data());
        going += step.going[row];
    }
    return going;
}

}  // namespace

void bind_beam(nb::module_& m) {
    m.def("lengthen", &lengthen, nb::arg("sizes"), nb::arg("penalties"), nb::arg("first_end"), nb::arg("tensors"),
          "One step of beam search; sizes are (B, K, k, K', N), tensors addresses by name. How many rows go on.");
}

}  // namespace throughtime
