// How the members of a team share the time loop.
#pragma once

#include "problem.hpp"

namespace throughtime {

// Members form a grid: `row_groups` times `unit_groups`. Rows are shared where the weights are small enough to stay in
// each core's cache: then nobody waits for anybody within a sequence. Otherwise units are shared, so that each core
// reads only its part of the weights, and all wait for each other at every step.
struct Split {
    Split(const Member& member, Index batch, Index panels, Index weight_bytes) {
        constexpr Index kPrivateCache = Index{5} << 18;  // 1.25 MiB
        const Index members = member.count;
        const bool by_rows = weight_bytes <= kPrivateCache && Tiles(batch).count >= members && batch >= 8 * members;
        unit_groups = by_rows ? 1 : std::min(members, panels);
        row_groups = std::min(members / unit_groups, std::max<Index>(1, Tiles(batch).count));
        unit_group = member.index % unit_groups;
        row_group = member.index / unit_groups;
        takes_part = row_group < row_groups;
        first_panel = panels * unit_group / unit_groups;
        end_panel = panels * (unit_group + 1) / unit_groups;
    }

    bool together() const { return unit_groups > 1; }
    Index unit_groups, row_groups, unit_group, row_group, first_panel, end_panel;
    bool takes_part;
};

// One group's tiles of the sorted sequences: every `row_groups`-th, as the first ones run longest.
struct GroupTiles {
    GroupTiles(Index batch, const Split& split) : all(batch), first(split.row_group), step(split.row_groups) {}
    Tiles all;
    Index first, step;

    // Tiles of the group that begin before row `running`, which is at least 1.
    template <class Visit>
    void each(Index running, Visit visit) const {
        for (Index tile = first; tile < all.count && all.begin(tile) < running; tile += step) visit(tile);
    }
};

}  // namespace throughtime
