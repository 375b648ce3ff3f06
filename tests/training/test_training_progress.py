from __future__ import annotations

import sys

import pytest

from throughtime.training.progress import LiveProgress, PlainProgress, SilentProgress, describe, duration, make_progress

VALUES = {"loss": 1.5, "bits_per_byte": 2.164, "tokens_per_second": 12345.6, "learning_rate": 2e-3, "epoch": 1.0}


def test_numbers_have_short_names_in_a_fixed_order() -> None:
    assert describe(VALUES) == "loss 1.5000  bits/byte 2.164  tokens/s 12,346  lr 2.00e-03"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (None, 0, 61, 3661.4)] == ["-", "0:00:00", "0:01:01", "1:01:01"]


def test_plain_lines_go_to_stderr_and_not_too_often(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.update(0.25, 10, VALUES)
    progress.update(0.5, 20, VALUES)
    progress.note("held-out 2.0")
    progress.close()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2
    assert lines[0].startswith("step     10   25%  loss 1.5000  bits/byte 2.164")
    assert lines[1] == "held-out 2.0"


def test_the_live_line_shows_the_newest_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LiveProgress(0.1)
    progress.update(0.25, 10, VALUES)
    progress.note("step [10] held-out")
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "step [10] held-out" in err
    assert "step 10" in err


def test_only_the_main_process_talks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    silent = make_progress(is_main=False, done=0.0)
    assert isinstance(silent, SilentProgress)
    silent.update(0.5, 1, VALUES)
    silent.note("x")
    silent.close()
    assert capsys.readouterr().err == ""
    assert isinstance(make_progress(is_main=True, done=0.0), PlainProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    live = make_progress(is_main=True, done=0.0)
    live.close()
    assert isinstance(live, LiveProgress)
