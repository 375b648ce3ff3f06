// Products of a few rows with weights that stay packed: what one time step at a time needs.
//
// The weights of a matrix stand in panels of up to kPanelSums vectors of columns, in the order in which a step reads
// them, so that one row by a panel is one stream through memory with enough sums under way. A panel holds the same units
// of all groups (gates): after its product, the units can be advanced without asking for another panel.
// Every sum runs over depth in ascending order, whatever the rows beside it and whichever thread: a result depends
// neither on the number of rows nor on that of threads.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "formats.hpp"
#include "problem.hpp"

namespace throughtime {

inline constexpr int kBlock = kLanes<float>;  // columns of one vector of sums
inline constexpr int kPanelSums = 8;          // vectors of a panel, at most
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kMostSums = 24;  // of 32 registers
inline constexpr int kMostRows = 6;
#else
inline constexpr int kMostSums = 12;  // of 16 registers
inline constexpr int kMostRows = 4;
#endif

inline Index padded(Index columns) { return round_up(columns, kBlock); }

// -- How weights are stored -------------------------------------------------------------------------------------------
//
// A storage has: Stored, what a weight becomes; Operand, what an element of a row becomes; Sums, a vector of kBlock
// sums; kUnit, how many neighbours in depth stand together in a lane, at `place`; kParts, in how many goes they are
// multiplied; and, where weights are not quantised, `real`, what a stored one stands for.

struct StoredSingle {
    using Stored = float;
    using Operand = float;
    using Sums = Vector<float>;
    static constexpr int kUnit = 1, kParts = 1;
    static constexpr bool kQuantised = false;

    static constexpr int place(int k) { return k; }
    static Sums operand(const Operand* a, int) { return broadcast(*a); }
    static Sums weights(const Stored* b, int) { return load(b); }
    static Sums multiply_add(Sums c, Sums a, Sums b) { return c + a * b; }
    static float real(Stored weight) { return weight; }
};

// Weights rounded to bfloat16, widened again where they are used: rows and sums stay float. Of a pair in depth the first
// is the low half of a lane. A step of one row waits for memory, so that the narrower storage is what counts.
struct StoredBfloat16 {
    using Stored = std::uint16_t;
    using Operand = float;
    using Sums = Vector<float>;
    static constexpr int kUnit = 2, kParts = 2;
    static constexpr bool kQuantised = false;

    static constexpr int place(int k) { return k; }
    static Sums operand(const Operand* a, int part) { return broadcast(a[part]); }
    static Sums weights(const Stored* b, int part) {
        Integers<float> pairs;
        std::memcpy(&pairs, b, sizeof pairs);
        return bits_to_real<float>(part == 0 ? pairs << 16 : pairs & ~0xffff);
    }
    static Sums multiply_add(Sums c, Sums a, Sums b) { return c + a * b; }
    static float real(Stored weight) { return std::bit_cast<float>(static_cast<std::uint32_t>(weight) << 16); }
};

// Weights as whole numbers of -127..127 times a scale for each column, rows as whole numbers of that range times a scale
// for each row: W[j] a = s_j s Σ_k w_jk q_k with s_j = max_k |W_jk| / 127, w_jk = round(W_jk / s_j), and s and q so from
// a. The sum is exact in 32 bits, on every instruction set the same.
struct StoredBytes {
    using Stored = std::int8_t;
    using Sums = Integers<float>;
    static constexpr int kUnit = 4;
    static constexpr bool kQuantised = true;
    static constexpr Index kMostDepth = 66000;  // 255 · 127 · depth is below 2^31
#if defined(__AVX512VNNI__)
    // The instruction takes unsigned rows: q + 128, and 128 Σ w is taken off the sum's start.
    using Operand = std::uint8_t;
    static constexpr int kParts = 1;
    static constexpr int kOffset = 128;

    static Sums operand(const Operand* a, int) { return broadcast_four_bytes(a); }
    static Sums weights(const Stored* b, int) { return load_lanes(b); }
    static Sums multiply_add(Sums c, Sums a, Sums b) {
        return (Sums)intrinsics::dot_bytes((__m512i)c, (__m512i)a, (__m512i)b);
    }
    static constexpr int place(int k) { return k; }
#elif defined(__x86_64__)
    // Pairs of 16 bits: first the weights in even places of a lane, which are the unit's first two, then those in odd.
    using Operand = std::int16_t;
    using Shorts __attribute__((vector_size(kVectorBytes))) = std::int16_t;
    static constexpr int kParts = 2;
    static constexpr int kOffset = 0;

    static Sums operand(const Operand* a, int part) { return broadcast_four_bytes(a + 2 * part); }
    static Sums weights(const Stored* b, int part) {
        const Shorts bytes = (Shorts)load_lanes(b);
        return (Sums)(part == 0 ? (bytes << 8) >> 8 : bytes >> 8);
    }
    static Sums multiply_add(Sums c, Sums a, Sums b) {
        return c + (Sums)intrinsics::multiply_pairs((IntegerRegister)a, (IntegerRegister)b);
    }
    static constexpr int place(int k) { return k % 2 * 2 + k / 2; }
#else
    using Operand = std::int32_t;
    static constexpr int kParts = 4;
    static constexpr int kOffset = 0;

    static Sums operand(const Operand* a, int part) { return a[part] - Sums{}; }
    static Sums weights(const Stored* b, int part) { return (load_lanes(b) << (24 - 8 * part)) >> 24; }
    static Sums multiply_add(Sums c, Sums a, Sums b) { return c + a * b; }
    static constexpr int place(int k) { return k; }
#endif

    static void put(Operand* to, Integers<float> q) {
        const auto narrow = __builtin_convertvector(q + kOffset, Narrow);
        std::memcpy(to, &narrow, sizeof narrow);
    }

  private:
    using Narrow __attribute__((vector_size(kBlock * sizeof(Operand)))) = Operand;
#if defined(__AVX512F__)
    using IntegerRegister = __m512i;
#elif defined(__AVX2__)
    using IntegerRegister = __m256i;
#elif defined(__x86_64__)
    using IntegerRegister = __m128i;
#endif
    static Sums load_lanes(const Stored* b) {
        Sums lanes;
        std::memcpy(&lanes, b, sizeof lanes);
        return lanes;
    }
    static Sums broadcast_four_bytes(const void* from) {
        std::int32_t four;
        std::memcpy(&four, from, sizeof four);
        return four - Sums{};
    }
};

// -- Rows -------------------------------------------------------------------------------------------------------------

// The bits of the largest absolute value: of a row that holds a NaN, a NaN's. `count` is a multiple of kBlock.
inline float largest_magnitude(const float* row, Index count) {
    Integers<float> most = {};
    for (Index i = 0; i < count; i += kBlock) {
        const Integers<float> bits = real_to_bits<float>(load(row + i)) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    std::int32_t largest = 0;
    for (int lane = 0; lane < kBlock; ++lane) largest = std::max(largest, most[lane]);
    return std::bit_cast<float>(largest);
}

// A row of `count` elements, a multiple of kBlock, as whole numbers; returns their scale.
inline float quantise(const float* row, Index count, StoredBytes::Operand* to) {
    const float most = largest_magnitude(row, count);
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (Index i = 0; i < count; i += kBlock) {
        constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number, in the low bits
        const Vector<float> shifted = load(row + i) * inverse + kRound;
        StoredBytes::put(to + i, real_to_bits<float>(shifted) - std::bit_cast<std::int32_t>(kRound));
    }
    return most / 127.0f;
}

// Rows as the product takes them: element k of row r at [r · stride + k], zero from the matrix's depth up to a multiple
// of kBlock.
template <class Storage>
struct Operands {
    const typename Storage::Operand* data;
    Index stride;
    const float* scales;  // of each row, where they are quantised
};

// -- Matrices ---------------------------------------------------------------------------------------------------------

// B (depth, groups · columns), the transpose of weights (groups · columns, depth): (panel, depth / kUnit, group, block of
// columns, column, kUnit). Columns are filled up to whole blocks with zeros.
template <class Storage>
struct PackedMatrix {
    using Stored = typename Storage::Stored;
    Index depth = 0;
    int groups = 1;
    Index columns = 0;  // of one group
    Stored* data = nullptr;
    float* scales = nullptr;          // (panel, group, block, column), where they are quantised
    std::int32_t* offsets = nullptr;  // likewise: where the sums start

    Index units() const { return ceil_divide(depth, Storage::kUnit); }
    Index blocks() const { return ceil_divide(columns, kBlock); }
    Index panel_blocks() const { return std::max(1, kPanelSums / groups); }
    Index panels() const { return ceil_divide(blocks(), panel_blocks()); }
    Index first_block(Index p) const { return p * panel_blocks(); }
    int blocks_of(Index p) const { return static_cast<int>(std::min(panel_blocks(), blocks() - first_block(p))); }
    int vectors(Index p) const { return groups * blocks_of(p); }
    // Where panel p begins in a row of values of all columns, padded.
    Index place(Index p) const { return first_block(p) * groups * kBlock; }
    Index width() const { return groups * blocks() * kBlock; }
    Index size() const { return units() * Storage::kUnit * width(); }
    Index bytes() const { return size() * static_cast<Index>(sizeof(Stored)); }
    Stored* panel(Index p) const { return data + units() * Storage::kUnit * place(p); }

    template <class Memory>
    void take(Memory& memory) {
        data = memory.template take<Stored>(size());
        if (!Storage::kQuantised) return;
        scales = memory.template take<float>(width());
        offsets = memory.template take<std::int32_t>(width());
    }

    // Calls visit(place within the panel's vectors, weight's row or -1) for each column of panel p.
    template <class Visit>
    void each_column(Index p, Visit visit) const {
        for (int group = 0; group < groups; ++group) {
            for (Index j = 0; j < blocks_of(p) * kBlock; ++j) {
                const Index column = first_block(p) * kBlock + j;
                visit(group * blocks_of(p) * kBlock + j, column < columns ? group * columns + column : -1);
            }
        }
    }

    // Calls visit(group, block of columns, panel, place of the block within the panel's columns) for each block.
    template <class Visit>
    void each_block(Visit visit) const {
        for (Index group = 0; group < groups; ++group) {
            for (Index block = 0; block < blocks(); ++block) {
                const Index p = block / panel_blocks();
                visit(group, block, p, (group * blocks_of(p) + block - first_block(p)) * kBlock);
            }
        }
    }

    // What stands in panel p for element k of depth and the column at this place within it.
    float weight(Index p, Index k, Index at) const {
        constexpr Index kUnit = Storage::kUnit;
        const Index line = vectors(p) * kBlock;
        return Storage::real(panel(p)[(k / kUnit * line + at) * kUnit + Storage::place(static_cast<int>(k % kUnit))]);
    }

    // Packs panel p of `weight` (groups · columns, depth).
    void pack(Index p, const float* weight) const {
        constexpr Index kUnit = Storage::kUnit;
        Stored* to = panel(p);
        const Index line = vectors(p) * kBlock;
        each_column(p, [&](Index at, Index row) {
            const float* from = row < 0 ? nullptr : weight + row * depth;
            const auto put = [&](auto value) {
                for (Index k = 0; k < units() * kUnit; ++k)
                    to[(k / kUnit * line + at) * kUnit + Storage::place(static_cast<int>(k % kUnit))] =
                        from && k < depth ? value(from[k]) : Stored{};
            };
            if constexpr (Storage::kQuantised) {
                float most = 0;
                for (Index k = 0; from && k < depth; ++k)
                    if (std::isnan(from[k]) || std::fabs(from[k]) > most) most = std::fabs(from[k]);  // a NaN stays
                // What is not finite stays so by the scale.
                const float inverse = most > 0 && std::isfinite(most) ? 127.0f / most : 0.0f;
                std::int32_t sum = 0;
                put([&](float w) {
                    const auto whole = static_cast<Stored>(inverse > 0 ? std::nearbyint(w * inverse) : 0.0f);
                    sum += whole;
                    return whole;
                });
                scales[place(p) + at] = most / 127.0f;
                offsets[place(p) + at] = -Storage::kOffset * sum;
            } else if constexpr (std::is_same_v<Stored, float>) {
                put([](float w) { return w; });
            } else {
                put(to_bfloat16);
            }
        });
    }

    // Values of each column, (groups · columns) in `from`, in the order of panel p; `rest` where there is no column.
    void pack_values(Index p, const float* from, float rest, float* to) const {
        each_column(p, [&](Index at, Index row) { to[place(p) + at] = row < 0 ? rest : from[row]; });
    }
};

// -- The product ------------------------------------------------------------------------------------------------------

// Some vectors of a panel by a tile of rows.
template <class Storage>
struct PanelCall {
    Index units;
    Operands<Storage> a;           // from the tile's first row on
    const typename Storage::Stored* b;
    Index line;                    // weights between units
    const float* scales;
    const std::int32_t* offsets;
    const float* start;            // what is added, null for zero
    float* out;                    // the first row's
    Index out_stride;
};

template <class Storage, int Rows, int Vectors>
void panel_kernel(const PanelCall<Storage>& call) {
    using Sums = typename Storage::Sums;
    constexpr int kBlockStored = kBlock * Storage::kUnit;
    Sums sums[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            sums[r][v] = Sums{};
            if constexpr (Storage::kQuantised) std::memcpy(&sums[r][v], call.offsets + v * kBlock, sizeof(Sums));
        }
    const typename Storage::Operand* a = call.a.data;
    const typename Storage::Stored* b = call.b;
    const Index stride = call.a.stride;
    for (Index unit = 0; unit < call.units; ++unit) {
#pragma GCC unroll 4
        for (int part = 0; part < Storage::kParts; ++part) {
            Sums of_a[Rows];
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) of_a[r] = Storage::operand(a + r * stride, part);
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                Sums of_b = Storage::weights(b + v * kBlockStored, part);
                // Several rows share it: read anew for each, the sums would wait for the first cache.
                if constexpr (Rows > 1) intrinsics::keep_in_register(of_b);
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r) sums[r][v] = Storage::multiply_add(sums[r][v], of_a[r], of_b);
            }
        }
        a += Storage::kUnit;
        b += call.line;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            Vector<float> value;
            if constexpr (Storage::kQuantised) {
                const Vector<float> scale = load(call.scales + v * kBlock) * call.a.scales[r];
                value = __builtin_convertvector(sums[r][v], Vector<float>) * scale;
            } else {
                value = sums[r][v];
            }
            if (call.start) value += load(call.start + v * kBlock);
            store(call.out + r * call.out_stride + v * kBlock, value);
        }
    }
}

inline constexpr int vectors_at_once(int rows) { return std::min(kPanelSums, kMostSums / rows); }

template <class Storage>
using PanelKernel = void (*)(const PanelCall<Storage>&);

template <class Storage, int Rows, int... Vector>
constexpr auto kernels_of_rows(std::integer_sequence<int, Vector...>) {
    return std::array<PanelKernel<Storage>, kPanelSums>{panel_kernel<Storage, Rows, Vector + 1>...};
}

template <class Storage, int... Row>
constexpr auto kernels_of(std::integer_sequence<int, Row...>) {
    return std::array<std::array<PanelKernel<Storage>, kPanelSums>, sizeof...(Row)>{
        kernels_of_rows<Storage, Row + 1>(std::make_integer_sequence<int, vectors_at_once(Row + 1)>{})...};
}

// out = start + a B for panel p and a tile of rows; start and out begin with the panel's first column.
template <class Storage>
inline void multiply_tile(const PackedMatrix<Storage>& b, Index p, int rows, Operands<Storage> a, const float* start,
                          float* out, Index out_stride) {
    static constexpr auto kernels = kernels_of<Storage>(std::make_integer_sequence<int, kMostRows>{});
    const int vectors = b.vectors(p);
    const int most = vectors_at_once(rows);
    for (int v = 0; v < vectors; v += most) {
        const int now = std::min(most, vectors - v);
        PanelCall<Storage> call{};
        call.units = b.units();
        call.a = a;
        call.line = vectors * kBlock * Storage::kUnit;
        call.b = b.panel(p) + v * kBlock * Storage::kUnit;
        if (Storage::kQuantised) {
            call.scales = b.scales + b.place(p) + v * kBlock;
            call.offsets = b.offsets + b.place(p) + v * kBlock;
        }
        call.start = start ? start + v * kBlock : nullptr;
        call.out = out + v * kBlock;
        call.out_stride = out_stride;
        kernels[static_cast<std::size_t>(rows - 1)][static_cast<std::size_t>(now - 1)](call);
    }
}

// out = start + a B for panel p and all rows; start and out begin with the panel's first column.
template <class Storage>
inline void multiply_panel(const PackedMatrix<Storage>& b, Index p, Index rows, Operands<Storage> a, const float* start,
                           float* out, Index out_stride) {
    const Index tiles = ceil_divide(rows, kMostRows);
    for (Index tile = 0; tile < tiles; ++tile) {
        const Index first = rows * tile / tiles;
        const int height = static_cast<int>(rows * (tile + 1) / tiles - first);
        multiply_tile(b, p, height, {a.data + first * a.stride, a.stride, a.scales ? a.scales + first : nullptr}, start,
                      out + first * out_stride, out_stride);
    }
}

}  // namespace throughtime
