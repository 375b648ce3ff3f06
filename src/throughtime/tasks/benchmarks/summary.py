"""A grid of measurements in a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each precision, passes and cell: the ratios' geometric mean and the lowest, and our shares of the peak.

    The shares are those of the largest batch, by hidden size; rows of memory have none.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["precision"], row["passes"], row["cell"]), []).append(row)
    return [_of_group(group) for group in groups.values()]


def _of_group(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lowest = min(rows, key=lambda row: float(row["ratio"]))
    largest = max(row["batch"] for row in rows)
    shares = {row["hidden"]: row.get("ours_share_of_peak") for row in rows if row["batch"] == largest}
    return {
        **{key: rows[0][key] for key in ("precision", "passes", "cell")},
        "cases": len(rows),
        "mean_ratio": statistics.geometric_mean(row["ratio"] for row in rows),
        "lowest": {key: lowest[key] for key in ("ratio", "hidden", "batch")},
        "shares_of_peak": [
            {"hidden": hidden, "batch": largest, "share": share}
            for hidden, share in shares.items()
            if share is not None
        ],
    }
