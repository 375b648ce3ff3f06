"""Two ways of computing the same thing, timed in turn, and what the processor could do at best meanwhile."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from throughtime.kernels.native import library

# As many rounds as fit into the time given are about these.
_ROUNDS = 10
# Shorter calls feel what the other side has left behind: its data in the caches, its threads still waiting busily.
_SHORT = 0.2
_PROBE_SECONDS = 0.1
_FORMATS = {"fp32": "float32", "bf16": "bfloat16"}


class Contest(NamedTuple):
    """Seconds of one call of each side, medians over the rounds, and the range of the rounds' ratios theirs / ours."""

    ours: float
    theirs: float
    lowest: float
    highest: float
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times as fast ours is: the ratio of the medians."""
        return self.theirs / self.ours


def compete(ours: Callable[[], Any], theirs: Callable[[], Any], *, rounds: int, seconds: float) -> Contest:
    """Time both in turn, changing who begins each round, for so many rounds and so many seconds at least.

    Both must have been called before, so that neither pays for a first time.
    """
    sides = (ours, theirs)
    gc.collect()
    began = time.perf_counter()
    estimates = [_seconds_per_call(side, 1) for side in sides]
    calls = [max(1, round(seconds / (2 * _ROUNDS) / estimate)) for estimate in estimates]
    taken: tuple[list[float], list[float]] = ([], [])
    while len(taken[0]) < rounds or time.perf_counter() - began < seconds:
        for index in (0, 1) if len(taken[0]) % 2 == 0 else (1, 0):
            if estimates[index] < _SHORT:
                sides[index]()
            taken[index].append(_seconds_per_call(sides[index], calls[index]))
    ratios = [other / own for own, other in zip(*taken, strict=True)]
    return Contest(
        statistics.median(taken[0]), statistics.median(taken[1]), min(ratios), max(ratios), rounds=len(ratios)
    )


def _seconds_per_call(function: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls


def multiply_add_peak(precision: str, threads: int) -> float | None:
    """Operations per second that multiply-adds on registers alone reach now; None without the native engine."""
    if library.missing_reason() is not None:
        return None
    return float(library.load().peak(_FORMATS[precision], threads, _PROBE_SECONDS))
