"""A layer's recurrences in the order in which they run, each computed as one asks.

What a layer puts out, how gradients flow through it, each step's own gradients and which engine would run it all come
from one walk: the layer makes the calls and hands its outputs from one to the next, and a `Run` computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from throughtime.cells import Cell
from throughtime.errors import UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.recurrence.lengths import checked_lengths, checked_resets


class Place(NamedTuple):
    """Which recurrence of a layer one is: the layer and direction, counted from 0, and what people call it.

    `parameters` is how the layer calls its cell's parameters, the cell's own name in the place of {}: "{}_l0_reverse".
    """

    layer: int
    direction: int
    where: str
    parameters: str

    def parameter(self, name: str) -> str:
        """The layer's name of its cell's parameter."""
        return self.parameters.format(name)


Run = Callable[[Recurrence, Place], Unfolded]


def walk(
    layer: Any, run: Run, inputs: Any, state: Any = None, *, lengths: Any = None, resets: Any = None, who: str
) -> tuple[Any, Any]:
    """The outputs and the final state of a layer of `tt.nn` or a `tt.Cell`, as it returns them, `run` computing them.

    Raises:
        UsageError: `layer` is neither.
        ShapeError: inputs, state, lengths or resets that do not fit.
    """
    if isinstance(layer, Cell):
        call = recurrence_of(layer, inputs, state, lengths=lengths, resets=resets)
        outputs, final, *_ = run(call, Place(0, 0, type(layer).__name__, "{}"))
        return outputs, final
    check_layer(layer, who=who)
    found: tuple[Any, Any] = layer.walk(run, inputs, state, lengths=lengths, resets=resets)
    return found


def check_layer(layer: Any, *, who: str) -> None:
    """See that `layer` is one that can be walked.

    Raises:
        UsageError: it is neither a layer of `tt.nn` nor a `tt.Cell`.
    """
    if not isinstance(layer, Cell) and not hasattr(layer, "walk"):
        raise UsageError(
            f"{who}: expected a tt.nn layer or a tt.Cell, got {type(layer).__name__}; "
            "tt.nn.replace_torch_layers(module) makes tt.nn layers of torch's"
        )


def recurrence_of(
    cell: Cell, inputs: Tensor, state: Any, *, lengths: Any = None, resets: Any = None, reverse: bool = False
) -> Recurrence:
    """A cell over the steps of `inputs`, all checked.

    Raises:
        ShapeError: inputs, state, lengths or resets that do not fit.
    """
    who = type(cell).__name__
    call = cell.recurrence(inputs, state)
    lengths = checked_lengths(lengths, inputs, who=who)
    resets = checked_resets(resets, inputs, who=who, lengths=lengths)
    return replace(call, lengths=lengths, resets=resets, reverse=reverse)


def uncomputed(
    layer: Any,
    inputs: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    checkpoint: Any = None,
    lookup: Any = None,
) -> list[tuple[str, Recurrence]]:
    """The recurrences of a layer that has `walk`, and what they are called; the inputs of all but the first are empty.

    Random masks are drawn as ever. They are the same calls with any `checkpoint` and `lookup`.
    """
    found: list[tuple[str, Recurrence]] = []

    def note(call: Recurrence, place: Place) -> Unfolded:
        found.append((place.where, call))
        return Unfolded(call.inputs.new_empty(*call.inputs.shape[:2], call.state[0].shape[-1]), call.state)

    layer.walk(note, inputs, state, lengths=lengths, resets=resets)
    return found
