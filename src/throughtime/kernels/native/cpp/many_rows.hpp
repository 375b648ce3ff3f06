// Products of many rows with weights that stay packed: the panels and the kernel of gemm.hpp, in which many rows pass by
// a panel while it is in the first cache. Sums are those of `multiply_panel`, to the bit.
#pragma once

#include "team.hpp"
#include "weights.hpp"

namespace throughtime {

// The panels that hold what a packed matrix does.
template <class Storage, class Memory>
Panels<Single> panels_of(const PackedMatrix<Storage>& matrix, Memory& memory) {
    Panels<Single> panels{matrix.depth, matrix.groups, matrix.columns};
    panels.data = memory.template take<float>(panels.size());
    std::fill_n(panels.data, panels.size(), 0.0f);
    matrix.each_block([&](Index group, Index block, Index p, Index at) {
        float* to = panels.panel(group * panels.group_panels() + block / kPanelVectors) + block % kPanelVectors * kBlock;
        for (Index k = 0; k < matrix.depth; ++k)
            for (int j = 0; j < kBlock; ++j) to[k * kWidth<Single> + j] = matrix.weight(p, k, at + j);
    });
    return panels;
}

// Values of all columns, in the order of `PackedMatrix::pack_values`, in that of the panels; `rest` where there is none.
template <class Storage, class Memory>
float* values_of(const PackedMatrix<Storage>& matrix, const float* values, float rest, Memory& memory) {
    const Panels<Single> panels{matrix.depth, matrix.groups, matrix.columns};
    float* to = memory.template take<float>(panels.panels() * kWidth<Single>);
    std::fill_n(to, panels.panels() * kWidth<Single>, rest);
    matrix.each_block([&](Index group, Index block, Index p, Index at) {
        std::copy_n(values + matrix.place(p) + at, kBlock,
                    to + group * panels.group_panels() * kWidth<Single> + block * kBlock);
    });
    return to;
}

// Rows as those products take them.
struct ManyRows {
    const float* data;
    Index stride;

    // Elements that a copy of `rows` rows takes.
    static Index copy_size(Index rows, Index depth) { return rows * padded_stride<Single>(depth); }

    // Whether rows so far apart, whole pages, would compete for one place in the cache.
    static bool compete(Index stride) { return stride * static_cast<Index>(sizeof(float)) % 4096 == 0; }

    // A copy in `to`; all members call it, and wait before they read: each makes its share. row(i) is the i-th.
    template <class Row>
    static ManyRows copied(const Member& member, Index rows, Index depth, Row row, float* to) {
        const Index stride = padded_stride<Single>(depth);
        for (Index i = rows * member.index / member.count; i < rows * (member.index + 1) / member.count; ++i)
            std::copy_n(row(i), depth, to + i * stride);
        return {to, stride};
    }

    // Rows as they stand, or a copy of them in `to` where they would compete.
    static ManyRows standing(const Member& member, const float* data, Index stride, Index rows, Index depth, float* to) {
        if (!compete(stride)) return {data, stride};
        return copied(member, rows, depth, [&](Index i) { return data + i * stride; }, to);
    }
};

// Calls visit(block, first, last) for a member's share of blocks of columns and rows [first, last): where there are fewer
// blocks than members, these share the rows.
template <class Visit>
void each_share(const Member& member, Index blocks, Index rows, Visit visit) {
    const auto share = [&](Index count, Index i) { return count * i / member.count; };
    const bool by_blocks = blocks >= member.count;
    const Index first = by_blocks ? 0 : share(rows, member.index);
    const Index last = by_blocks ? rows : share(rows, member.index + 1);
    const Index end = by_blocks ? share(blocks, member.index + 1) : blocks;
    for (Index block = by_blocks ? share(blocks, member.index) : 0; block < end; ++block) visit(block, first, last);
}

// The columns of a weight, such as a readout's, a block of kColumns at a time.
struct ManyColumns {
    static constexpr Index kBlockPanels = kPanelSums / kPanelVectors;
    static constexpr Index kColumns = kBlockPanels * kWidth<Single>;

    Panels<Single> panels;  // of one group
    float* start;           // of all panels

    // Of a weight (columns, depth), with `start` everywhere.
    template <class Memory>
    static ManyColumns pack(const float* weight, Index depth, Index columns, float start, Memory& memory, int threads) {
        ManyColumns packed{{depth, 1, columns}, nullptr};
        Panels<Single>& panels = packed.panels;
        panels.data = memory.template take<float>(panels.size());
        packed.start = memory.template take<float>(panels.panels() * kWidth<Single>);
        std::fill_n(packed.start, panels.panels() * kWidth<Single>, start);
        run_together(threads, [&](const Member& member) {
            for (Index p = member.index; p < panels.panels(); p += member.count) pack_weight_rows(panels, p, weight);
        });
        return packed;
    }

    Index blocks() const { return ceil_divide(panels.panels(), kBlockPanels); }

    // Elements of scratch that a member needs for `each_row`.
    static Index scratch_size() { return kPassTiles * kTileRows * kColumns; }

    // Calls visit(row, sums) for rows [begin, end) and the columns of one block, as many as there are panels for.
    template <class Visit>
    void each_row(const ManyRows& a, Index block, Index begin, Index end, float* scratch, Visit visit) const {
        // As many panels as a tile takes at once are a group of their own: a row's sums then stand together.
        const Index first_panel = block * kBlockPanels, count = std::min(kBlockPanels, panels.panels() - first_panel);
        const Index at_once = count % kTilePanels ? 1 : kTilePanels;
        const Panels<Single> apart{panels.depth, panels.panels() / at_once, at_once * kWidth<Single>, panels.data};
        StepProduct<Single> product{a.data + begin * a.stride, a.stride, &apart};
        product.first_group = first_panel / at_once;
        product.groups = count / at_once;
        product.depth = panels.depth;
        product.start = start + first_panel * kWidth<Single>;
        const Tiles tiles(end - begin);
        std::array<Index, kPassTiles> pass;
        const auto* after = panels.panel(block + 1 < blocks() ? first_panel + kBlockPanels : first_panel);
        for (Index next = 0; next < tiles.count;) {
            const Index first = begin + tiles.begin(next);
            std::size_t taken = 0;
            while (taken < kPassTiles && next < tiles.count) pass[taken++] = next++;
            multiply_pass(product, tiles, std::span<const Index>(pass).first(taken), 0, at_once, after, scratch);
            const Index width = count * kWidth<Single>;
            for (Index row = first; row < begin + tiles.begin(next); ++row) visit(row, scratch + (row - first) * width);
        }
    }
};

}  // namespace throughtime
