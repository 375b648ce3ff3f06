"""The peak memory of a step in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from throughtime.errors import FailureError, UsageError
from throughtime.tasks.benchmarks import memory
from throughtime.tasks.benchmarks.memory import measure_memory
from throughtime.tasks.benchmarks.recurrence import Case

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak")


@on_linux
def test_a_step_takes_what_its_results_hold() -> None:
    case = Case("gru", hidden=64, batch=64, steps=100)
    row = measure_memory(case, threads=1)
    outputs_and_gradient = 2 * 4 * 100 * 64 * 64
    for taken in (row.ours, row.theirs):
        assert outputs_and_gradient <= taken < 40 * outputs_and_gradient
    assert row.as_dict()["ratio"] == row.theirs / row.ours
    assert row.as_dict()["hidden"] == 64


@on_linux
def test_a_process_that_fails_is_told_in_a_line() -> None:
    with pytest.raises(FailureError, match=r"^bench recurrence: ZZZ H 8 .*: the process .* failed: KeyError: 'zzz'$"):
        measure_memory(Case("zzz", hidden=8, batch=1), threads=1)


def test_another_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none")
    with pytest.raises(UsageError, match="run it on Linux"):
        measure_memory(Case("rnn", hidden=8, batch=1), threads=1)
