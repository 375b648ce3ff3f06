"""Many measurements in a few numbers."""

from __future__ import annotations

from typing import Any

import pytest

from throughtime.tasks.benchmarks.summary import summary


def row(ratio: float, *, hidden: int, batch: int, share: float | None = None, cell: str = "lstm") -> dict[str, Any]:
    sizes = {"cell": cell, "hidden": hidden, "batch": batch, "precision": "fp32", "passes": "forward"}
    return {**sizes, "ratio": ratio, "ours_share_of_peak": share}


def test_means_lowest_and_shares() -> None:
    rows = [
        row(2.0, hidden=8, batch=1, share=0.1),
        row(0.5, hidden=8, batch=64, share=0.6),
        row(8.0, hidden=16, batch=64, share=0.7),
        row(3.0, hidden=8, batch=1, cell="gru"),
    ]
    lstm, gru = summary(rows)
    assert lstm["mean_ratio"] == pytest.approx(2.0)
    assert (lstm["cell"], lstm["cases"]) == ("lstm", 3)
    assert lstm["lowest"] == {"ratio": 0.5, "hidden": 8, "batch": 64}
    assert lstm["shares_of_peak"] == [
        {"hidden": 8, "batch": 64, "share": 0.6},
        {"hidden": 16, "batch": 64, "share": 0.7},
    ]
    assert (gru["cell"], gru["mean_ratio"], gru["shares_of_peak"]) == ("gru", pytest.approx(3.0), [])


def test_nothing_measured_is_no_summary() -> None:
    assert summary([]) == []
