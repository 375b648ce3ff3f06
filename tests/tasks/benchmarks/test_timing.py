"""Medians of two sides that take turns, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from throughtime.kernels.native import library
from throughtime.tasks.benchmarks import timing
from throughtime.tasks.benchmarks.timing import compete, multiply_add_peak


class Clock:
    """Time that passes only where a side takes it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def side(self, name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += next(seconds)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def test_medians_their_ratio_and_its_range(clock: Clock) -> None:
    # The first call of each is the estimate.
    ours = clock.side("ours", iter([1.0, 1.0, 2.0, 30.0]))
    theirs = clock.side("theirs", iter([4.0, 4.0, 6.0, 15.0]))
    contest = compete(ours, theirs, rounds=3, seconds=0)
    assert contest == (2.0, 6.0, 0.5, 4.0, 3)
    assert contest.ratio == 3.0


def test_the_sides_take_turns_in_going_first(clock: Clock) -> None:
    compete(clock.side("ours", always(1.0)), clock.side("theirs", always(1.0)), rounds=4, seconds=0)
    assert clock.calls[2:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours"]


def test_short_calls_are_many_and_the_first_of_them_is_not_counted(clock: Clock) -> None:
    times = iter([0.01, *[1.0, *[0.01] * 5] * 99])
    contest = compete(clock.side("ours", times), clock.side("theirs", always(0.5)), rounds=2, seconds=1.0)
    assert contest.ours == pytest.approx(0.01)
    assert contest.theirs == pytest.approx(0.5)


def test_there_are_rounds_until_the_time_is_over(clock: Clock) -> None:
    assert compete(clock.side("ours", always(1.0)), clock.side("theirs", always(1.0)), rounds=5, seconds=40).rounds >= 9
    assert compete(clock.side("ours", always(9.0)), clock.side("theirs", always(9.0)), rounds=5, seconds=1).rounds == 5


@pytest.mark.skipif(library.missing_reason() is not None, reason="the native engine is not built here")
def test_the_peak_is_that_of_a_processor() -> None:
    peak = multiply_add_peak("fp32", 1)
    assert peak is not None
    assert 1e8 < peak < 1e13


def test_no_peak_without_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing_reason", lambda: "not built")
    assert multiply_add_peak("fp32", 1) is None
