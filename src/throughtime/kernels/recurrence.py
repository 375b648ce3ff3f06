"""What an engine is asked to compute, and what it hands back.

A `Recurrence` is one cell through τ time steps in one direction: everything that shapes the result is in it, the
random masks included, so that every engine that takes it computes the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class StepEquations(Protocol):
    """A cell together with the weights that it uses this time.

    `family` is "rnn", "lstm" or "gru" where the equations are the built-in ones, which an engine may know by
    heart, and "custom" for a user's own cell, of which an engine knows only these methods.
    """

    @property
    def family(self) -> str:
        """Which equations these are."""
        ...

    def project_inputs(self, inputs: Tensor) -> Tensor:
        """All that x contributes and the state does not, for any leading axes: hoisted out of the loop."""
        ...

    def advance(
        self, projected: Tensor, state: Any, recurrent_mask: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One time step: the next state and the gates. `recurrent_mask` scales h(t-1) where it enters a product."""
        ...


class Lookup(NamedTuple):
    """Where inputs come from: x(t) of a sequence is the row of `weight` (V, I) that its token says."""

    tokens: Int[Tensor, "T B"]
    weight: Float[Tensor, "V I"]


@dataclass(frozen=True)
class Recurrence:
    """One cell over τ steps: inputs, state and all that modifies the plain recurrence.

    `state` is the cell's own NamedTuple, its first field h, the output. A sequence shorter than T stops at its
    length: later outputs are zero, its state stays. `resets[t, b]` means that a new sequence begins there: the
    state before step t is zero. With `reverse` time runs from the last step to the first. `zoneout` holds, for
    each field of the state, the share of the old value that is kept at each step (Krueger et al. 2017). `lookup` tells
    where `inputs` come from, so that an engine may multiply each row of a table once, however often it comes; then the
    inputs' gradient goes to the table, and `inputs` themselves may get none.
    """

    cell: StepEquations
    inputs: Float[Tensor, "T B I"]
    state: Any
    lengths: Int[Tensor, " B"] | None = None
    resets: Bool[Tensor, "T B"] | None = None
    reverse: bool = False
    recurrent_mask: Float[Tensor, "B H"] | None = None
    zoneout: Sequence[Float[Tensor, "T B _"] | None] | None = None
    record: bool = False
    lookup: Lookup | None = None


class Unfolded(NamedTuple):
    """The outputs h(1..τ) (T, B, H), the final state, and, when recorded, every state and gate (T, B, ·)."""

    outputs: Tensor
    final_state: Any
    states: Any = None
    gates: Any = None


@runtime_checkable
class Engine(Protocol):
    """One way of computing a `Recurrence`. A new engine is a module with these two, listed in `dispatch.ENGINES`."""

    name: str

    def refusal(self, call: Recurrence) -> str | None:
        """Why this engine cannot run the call; None when it can."""
        ...

    def run(self, call: Recurrence) -> Unfolded:
        """Compute the call, differentiably, twice if asked."""
        ...
