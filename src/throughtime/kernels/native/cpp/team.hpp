// How the members of a team share the time loop, and the products within it.
#pragma once

#include <span>

#include "problem.hpp"

namespace throughtime {

// Members form a grid: `row_groups` times `unit_groups`. Rows are shared where each core has some for all that it reads of
// the weights, from a cache of its own or, with more rows, from the one that all share: then nobody waits for anybody
// within a sequence. Otherwise units are shared, so that each core reads only its part of the weights, and all wait for
// each other at every step.
struct Split {
    Split(const Member& member, Index batch, Index panels, Index weight_bytes) {
        constexpr Index kPrivateCache = Index{5} << 18, kSharedCache = Index{16} << 20;  // bytes that stay there
        const Index members = member.count;
        const Index rows_for_each = weight_bytes <= kPrivateCache ? 8 : 16;
        const bool by_rows = weight_bytes <= kSharedCache && batch >= rows_for_each * members &&
                             Tiles(batch).count >= members;
        unit_groups = by_rows ? 1 : std::min(members, panels);
        row_groups = std::min(members / unit_groups, std::max<Index>(1, Tiles(batch).count));
        unit_group = member.index % unit_groups;
        row_group = member.index / unit_groups;
        takes_part = row_group < row_groups;
    }

    // The most rows of a step, or panels of a group, that one member has.
    Index most_rows(Index batch) const { return ceil_divide(Tiles(batch, row_groups).count, row_groups) * kTileRows; }
    Index most_panels(Index panels) const { return ceil_divide(panels, unit_groups); }

    bool together() const { return unit_groups > 1; }
    Index first_panel(Index panels) const { return panels * unit_group / unit_groups; }
    Index end_panel(Index panels) const { return panels * (unit_group + 1) / unit_groups; }

    Index unit_groups, row_groups, unit_group, row_group;
    bool takes_part;
};

// One group's tiles of the sorted sequences: every `row_groups`-th, as the first ones run longest.
struct GroupTiles {
    GroupTiles(Index batch, const Split& split)
        : all(batch, split.row_groups), first(split.row_group), step(split.row_groups) {}
    Tiles all;
    Index first, step;

    // The group's sequences among the first `running`.
    template <class Visit>
    void each_row(Index running, Visit visit) const {
        for (Index tile = first; tile < all.count && all.begin(tile) < running; tile += step)
            for (Index j = all.begin(tile); j < std::min(all.begin(tile + 1), running); ++j) visit(j);
    }
};

// Tiles of one pass of the time loop, so that its scratch stays in the second cache.
inline constexpr Index kPassTiles = 8 * kTilePanels;

// Elements of scratch for one thread's products of one pass, with `groups` groups of columns.
template <class Format>
inline Index products_size(Index groups) {
    return groups * kPassTiles * kTileRows * 4 * kWidth<Format>;
}

// A product within a step: (B, depth) operands, packed in rows `stride` apart, times groups [first_group, first_group +
// groups) of `b`, whose depth may begin further down.
template <class Format>
struct StepProduct {
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;
    const Packed* operand;
    Index stride;
    const Panels<Format>* b;
    Index first_group = 0;
    Index groups = 1;
    Index first_depth = 0;
    Index depth = 0;
    const Real* start = nullptr;  // (groups, panels of a group, kWidth) added to it

    const Packed* block(Index p, Index k0, Index group) const {
        return b->panel((first_group + group) * b->group_panels() + p) + (first_depth + k0) * kWidth<Format>;
    }
};

// The product of the tiles `pass` and panels [p, p + panels) of each group: row by row, group by group, into `products`.
// `after` is what of B comes next.
template <class Format>
void multiply_pass(const StepProduct<Format>& step, const Tiles& tiles, std::span<const Index> pass, Index p,
                   Index panels, const typename Format::Packed* after, typename Format::Real* products) {
    std::array<typename Format::Real*, kTileRows> rows;
    const Index width = panels * kWidth<Format>;
    const int last_columns = step.b->whole_columns(p + panels - 1);
    // A panel's part of one block of depth stays in the first cache while all tiles pass by it.
    for (Index k0 = 0; k0 < step.depth; k0 += kBlockDepth<Format>) {
        const bool is_last = k0 + kBlockDepth<Format> >= step.depth;
        TileCall<Format> call{};
        call.units = ceil_divide(std::min(step.depth - k0, kBlockDepth<Format>), Format::kUnit);
        call.stride = step.stride;
        call.panel_stride = step.b->panel_size();
        call.c = rows.data();
        call.carry = k0 > 0;
        for (Index group = 0; group < step.groups; ++group) {
            call.b = step.block(p, k0, group);
            if (step.start && is_last) call.start = step.start + (group * step.b->group_panels() + p) * kWidth<Format>;
            const auto* next = group + 1 < step.groups ? step.block(p, k0, group + 1)
                               : !is_last              ? step.block(p, k0 + kBlockDepth<Format>, 0)
                                                       : after;
            Index row = 0;
            for (std::size_t i = 0; i < pass.size(); ++i) {
                const int height = tiles.height(pass[i]);
                for (int r = 0; r < height; ++r)
                    rows[static_cast<std::size_t>(r)] = products + ((row + r) * step.groups + group) * width;
                call.a = step.operand + tiles.begin(pass[i]) * step.stride + k0;
                look_ahead(call, next, static_cast<Index>(i), static_cast<Index>(pass.size()));
                multiply_tile<Format, Layout::kRowMajor>(height, call, panels, last_columns);
                row += height;
            }
        }
    }
}

// Products with matrices of one width, for one member's rows and columns, and what follows them while they are in the
// cache: visit(j, first, count, products, width) is told that columns [first, first + count) of each group of row j stand
// at products[i] + group · width. `scratch` has products_size for each product. Steps that take the panels forth and `back`
// in turns find what the one before read last in their core's cache.
template <class Format, std::size_t Count, class Visit>
void multiply_step(const std::array<StepProduct<Format>, Count>& steps, const Split& split, const GroupTiles& tiles,
                   Index running, bool back, typename Format::Real* scratch, Visit visit) {
    using Real = typename Format::Real;
    const Panels<Format>& b = *steps[0].b;
    const Index first_panel = split.first_panel(b.group_panels()), end_panel = split.end_panel(b.group_panels());
    std::array<Index, kPassTiles> pass;
    for (Index next = tiles.first; next < tiles.all.count && tiles.all.begin(next) < running;) {
        std::size_t taken = 0;
        for (; taken < kPassTiles && next < tiles.all.count && tiles.all.begin(next) < running; next += tiles.step)
            pass[taken++] = next;
        const Index at_once = panels_at_once(tiles.all.height(pass[0]));
        const Index pieces = ceil_divide(end_panel - first_panel, at_once);
        const auto panel = [&](Index i) { return first_panel + (back ? pieces - 1 - i : i) * at_once; };
        for (Index i = 0; i < pieces; ++i) {
            const Index p = panel(i);
            const Index panels = std::min(at_once, end_panel - p);
            const Index width = panels * kWidth<Format>;
            const auto* after = i + 1 < pieces ? steps[0].block(panel(i + 1), 0, 0) : nullptr;
            std::array<Real*, Count> products;
            for (std::size_t k = 0; k < Count; ++k) {
                products[k] = scratch + static_cast<Index>(k) * products_size<Format>(steps[k].groups);
                multiply_pass(steps[k], tiles.all, std::span(pass).first(taken), p, panels,
                              k + 1 < Count ? steps[k + 1].block(p, 0, 0) : after, products[k]);
            }
            const Index first = p * kWidth<Format>;
            const int count = static_cast<int>(std::min(width, b.columns - first));
            for (std::size_t k = 0; k < taken; ++k) {
                const Index begin = tiles.all.begin(pass[k]);
                const int height = tiles.all.height(pass[k]);
                for (int r = 0; r < height; ++r) {
                    if (begin + r < running) visit(begin + r, first, count, products, width);
                    for (std::size_t product = 0; product < Count; ++product)
                        products[product] += steps[product].groups * width;
                }
            }
        }
    }
}

// The same for one product: visit(j, first, count, product, width).
template <class Format, class Visit>
void multiply_step(const StepProduct<Format>& step, const Split& split, const GroupTiles& tiles, Index running,
                   bool back, typename Format::Real* scratch, Visit visit) {
    multiply_step(std::array{step}, split, tiles, running, back, scratch,
                  [&](Index j, Index first, int count, const auto& products, Index width) {
                      visit(j, first, count, products[0], width);
                  });
}

}  // namespace throughtime
