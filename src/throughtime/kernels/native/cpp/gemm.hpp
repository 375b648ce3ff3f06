// C = A B, by one register-blocked micro-kernel on packed panels: the products of the engine, but for one_row.hpp's.
//
// B stands in panels of kWidth columns, for each panel its whole depth: (panel, depth / kUnit, kWidth, kUnit). All rows of A
// pass by the kTilePanels panels of a tile, kBlockDepth steps of depth at a time, which fit the first cache, or stream from
// the second. A stands in one of two layouts:
//   kRowMajor    (row, depth), rows `stride` apart: how activations stand in the time loop
//   kInterleaved (tile, depth / kUnit, rows of the tile, kUnit): how a transposed matrix is packed without turning it;
//                and with kUnit = 1, how it stands in memory, if the steps of depth are as far apart as its rows
// Every element of C is summed over depth in ascending order, in blocks of kBlockDepth, whatever the tiles and whichever
// thread: the result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <type_traits>
#include <utility>

#include "formats.hpp"
#include "threads.hpp"

namespace throughtime {

using Index = std::int64_t;

#if defined(__AVX512F__)
// Two panels at once: × 4 vectors = 24 sums, 4 of B, 1 of A: 29 of 32 registers. Of one panel, 14 × 2 = 28 sums would
// keep as many multipliers busy, but with 16 loads for 28 products instead of 10 for 24: where another thread shares the
// core, it is the loads that wait.
inline constexpr int kTileRows = 6;
inline constexpr int kTallRows = 14;  // of a tile of one panel alone
inline constexpr int kTilePanels = 2;
inline constexpr Index kBlockTiles = 37;
inline constexpr Index kLeastTiles = 14;
#elif defined(__aarch64__)
inline constexpr int kTileRows = 12;
inline constexpr int kTallRows = kTileRows;
inline constexpr int kTilePanels = 1;
inline constexpr Index kBlockTiles = 16;
inline constexpr Index kLeastTiles = 6;
#else
inline constexpr int kTileRows = 6;  // 16 registers
inline constexpr int kTallRows = kTileRows;
inline constexpr int kTilePanels = 1;
inline constexpr Index kBlockTiles = 16;
inline constexpr Index kLeastTiles = 6;
#endif
inline constexpr int kPanelVectors = 2;
#if defined(__AVX512BF16__)
inline constexpr Index kBlockUnits = 256;  // the second cache is as fast as these processors multiply
#else
inline constexpr Index kBlockUnits = 256 / kTilePanels;
#endif
template <class Format>
inline constexpr Index kBlockDepth = kBlockUnits * Format::kUnit;
inline constexpr Index kBlockRows = kBlockTiles * kTileRows;
inline constexpr Index kLeastRows = kLeastTiles * kTileRows;  // of a block that is smaller so that all members have one

template <class Format>
inline constexpr int kWidth = kPanelVectors * kLanes<typename Format::Real>;

inline Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }
inline Index ceil_divide(Index value, Index by) { return (value + by - 1) / by; }

enum class Layout { kRowMajor, kInterleaved };

// `rows` split into tiles of at most `most`, whose heights differ by one at most, as many for each of `groups`.
struct Tiles {
    explicit Tiles(Index rows, Index groups = 1, Index most = kTileRows)
        : count(std::min(rows, round_up(ceil_divide(rows, most), groups))), rows_(rows) {}
    Index begin(Index tile) const { return count ? rows_ * tile / count : 0; }
    int height(Index tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
    Index count;

  private:
    Index rows_;
};

// What the micro-kernel is given, for `Panels` neighbouring panels.
template <class Format>
struct TileCall {
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;
    Index units;         // depth / kUnit
    const Packed* a;     // first row's first unit
    Index stride;        // between rows of A (kRowMajor), or between its units of depth (kInterleaved)
    const Packed* b;     // first panel's first unit
    Index panel_stride;  // between panels of B
    Real* const* c;      // the tile's rows of C
    Index column;        // the first panel's first column within them
    int columns;         // of the last panel
    bool add;            // to what C holds; otherwise to `start`
    bool carry;          // go on from the sums that C holds, which has room for whole panels
    const Real* start;   // (columns) the rows' first value, null for zero
    const Packed* ahead;  // what of B to bring near meanwhile, laid out as b is; null for nothing
    Index ahead_step;     // how far that goes with each unit
};

template <class Format, Layout layout, int Rows, int Panels, int Vectors>
void tile_kernel(const TileCall<Format>& call) {
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;
    constexpr int kUnit = Format::kUnit;
    constexpr int kAll = (Panels - 1) * kPanelVectors + Vectors;
    Vector<Real> sums[Rows][kAll];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kAll; ++v) sums[r][v] = Vector<Real>{};
    if (call.carry) {
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kAll; ++v) sums[r][v] = load(call.c[r] + call.column + v * kLanes<Real>);
    }

    // Three rows share one pointer, by way of the addressing modes.
    constexpr int kPointers = (Rows + 2) / 3;
    const Packed* rows[kPointers];
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) rows[i] = call.a + 3 * i * call.stride;
    const Packed* a = call.a;
    const Packed* b = call.b;
    const Index stride = call.stride;
    const Index panel_stride = call.panel_stride;
    // C will be wanted at the end: it comes while the sums are made.
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kAll; ++v) __builtin_prefetch(call.c[r] + call.column + v * kLanes<Real>, 1);
    const Packed* ahead = call.ahead ? call.ahead : b;
    const Index ahead_step = call.ahead ? call.ahead_step : 0;
    for (Index unit = 0; unit < call.units; ++unit) {
        // Few rows keep the load ports busy with several panels: calls ahead would only take their place.
        if constexpr (Panels == 1 || Rows > 3) {
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + (Panels == 1 ? kLanes<Real> * kUnit : panel_stride), 0, 2);
            ahead += ahead_step;
        }
        typename Format::Block of_b[kAll];
#pragma GCC unroll 8
        for (int v = 0; v < kAll; ++v)
            of_b[v] = Format::load_units(b + v / kPanelVectors * panel_stride +
                                         v % kPanelVectors * kLanes<Real> * kUnit);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            const Packed* from = layout == Layout::kRowMajor ? rows[r / 3] + r % 3 * stride : a + r * kUnit;
            const typename Format::Block of_a = Format::broadcast_unit(from);
#pragma GCC unroll 8
            for (int v = 0; v < kAll; ++v) sums[r][v] = Format::multiply_add(sums[r][v], of_a, of_b[v]);
        }
        b += kWidth<Format> * kUnit;
        if constexpr (layout == Layout::kRowMajor) {
#pragma GCC unroll 16
            for (int i = 0; i < kPointers; ++i) rows[i] += kUnit;
        } else {
            a += stride;
        }
    }
    if (call.columns == Vectors * kLanes<Real>) {
        // What `call` says is read once: for all that the compiler knows, C may stand where it does.
        Real* const* const c = call.c;
        const Index column = call.column;
        const auto put = [&](auto with_before) {
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                Real* to = c[r] + column;
#pragma GCC unroll 8
                for (int v = 0; v < kAll; ++v)
                    store(to + v * kLanes<Real>, with_before(sums[r][v], to + v * kLanes<Real>, v));
            }
        };
        if (call.add) {
            put([](Vector<Real> sum, const Real* before, int) { return sum + load(before); });
        } else if (const Real* start = call.start) {
            put([start](Vector<Real> sum, const Real*, int v) { return sum + load(start + v * kLanes<Real>); });
        } else {
            put([](Vector<Real> sum, const Real*, int) { return sum; });
        }
        return;
    }
    // The last panel is not full. By way of memory, element by element: the sums above must stay in registers.
    Real tile[Rows][kAll * kLanes<Real>];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kAll; ++v) store(tile[r] + v * kLanes<Real>, sums[r][v]);
    const int columns = (Panels - 1) * kWidth<Format> + call.columns;
    for (int r = 0; r < Rows; ++r) {
        Real* c = call.c[r] + call.column;
        for (int j = 0; j < columns; ++j) {
            const Real before = call.add ? c[j] : call.start ? call.start[j] : Real(0);
            c[j] = before + tile[r][j];
        }
    }
}

// The next panel is brought near a piece with each of `calls` calls.
template <class Format>
inline void look_ahead(TileCall<Format>& call, const typename Format::Packed* next, Index index, Index calls) {
    call.ahead_step = ceil_divide(kWidth<Format> * Format::kUnit, calls);
    call.ahead = next ? next + index * call.units * call.ahead_step : nullptr;
}

template <class Format>
using TileKernel = void (*)(const TileCall<Format>&);

// Few rows leave most registers free: several panels at once then keep enough sums under way.
inline constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : kTilePanels; }

template <class Format, Layout layout, int Panels, int... Row>
constexpr auto kernel_table(std::integer_sequence<int, Row...>) {
    return std::array<std::array<TileKernel<Format>, sizeof...(Row)>, kPanelVectors>{
        {{{tile_kernel<Format, layout, Row + 1, std::min(Panels, panels_at_once(Row + 1)), 1>...}},
         {{tile_kernel<Format, layout, Row + 1, std::min(Panels, panels_at_once(Row + 1)), 2>...}}}};
}

// One tile times `panels` panels, whose columns follow one another in C. `call` is left as it was: a copy of it would be
// read back before all of its parts are written, which costs more than a small product.
template <class Format, Layout layout>
inline void multiply_tile(int rows, TileCall<Format>& call, Index panels, int last_columns) {
    constexpr auto kRows = std::make_integer_sequence<int, kTileRows>{};
    static constexpr auto one = kernel_table<Format, layout, 1>(kRows);
    static constexpr auto two = kernel_table<Format, layout, 2>(kRows);
    static constexpr auto four = kernel_table<Format, layout, 4>(kRows);
    const Index most = panels_at_once(rows);
    const auto r = static_cast<std::size_t>(rows - 1);
    for (Index done = 0; done < panels;) {
        const Index left = panels - done;
        const Index taken = left >= 4 && most >= 4 ? 4 : left >= 2 && most >= 2 ? 2 : 1;
        call.columns = left == taken ? last_columns : kWidth<Format>;
        const auto vectors = static_cast<std::size_t>((call.columns - 1) / kLanes<typename Format::Real>);
        (taken == 4 ? four : taken == 2 ? two : one)[vectors][r](call);
        done += taken;
        call.b += taken * call.panel_stride;
        call.column += taken * kWidth<Format>;
        if (call.start) call.start += taken * kWidth<Format>;
    }
    call.b -= panels * call.panel_stride;
    call.column -= panels * kWidth<Format>;
    if (call.start) call.start -= panels * kWidth<Format>;
}

// One tile of up to kTallRows rows times one whole panel.
template <class Format, Layout layout>
inline void multiply_tall(int rows, TileCall<Format>& call) {
    static constexpr auto kernels = kernel_table<Format, layout, 1>(std::make_integer_sequence<int, kTallRows>{});
    call.columns = kWidth<Format>;
    kernels[kPanelVectors - 1][static_cast<std::size_t>(rows - 1)](call);
}

// -- B ----------------------------------------------------------------------------------------------------------------

// B (depth, groups · columns) in panels; each group (a gate) begins a panel of its own.
template <class Format>
struct Panels {
    using Packed = typename Format::Packed;
    Index depth = 0;
    Index groups = 1;
    Index columns = 0;  // of one group
    Packed* data = nullptr;

    Index units() const { return ceil_divide(depth, Format::kUnit); }
    Index panel_size() const { return units() * Format::kUnit * kWidth<Format>; }
    Index group_panels() const { return ceil_divide(columns, kWidth<Format>); }
    Index panels() const { return groups * group_panels(); }
    Index size() const { return panels() * panel_size(); }
    Packed* panel(Index p) const { return data + p * panel_size(); }
    Index first_column(Index p) const {
        return p / group_panels() * columns + p % group_panels() * kWidth<Format>;
    }
    int panel_columns(Index p) const {
        return static_cast<int>(std::min<Index>(kWidth<Format>, columns - p % group_panels() * kWidth<Format>));
    }
    // The same, the last vector filled up.
    int whole_columns(Index p) const {
        return static_cast<int>(round_up(panel_columns(p), kLanes<typename Format::Real>));
    }
};

// Rows in memory often begin pages apart, where no core looks ahead by itself.
template <class Real>
inline void prefetch(const Real* from, Index count) {
    for (Index i = 0; i < count; i += 64 / static_cast<Index>(sizeof(Real))) __builtin_prefetch(from + i);
}

// A block of units, whatever its type, to where they stand packed.
template <class Format>
inline void store_units(typename Format::Packed* to, const typename Format::Block& units) {
    std::memcpy(to, &units, sizeof units);
}

// Numbers that follow one another in depth, as many as there are.
template <class Format>
inline void pack_row(const typename Format::Real* from, Index count, typename Format::Packed* to) {
    constexpr Index kAtOnce = kLanes<typename Format::Real> * Format::kUnit;
    Index k = 0;
    for (; k + kAtOnce <= count; k += kAtOnce) store_units<Format>(to + k, Format::pack_along(from + k));
    for (; k < count; ++k) to[k] = Format::pack(from[k]);
}

// Panel p of B where B's columns are the rows of a weight matrix (groups · columns, depth), as they are in W h.
template <class Format>
void pack_weight_rows(const Panels<Format>& b, Index p, const typename Format::Real* weight) {
    using Real = typename Format::Real;
    constexpr int kUnit = Format::kUnit;
    constexpr int kLanesOf = kLanes<Real>;
    constexpr Index kChunk = kLanesOf * kUnit;  // of depth
    const int columns = b.panel_columns(p);
    const Index depth = b.units() * kUnit;
    const Real* first = weight + b.first_column(p) * b.depth;
    auto* panel = b.panel(p);
    for (Index k0 = 0; k0 < depth; k0 += kChunk) {
        auto* to = panel + k0 * kWidth<Format>;
        if (columns == kWidth<Format> && k0 + kChunk <= b.depth) {
            for (int j = 0; j < kWidth<Format>; j += kLanesOf) {
                Vector<Real> rows[kLanesOf];
#pragma GCC unroll 16
                for (int i = 0; i < kLanesOf; ++i)
                    rows[i] = (Vector<Real>)Format::pack_along(first + (j + i) * b.depth + k0);
                transpose<Real>(rows);
#pragma GCC unroll 16
                for (int i = 0; i < kLanesOf; ++i)
                    store_units<Format>(to + (i * kWidth<Format> + j) * kUnit, (typename Format::Block)rows[i]);
            }
            continue;
        }
        for (int j = 0; j < kWidth<Format>; ++j)
            for (Index k = k0; k < std::min(depth, k0 + kChunk); ++k)
                panel[k / kUnit * kWidth<Format> * kUnit + j * kUnit + k % kUnit] =
                    Format::pack(j < columns && k < b.depth ? first[j * b.depth + k] : 0);
    }
}

// Panel p of B where B's rows are rows in memory: row(k) gives the k-th, null for zeros. Those of one unit are asked for
// one after the other and must stand together.
template <class Format, class Row>
void pack_rows(const Panels<Format>& b, Index p, Row row) {
    using Real = typename Format::Real;
    constexpr int kUnit = Format::kUnit;
    static constexpr std::array<Real, static_cast<std::size_t>(kWidth<Format>)> kZeros{};
    const int columns = b.panel_columns(p);
    const Index first = b.first_column(p);
    auto* to = b.panel(p);
    for (Index unit = 0; unit < b.units(); ++unit, to += kWidth<Format> * kUnit) {
        std::array<const Real*, kUnit> rows;
        for (int i = 0; i < kUnit; ++i) {
            const Index k = unit * kUnit + i;
            const Real* from = k < b.depth ? row(k) : nullptr;
            rows[static_cast<std::size_t>(i)] = from ? from + first : kZeros.data();
        }
        if (columns == kWidth<Format>) {
#pragma GCC unroll 8
            for (int j = 0; j < kWidth<Format>; j += kLanes<Real>)
                store_units<Format>(to + j * kUnit, Format::pack_across(rows, j));
        } else {
            for (int j = 0; j < kWidth<Format>; ++j)
                for (int i = 0; i < kUnit; ++i)
                    to[j * kUnit + i] = Format::pack(j < columns ? rows[static_cast<std::size_t>(i)][j] : 0);
        }
    }
}

// Panel p of B where B stands in memory as it is, (depth, columns).
template <class Format>
void pack_matrix(const Panels<Format>& b, Index p, const typename Format::Real* matrix) {
    constexpr Index kAhead = 16;
    const Index first = b.first_column(p);
    pack_rows(b, p, [&](Index k) {
        prefetch(matrix + std::min(k + kAhead, b.depth - 1) * b.columns + first, kWidth<Format>);
        return matrix + k * b.columns;
    });
}

// -- A ----------------------------------------------------------------------------------------------------------------

// Rows apart by a distance that is no power of two, so that the rows of a tile do not compete for one place in the cache.
template <class Format>
inline Index padded_stride(Index depth) {
    const Index line = 64 / static_cast<Index>(sizeof(typename Format::Packed));
    const Index lines = ceil_divide(depth, line);
    return (lines + (lines % 2 ? 0 : 1)) * line;
}

// Where a packed tile begins. Interleaved tiles have room behind them, for stores wider than the tile.
template <class Format, Layout layout>
inline Index tile_offset(const Tiles& tiles, Index tile, Index stride) {
    return tiles.begin(tile) * stride + (layout == Layout::kInterleaved ? tile * kTileRows * Format::kUnit : 0);
}

// Rows [begin, end) of A from rows in memory, depth [k0, k1), as (row, depth); the last unit is filled up with zeros.
template <class Format, class Row>
struct RowsOfA {
    static constexpr Layout kLayout = Layout::kRowMajor;
    using Packed = typename Format::Packed;
    Row row;

    void pack(Index begin, Index end, Index k0, Index k1, Packed* to) const {
        const Index stride = padded_stride<Format>(k1 - k0);
        const Index filled = round_up(k1 - k0, Format::kUnit);
        for (Index i = begin; i < end; ++i, to += stride) {
            const typename Format::Real* from = row(i) + k0;
            if (i + 1 < end) prefetch(row(i + 1) + k0, k1 - k0);
            pack_row<Format>(from, k1 - k0, to);
            for (Index k = k1 - k0; k < filled; ++k) to[k] = Format::pack(0);
        }
    }
};

// A whose columns are rows in memory (A = Mᵀ): row(k) is M's k-th row, of which elements [begin, end) are wanted.
template <class Format, class Row>
struct ColumnsOfA {
    static constexpr Layout kLayout = Layout::kInterleaved;
    using Packed = typename Format::Packed;
    Row row;

    // Some rows of M at once, so that what is written of a tile stands together.
    void pack(Index begin, Index end, Index k0, Index k1, Packed* to) const {
        constexpr int kUnit = Format::kUnit;
        constexpr Index kAtOnce = 8;  // units
        // A whole number of vectors, of which what is too much is written over by the next unit.
        constexpr Index kCopied = std::bit_ceil(static_cast<unsigned>(kTileRows));
        const Index count = end - begin;
        const Tiles tiles(count);
        const Index units = ceil_divide(k1 - k0, kUnit);
        Packed rounded[Format::kRounds ? kAtOnce : 1][Format::kRounds ? kBlockRows * kUnit : 1];
        std::array<const Packed*, kAtOnce> from;
        for (Index unit = 0; unit < units; unit += kAtOnce) {
            const Index now = std::min(kAtOnce, units - unit);
            for (Index i = 0; i < now; ++i) {
                const Index k = k0 + (unit + i) * kUnit;
                for (Index next = k + kAtOnce * kUnit; next < std::min(k1, k + (kAtOnce + 1) * kUnit); ++next)
                    prefetch(row(next) + begin, count);
                if constexpr (Format::kRounds) {
                    pack_unit(begin, count, k, k1, rounded[i]);
                    from[static_cast<std::size_t>(i)] = rounded[i];
                } else {
                    from[static_cast<std::size_t>(i)] = row(k) + begin;
                }
            }
            for (Index tile = 0; tile < tiles.count; ++tile) {
                const Index first = tiles.begin(tile);
                const int height = tiles.height(tile);
                Packed* at = to + tile_offset<Format, kLayout>(tiles, tile, units * kUnit) + unit * height * kUnit;
                const bool whole = first + kCopied <= count;
                for (Index i = 0; i < now; ++i, at += height * kUnit) {
                    const Packed* own = from[static_cast<std::size_t>(i)] + first * kUnit;
                    if (whole) std::memcpy(at, own, sizeof(Packed) * kCopied * kUnit);
                    else std::copy_n(own, height * kUnit, at);
                }
            }
        }
    }

    // Elements [begin, begin + count) of kUnit rows of M from row k on; those from row k1 on count as zero.
    void pack_unit(Index begin, Index count, Index k, Index k1, Packed* to) const {
        using Real = typename Format::Real;
        constexpr int kUnit = Format::kUnit;
        std::array<const Real*, kUnit> rows;
        for (int u = 0; u < kUnit; ++u) rows[static_cast<std::size_t>(u)] = row(std::min(k + u, k1 - 1)) + begin;
        Index j = 0;
        if (k + kUnit <= k1)
            for (; j + kLanes<Real> <= count; j += kLanes<Real>)
                store_units<Format>(to + j * kUnit, Format::pack_across(rows, j));
        for (; j < count; ++j)
            for (int u = 0; u < kUnit; ++u)
                to[j * kUnit + u] = Format::pack(k + u < k1 ? rows[static_cast<std::size_t>(u)][j] : 0);
    }
};

// Elements of scratch that one thread needs to pack A in.
template <class Format>
inline constexpr Index kScratchOfA = kBlockRows * (kBlockDepth<Format> + 64);

// -- C ----------------------------------------------------------------------------------------------------------------

// Where a product's panels go in C: panel p of group g to column g · group_stride + (p - first) · kWidth.
struct Columns {
    Index first;         // panels [first, last) of every group
    Index last;
    Index group_stride;  // between groups in C
    bool padded;         // C has room for whole panels, of which whole vectors are written
};

// C = start + A B, or C += A B, for rows [begin, end), at most kBlockRows, and some panels of each group of B. c_row(i)
// is the i-th row of C from the column where the first panel goes; `start` is laid out as a row of C.
template <class Format, class SourceOfA, class RowOfC>
void multiply_block(Index begin, Index end, const SourceOfA& a, const Panels<Format>& b, const Columns& columns,
                    RowOfC c_row, bool add, const typename Format::Real* start, typename Format::Packed* scratch) {
    using Real = typename Format::Real;
    constexpr Layout kLayout = SourceOfA::kLayout;
    std::array<Real*, kBlockRows> c;
    for (Index i = begin; i < end; ++i) c[static_cast<std::size_t>(i - begin)] = c_row(i);
    const Tiles tiles(end - begin);
    const Index at_once = panels_at_once(tiles.height(0));
    for (Index k0 = 0; k0 < std::max<Index>(b.depth, 1); k0 += kBlockDepth<Format>) {
        const Index k1 = std::min(b.depth, k0 + kBlockDepth<Format>);
        a.pack(begin, end, k0, k1, scratch);
        TileCall<Format> call{};
        call.units = ceil_divide(k1 - k0, Format::kUnit);
        const Index filled = call.units * Format::kUnit;
        const Index row_stride = kLayout == Layout::kRowMajor ? padded_stride<Format>(k1 - k0) : filled;
        call.panel_stride = b.panel_size();
        call.add = add || k0 > 0;
        for (Index group = 0; group < b.groups; ++group) {
            // Panels outside, tiles inside: a panel stays in the first cache while all tiles pass by it.
            for (Index p = columns.first; p < columns.last; p += at_once) {
                const Index now = std::min(at_once, columns.last - p);
                const Index panel = group * b.group_panels() + p;
                call.b = b.panel(panel) + k0 * kWidth<Format>;
                call.column = group * columns.group_stride + (p - columns.first) * kWidth<Format>;
                call.start = start ? start + call.column : nullptr;
                const Index last = panel + now - 1;
                const int last_columns = columns.padded ? b.whole_columns(last) : b.panel_columns(last);
                const bool more = p + now < columns.last || group + 1 < b.groups;
                const Index following =
                    p + now < columns.last ? panel + now : (group + 1) * b.group_panels() + columns.first;
                const auto* next = more ? b.panel(following) + k0 * kWidth<Format> : nullptr;
                for (Index tile = 0; tile < tiles.count; ++tile) {
                    const int height = tiles.height(tile);
                    call.a = scratch + tile_offset<Format, kLayout>(tiles, tile, row_stride);
                    call.stride = kLayout == Layout::kRowMajor ? row_stride : height * Format::kUnit;
                    call.c = c.data() + tiles.begin(tile);
                    look_ahead(call, next, tile, tiles.count);
                    multiply_tile<Format, kLayout>(height, call, now, last_columns);
                }
            }
        }
    }
}

// C = start + A B, or C += A B, with one group of columns: all members of a team call it, each with scratch of its own; `next`
// begins at zero. c_row(i) is the i-th row of C. Members do not wait for each other at its end.
template <class Format, class SourceOfA, class RowOfC>
void multiply(const Member& member, std::atomic<Index>& next, Index rows, const SourceOfA& a, const Panels<Format>& b,
              RowOfC c_row, bool add, const typename Format::Real* start, typename Format::Packed* scratch) {
    if (rows <= 0 || b.columns <= 0) return;
    // A piece is a block of rows times some panels; only where there are few rows are there few panels to a piece, as
    // each piece packs its rows for itself.
    const Index members = member.count;
    Index row_blocks = ceil_divide(rows, kBlockRows);
    if (row_blocks < 4 * members) row_blocks = std::min(round_up(row_blocks, members), ceil_divide(rows, kLeastRows));
    const Index chunks = std::min(b.panels(), row_blocks < members ? ceil_divide(2 * members, row_blocks) : 1);
    for (Index piece = next++; piece < row_blocks * chunks; piece = next++) {
        const Index block = piece % row_blocks;
        const Columns columns{b.panels() * (piece / row_blocks) / chunks, b.panels() * (piece / row_blocks + 1) / chunks,
                              0, false};
        const Index column = columns.first * kWidth<Format>;
        multiply_block<Format>(
            rows * block / row_blocks, rows * (block + 1) / row_blocks, a, b, columns,
            [&](Index i) { return c_row(i) + column; }, add, start ? start + column : nullptr, scratch);
    }
}

}  // namespace throughtime
