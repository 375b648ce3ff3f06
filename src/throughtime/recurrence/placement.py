"""Where checkpointing keeps states: how many segments, how many of their borders, and in which order all is run again.

A sequence is cut into n segments. The state before the first one is always at hand; s more can be kept at a time. In
its backward pass each segment is run once more with all that its gradients need, from the state at its begin, and where
that state has not been kept, segments are run from the nearest one before it. With s ≥ n - 1 every border is kept and
nothing is run a third time. With fewer, the number of segments run just to reach a state is least when the first kept
border divides the sequence by binomial coefficients (Griewank & Walther 2000), and Gruslys et al. 2016 choose n and s
such that what is alive at a time fits into a memory budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from throughtime.errors import UsageError

# A call of an engine costs as much as so many time steps: weights are packed, gradients of weights summed, once each.
_STEPS_OF_A_CALL = 8


@dataclass(frozen=True)
class MemoryBudget:
    """How many bytes checkpointing may take: `tt.unfold(cell, inputs, checkpoint=MemoryBudget(64 * 2**20))`.

    It covers all tensors that are alive at once in the forward and backward pass together: the states kept at borders,
    what a segment keeps for its backward pass, its own outputs and gradients. It does not cover the inputs and outputs
    of the whole call, the parameters, the gradients of these three, and an engine's scratch memory, which does not grow
    with the sequence: packed copies of the weights and, in the native engine, the gradients of 256 rows' summed inputs.

    Raises:
        UsageError: `bytes` is not a whole number of at least 1.
    """

    bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise UsageError(
                f"MemoryBudget: expected a whole number of bytes of at least 1, got {self.bytes!r}; "
                "256 MiB are MemoryBudget(256 * 2**20)"
            )


@dataclass(frozen=True)
class Footprint:
    """Bytes of running a segment of n steps forward and backward, `fixed + n · of_a_step`, and of one kept state."""

    fixed: int
    of_a_step: int
    of_a_state: int

    def of_segment(self, steps: int) -> int:
        """All that is alive while a segment of so many steps is differentiated, kept states apart."""
        return self.fixed + steps * self.of_a_step


@dataclass(frozen=True)
class Placement:
    """The number of segments, and of states that are kept besides the first one at a time."""

    segments: int
    snapshots: int

    def spans(self, steps: int) -> list[tuple[int, int]]:
        """Each segment's first step and the one behind its last; their lengths differ by one at most."""
        borders = [k * steps // self.segments for k in range(self.segments + 1)]
        return list(pairwise(borders))


def every_border(segments: int) -> Placement:
    """A state kept at every border: each segment is run a second time, none a third."""
    return Placement(segments, segments - 1)


def checked_checkpoint(checkpoint: Any, *, who: str) -> None:
    """See that `checkpoint` is "sqrt", a number of segments or a `MemoryBudget`.

    Raises:
        UsageError: it is none of these.
    """
    is_number = isinstance(checkpoint, int) and not isinstance(checkpoint, bool)
    if checkpoint == "sqrt" or isinstance(checkpoint, MemoryBudget) or (is_number and checkpoint >= 1):
        return
    raise UsageError(
        f"{who}: checkpoint must be 'sqrt', a number of segments of at least 1, or a MemoryBudget, got {checkpoint!r}; "
        "a budget of N bytes is tt.bptt.MemoryBudget(N)"
    )


def within_budget(steps: int, budget: MemoryBudget, footprint: Footprint, *, who: str) -> Placement:
    """The placement that fits into the budget and runs the fewest steps again (Gruslys et al. 2016).

    Raises:
        UsageError: not even one step fits.
    """
    fitting = [(_cost(steps, placement), placement) for placement in _candidates(steps, budget, footprint)]
    if not fitting:
        least = footprint.of_segment(1)
        raise UsageError(
            f"{who}: checkpoint must be a budget of at least {least} bytes, which one time step takes, "
            f"got {budget.bytes}; use MemoryBudget({least}) or more, or a smaller batch"
        )
    return min(fitting, key=lambda pair: pair[0])[1]


def _candidates(steps: int, budget: MemoryBudget, footprint: Footprint) -> Iterator[Placement]:
    """For each number of segments whose longest is shorter than with fewer, the most states that fit beside it."""
    root = math.isqrt(steps)
    numbers = {*range(1, root + 1), *(-(-steps // length) for length in range(1, root + 1))}
    for segments in sorted(numbers):
        free = budget.bytes - footprint.of_segment(-(-steps // segments))
        if free >= 0:
            snapshots = free // footprint.of_a_state if footprint.of_a_state else segments
            yield Placement(segments, min(segments - 1, snapshots))


def _cost(steps: int, placement: Placement) -> float:
    """Steps that are run beyond those of full BPTT, and calls at their price in steps."""
    again = advances(placement.segments, placement.snapshots)
    # The last segment is differentiated as it is run first; the others are run again for that.
    calls = again + placement.segments
    return again * steps / placement.segments + calls * _STEPS_OF_A_CALL


def advances(segments: int, snapshots: int) -> int:
    """The least number of segments run only for the state behind them, over the forward and the backward pass.

    r n - β(s + 2, r - 1) with β(s, r) = (s + r)! / (s! r!) and the least r for which n ≤ β(s + 1, r).

    Source: Griewank & Walther 2000, "Algorithm 799: revolve", with the first state counted as one of s + 1.
    """
    states = snapshots + 1
    repeats = _repeats(segments, states)
    return repeats * segments - math.comb(states + repeats, states + 1)


def first_border(segments: int, snapshots: int) -> int:
    """How many segments to run before the first state is kept, so that `advances` are enough: 1..segments - 1.

    Any k with β(s + 1, r - 2) ≤ k ≤ β(s + 1, r - 1) and β(s, r - 1) ≤ n - k ≤ β(s, r) is optimal; this is the least.
    """
    states = snapshots + 1
    repeats = _repeats(segments, states)
    least = math.comb(states + repeats - 2, states) if repeats > 1 else 0
    return max(1, least, segments - math.comb(snapshots + repeats, snapshots))


def _repeats(segments: int, states: int) -> int:
    """The least r with n ≤ β(S, r): how often a segment is run at most, its differentiation not counted."""
    if states == 1:
        return segments - 1
    repeats = 0
    while math.comb(states + repeats, states) < segments:
        repeats += 1
    return repeats
