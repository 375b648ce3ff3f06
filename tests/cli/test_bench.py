"""`throughtime bench`: tables for people, JSON for programs, one line for mistakes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.tasks.benchmarks import recurrence, timing

Call = Callable[..., Any]

# One thread and one round: what is tested is not the speed.
TINY = ("bench", "recurrence", "--hidden", 8, "--steps", 5, "--rounds", 1, "--seconds", 0, "--threads", 1)
NO_BF16 = "this processor has none"


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_PROBE_SECONDS", 1e-3)


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has it; elsewhere it is slower, and right."""
    monkeypatch.setattr(recurrence, "bf16_missing", lambda: None)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "bf16_missing", lambda: NO_BF16)


def test_without_a_name_it_lists_what_there_is(call: Call) -> None:
    listed = call("bench").out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\w+)", listed, re.MULTILINE) == ["recurrence"]


def test_the_grid_as_a_table_and_a_file(call: Call, with_bf16: None) -> None:
    called = call(*TINY, "--batch", 1, 3, "--json", "found.json")
    assert called.code == 0
    report = json.loads(Path("found.json").read_text("utf-8"))
    assert (report["benchmark"], report["measured"], report["threads"]) == ("recurrence", "time", 1)
    assert report["torch"] == torch.__version__
    assert (report["native"] is None) != (report["native_missing"] is None)
    rows = report["rows"]
    kinds = [(row["precision"], row["passes"], row["cell"], row["batch"]) for row in rows]
    assert len(set(kinds)) == len(kinds) == 2 * 2 * 3 * 2
    for row in rows:
        assert (row["hidden"], row["steps"], row["ragged"]) == (8, 5, False)
        assert row["engine"] in ("native", "torch")
        assert row["ratio"] == row["torch_seconds"] / row["ours_seconds"]
        assert row["lowest_ratio"] <= row["ratio"] <= row["highest_ratio"]
        assert row["ours_error"] < 0.02
        assert (row["peak_gflops"] is None) == (report["native"] is None)
    assert [group["cases"] for group in report["summary"]] == [2] * 12
    assert "fp32, forward+backward, T = 5\ncell" in called.out
    assert len(re.findall(r"^(?:RNN|LSTM|GRU) +8 +[13] ", called.out, re.MULTILINE)) == len(rows)
    assert called.err.count("\n") == len(rows)
    assert re.match(r"\[1/24\] RNN H 8 B 1, forward, fp32: .* ms, torch\.nn .* ms, ratio .*, engine ", called.err)


def test_an_object_on_standard_output(call: Call) -> None:
    options = ("--cells", "gru", "--batch", 2, "--passes", "forward", "--precision", "fp32", "--json", "-")
    called = call(*TINY, *options)
    assert called.code == 0
    assert [row["cell"] for row in json.loads(called.out)["rows"]] == ["gru"]
    assert not Path("-").exists()


def test_bf16_is_skipped_with_its_reason(call: Call, without_bf16: None) -> None:
    options = ("--cells", "rnn", "--batch", 1, "--passes", "forward", "--json", "found.json")
    called = call(*TINY, *options)
    assert called.code == 0
    assert called.err.startswith(f"bf16 is skipped: {NO_BF16}\n")
    assert f"skipped: bf16: {NO_BF16}\n" in called.out
    report = json.loads(Path("found.json").read_text("utf-8"))
    assert report["skipped"] == [f"bf16: {NO_BF16}"]
    assert [row["precision"] for row in report["rows"]] == ["fp32"]


def test_ragged_batches(call: Call) -> None:
    called = call(*TINY, "--ragged", "--precision", "fp32", "--json", "found.json")
    assert called.code == 0
    rows = json.loads(Path("found.json").read_text("utf-8"))["rows"]
    assert [(row["cell"], row["batch"], row["passes"], row["ragged"]) for row in rows] == [
        ("lstm", 16, "forward+backward", True),
        ("lstm", 64, "forward+backward", True),
    ]
    assert "T = 5, lengths 1 to T in no order\n" in called.out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak")
def test_memory(call: Call) -> None:
    options = ("--memory", "--cells", "lstm", "--batch", 4, "--precision", "fp32", "--json", "found.json")
    called = call(*TINY, *options)
    assert called.code == 0
    report = json.loads(Path("found.json").read_text("utf-8"))
    (row,) = report["rows"]
    assert report["measured"] == "memory"
    assert row["passes"] == "forward+backward"
    assert row["ratio"] == row["torch_bytes"] / row["ours_bytes"]
    assert re.search(r"^LSTM  8  4  .* MiB  .* MiB ", called.out, re.MULTILINE)


def test_the_threads_are_as_before(call: Call) -> None:
    before = torch.get_num_threads()
    options = ("--cells", "rnn", "--batch", 1, "--passes", "forward", "--precision", "fp32", "--threads", before + 1)
    called = call(*TINY, *options, "--json", "-")
    assert json.loads(called.out)["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("recurence", "no such command 'recurence'. Did you mean 'recurrence'? see throughtime bench --help"),
        ("zzz", "no such command 'zzz'; see throughtime bench --help"),
        (
            "recurrence --cell lstm",
            "no such option: --cell; did you mean --cells? see throughtime bench recurrence --help",
        ),
        (
            "recurrence --cells lstm zzz",
            "invalid value for '--cells': 'zzz' is not one of 'rnn', 'lstm', 'gru'; "
            "see throughtime bench recurrence --help",
        ),
        (
            "recurrence --batch 0",
            "invalid value for '--batch': Input should be greater than or equal to 1; "
            "see throughtime bench recurrence --help",
        ),
        (
            "recurrence --memory --passes forward",
            "bench recurrence: --memory measures forward+backward; leave out --passes forward",
        ),
        (
            "recurrence --precision bf16",
            f"bench recurrence: bf16 cannot be measured: {NO_BF16}; use --precision fp32",
        ),
    ],
)
def test_a_mistake_is_one_line(call: Call, without_bf16: None, arguments: str, line: str) -> None:
    assert call("bench", *arguments.split()) == (2, "", f"throughtime: error: {line}\n")


def test_a_file_that_cannot_be_written_is_told_after_the_first_case(call: Call) -> None:
    Path("file").write_text("")
    called = call(*TINY, "--cells", "rnn", "--precision", "fp32", "--json", "file/folder/found.json")
    assert called.code == 1
    assert called.out == ""
    assert [line[:5] for line in called.err.splitlines()] == ["[1/6]", "throu"]
    assert "cannot write file/folder/found.json: Not a directory; " in called.err
