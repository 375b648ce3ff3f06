// A step's attention for the rows of a beam, and what a decoder makes of it:
//
//     α_j = softmax_j h·k_j over the positions inside,   h̃ = tanh(Σ_j α_j v_j + W h)
//
// Rows of one source look at one memory: it comes from far once for all of them. Each sum runs in one order, whatever the
// rows beside it and whichever thread.
#pragma once

#include <optional>

#include "functions.hpp"
#include "generation.hpp"
#include "packing.hpp"

namespace throughtime {

// What is looked at, of G sources with K rows each and S positions, and where results go; H numbers each. N = G K.
struct AttentionCall {
    Index sources, each, positions, units;
    const float* h;              // (N, H)
    const float* keys;           // (G, S, H)
    const float* values;         // (G, S, H)
    const std::uint8_t* inside;  // (G, S), null where all positions are
    float* outputs;              // (N, H) h̃
    float* weights;              // (N, S) α, zero outside

    Index rows() const { return sources * each; }
};

// What an encoder has made, time-major, and where keys and values go; of G sources with S positions, H numbers each.
struct MemoryCall {
    Index sources, positions, units;
    const float* outputs;        // (S, G, H) m
    const std::uint8_t* inside;  // (G, S), null where all positions are
    float* keys;                 // (G, S, H) W_a m, zero outside
    float* values;               // (G, S, H) W_c m, the same
};

// What attention looks at, made from m once for a source.
class PackedMemory {
  public:
    // of_keys: W_a, null for the unit matrix; of_values: W_c.
    PackedMemory(const float* of_keys, const float* of_values, Index units, int threads)
        : units_(units), of_values_(ManyColumns::pack(of_values, units, units, 0.0f, memory_, threads).panels) {
        if (of_keys) of_keys_ = ManyColumns::pack(of_keys, units, units, 0.0f, memory_, threads).panels;
    }

    Index units() const { return units_; }

    void remember(const MemoryCall& call, int threads) const {
        const Index all = call.sources * call.positions;
        std::vector<Index> places, outside;  // g S + j
        for (Index place = 0; place < all; ++place)
            (!call.inside || call.inside[place] ? places : outside).push_back(place);
        const Index rows = static_cast<Index>(places.size());
        const int members = worthwhile(2 * rows * units_ * static_cast<Index>(sizeof(float)), threads);
        Buffers memory;
        float* scratch = memory.take<float>(members * kScratchOfA<Single>);
        const auto output = [&](Index i) {
            const Index place = places[static_cast<std::size_t>(i)];
            return call.outputs + (place % call.positions * call.sources + place / call.positions) * units_;
        };
        const RowsOfA<Single, decltype(output)> outputs{output};
        std::atomic<Index> of_keys{0}, of_values{0};
        run_together(members, [&](const Member& member) {
            for (std::size_t i = static_cast<std::size_t>(member.index); i < outside.size();
                 i += static_cast<std::size_t>(member.count))
                for (float* to : {call.keys, call.values}) std::fill_n(to + outside[i] * units_, units_, 0.0f);
            const auto project = [&](const Panels<Single>& weight, std::atomic<Index>& next, float* to) {
                multiply<Single>(member, next, rows, outputs, weight,
                                 [&](Index i) { return to + places[static_cast<std::size_t>(i)] * units_; }, false,
                                 nullptr, scratch + member.index * kScratchOfA<Single>);
            };
            project(of_values_, of_values, call.values);
            if (of_keys_) return project(*of_keys_, of_keys, call.keys);
            for (Index i = rows * member.index / member.count; i < rows * (member.index + 1) / member.count; ++i)
                std::copy_n(output(i), units_, call.keys + places[static_cast<std::size_t>(i)] * units_);
        });
    }

  private:
    Index units_;
    Arena memory_;
    Panels<Single> of_values_;
    std::optional<Panels<Single>> of_keys_;
};

class PackedAttention {
  public:
    PackedAttention(const float* weight, Index units, int threads)
        : columns_(ManyColumns::pack(weight, units, units, 0.0f, memory_, threads)) {}

    Index units() const { return columns_.panels.depth; }

    void attend(const AttentionCall& call, int threads) const {
        const Index bytes = (columns_.panels.size() * std::max<Index>(1, call.rows() / 4) +
                             2 * call.sources * call.positions * call.units) *
                            static_cast<Index>(sizeof(float));
        const int members = worthwhile(bytes, threads);
        Buffers memory;
        float* copy = nullptr;
        if (ManyRows::compete(units())) copy = memory.take<float>(ManyRows::copy_size(call.rows(), units()));
        const Index own = round_up(call.positions, kBlock);
        float* scores = memory.take<float>(members * kMostQueries * own);
        Index* places = memory.take<Index>(members * call.positions);
        float* scratch = memory.take<float>(members * ManyColumns::scratch_size());
        run_together(members, [&](const Member& member) {
            const auto share = [&](Index count, Index i) { return count * i / member.count; };
            const ManyRows operand = ManyRows::standing(member, call.h, units(), call.rows(), units(), copy);
            Desk desk{scores + member.index * kMostQueries * own, own, places + member.index * call.positions, 0, nullptr};
            const Index end = share(call.sources, member.index + 1);
            for (Index g = share(call.sources, member.index); g < end; ++g) {
                desk.next_keys = g + 1 < end ? call.keys + (g + 1) * call.positions * call.units : nullptr;
                look(call, g, desk);
            }
            member.wait();
            each_share(member, columns_.blocks(), call.rows(), [&](Index block, Index first, Index last) {
                columns_.each_row(operand, block, first, last, scratch + member.index * ManyColumns::scratch_size(),
                                  [&](Index row, const float* sums) { combine(call, row, block, sums); });
            });
        });
    }

  private:
    // Rows of a source at once.
    static constexpr int kMostQueries = 6;
    // Vectors of a context at once.
    static constexpr int kVectors = 4;

    // What a member works on: scores (queries, stride) of the positions `places`, those inside.
    struct Desk {
        float* scores;
        Index stride;
        Index* places;
        Index count;
        const float* next_keys;  // of the source that follows, null for none
    };

    void look(const AttentionCall& call, Index g, Desk& desk) const {
        desk.count = 0;
        for (Index j = 0; j < call.positions; ++j)
            if (!call.inside || call.inside[g * call.positions + j]) desk.places[desk.count++] = j;
        const Index groups = ceil_divide(call.each, kMostQueries);
        for (Index i = 0; i < groups; ++i) {
            const Index first = call.each * i / groups, last = call.each * (i + 1) / groups;
            with_queries(static_cast<int>(last - first), [&]<int Queries>() {
                look_from<Queries>(call, g, g * call.each + first, desk);
            });
        }
    }

    template <class Run, int Queries = kMostQueries>
    static void with_queries(int queries, Run run) {
        if constexpr (Queries > 0) {
            if (queries == Queries) return run.template operator()<Queries>();
            with_queries<Run, Queries - 1>(queries, run);
        }
    }

    template <int Queries>
    void look_from(const AttentionCall& call, Index g, Index row, const Desk& desk) const {
        constexpr int kPositions = Queries <= 2 ? 8 : 4;
        const float* keys = call.keys + g * call.positions * call.units;
        const float* values = call.values + g * call.positions * call.units;
        const float* h = call.h + row * call.units;
        Index at = 0;
        for (; at + kPositions <= desk.count; at += kPositions)
            score<Queries, kPositions>(call, h, keys, values, at, desk);
        for (; at < desk.count; ++at) score<Queries, 1>(call, h, keys, values, at, desk);
        for (int q = 0; q < Queries; ++q) {
            float* weights = call.weights + (row + q) * call.positions;
            normalise(desk.scores + q * desk.stride, desk.count);
            std::fill_n(weights, call.positions, 0.0f);
            for (Index i = 0; i < desk.count; ++i) weights[desk.places[i]] = desk.scores[q * desk.stride + i];
        }
        constexpr int kStep = kVectors * kBlock;
        Index u = 0;
        for (; u + kStep <= call.units; u += kStep) gather<Queries, kVectors>(call, values, row, u, kBlock, desk);
        for (; u < call.units; u += kBlock)
            gather<Queries, 1>(call, values, row, u, static_cast<int>(std::min<Index>(kBlock, call.units - u)), desk);
    }

    // h·k_j for some rows and positions; the values of these positions come nearer meanwhile.
    template <int Queries, int Positions>
    void score(const AttentionCall& call, const float* h, const float* keys, const float* values, Index at,
               const Desk& desk) const {
        Vector<float> sums[Queries][Positions] = {};
        const float* key[Positions];
        for (int j = 0; j < Positions; ++j) key[j] = keys + desk.places[at + j] * call.units;
        const auto add = [&](Index u, auto... count) {
            Vector<float> of_h[Queries];
#pragma GCC unroll 8
            for (int q = 0; q < Queries; ++q) of_h[q] = load(h + q * call.units + u, count...);
#pragma GCC unroll 8
            for (int j = 0; j < Positions; ++j) {
                const Vector<float> of_key = load(key[j] + u, count...);
#pragma GCC unroll 8
                for (int q = 0; q < Queries; ++q) sums[q][j] += of_h[q] * of_key;
            }
        };
        Index u = 0;
        for (; u + kBlock <= call.units; u += kBlock) {
            for (int j = 0; j < Positions; ++j)
                __builtin_prefetch(values + desk.places[at + j] * call.units + u, 0, 2);
            add(u);
        }
        if (u < call.units) add(u, static_cast<int>(call.units - u));
#pragma GCC unroll 8
        for (int q = 0; q < Queries; ++q)
#pragma GCC unroll 8
            for (int j = 0; j < Positions; ++j)
                desk.scores[q * desk.stride + at + j] =
                    fold<float>(sums[q][j], [](auto a, auto b) { return a + b; });
    }

    // The softmax of `count` scores, in their place.
    static void normalise(float* scores, Index count) {
        if (!count) return;
        float highest = scores[0];
        for (Index i = 1; i < count; ++i) highest = scores[i] > highest || scores[i] != scores[i] ? scores[i] : highest;
        Vector<float> sums = {};
        for (Index i = 0; i < count; i += kBlock) {
            std::fill(scores + std::min(count, i + kBlock), scores + i + kBlock, highest);
            store(scores + i, exponential(load(scores + i) - highest));
            std::fill(scores + std::min(count, i + kBlock), scores + i + kBlock, 0.0f);
            sums += load(scores + i);
        }
        const float inverse = 1.0f / fold<float>(sums, [](auto a, auto b) { return a + b; });
        for (Index i = 0; i < count; ++i) scores[i] *= inverse;
    }

    // Σ_j α_j v_j of some units, of which the last vector has `count`.
    template <int Queries, int Vectors>
    void gather(const AttentionCall& call, const float* values, Index row, Index u, int count, const Desk& desk) const {
        Vector<float> sums[Queries][Vectors] = {};
        for (Index i = 0; i < desk.count; ++i) {
            const float* from = values + desk.places[i] * call.units + u;
            if (desk.next_keys)
                for (int v = 0; v < Vectors; ++v)
                    __builtin_prefetch(desk.next_keys + i * call.units + u + v * kBlock, 0, 2);
            Vector<float> of_values[Vectors];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v)
                of_values[v] = Vectors == 1 ? load(from, count) : load(from + v * kBlock);
#pragma GCC unroll 8
            for (int q = 0; q < Queries; ++q) {
                const Vector<float> weight = broadcast(desk.scores[q * desk.stride + i]);
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) sums[q][v] += weight * of_values[v];
            }
        }
#pragma GCC unroll 8
        for (int q = 0; q < Queries; ++q)
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                float* to = call.outputs + (row + q) * call.units + u + v * kBlock;
                if (Vectors == 1) {
                    store(to, sums[q][v], count);
                } else {
                    store(to, sums[q][v]);
                }
            }
    }

    // h̃ of a row's units in a block of columns, where its context stands.
    void combine(const AttentionCall& call, Index row, Index block, const float* sums) const {
        const Index first = block * ManyColumns::kColumns;
        const Index count = std::min(ManyColumns::kColumns, call.units - first);
        float* outputs = call.outputs + row * call.units + first;
        for (Index u = 0; u < count; u += kBlock) {
            const int n = static_cast<int>(std::min<Index>(kBlock, count - u));
            store(outputs + u, tangent(load(outputs + u, n) + load(sums + u)), n);
        }
    }

    Arena memory_;
    ManyColumns columns_;
};

}  // namespace throughtime
