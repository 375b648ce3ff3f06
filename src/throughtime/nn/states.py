"""Hidden states as PyTorch hands them in and out, and as the layers use them: a `State` for each (layer, direction)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.errors import ShapeError


class StepStates(NamedTuple):
    """Every step of one layer in one direction, as `return_states="all"` gives it.

    h (T, B, H or P), the memory c (T, B, H) of an LSTM (None for the others), and the gates, a NamedTuple of
    (T, B, H) each: i, f, g, o of an LSTM, r, z, n of a GRU, none of an RNN. With `batch_first` (B, T, ·).
    Behind a sequence's length all are zero.
    """

    h: Tensor
    c: Tensor | None
    gates: Any


def split_state(
    state: Any, *, kind: Any, sizes: Sequence[Sequence[int]], directions: int, batched: bool, batch: int, who: str
) -> list[list[Any]]:
    """PyTorch's (L · D, B, size) tensors as `kind` of (B, size) for each [layer][direction].

    Layers of unequal sizes hand their states in as one (D, B, size) tensor for each layer.

    Raises:
        ShapeError: wrong number or shape of tensors.
    """
    names = kind._fields
    fields = [state] if len(names) == 1 else state
    if len(names) > 1 and (isinstance(state, Tensor) or len(state) != len(names)):
        raise ShapeError(
            f"{who}: state must be a tuple ({', '.join(f'{name}_0' for name in names)}), got {_form(state)}"
        )
    per_field = []
    for index, (name, field) in enumerate(zip(names, fields, strict=True)):
        layers = _per_layer(field, len(sizes), directions)
        if not batched and layers is not None:
            layers = [layer[:, None] if layer.dim() == 2 else layer for layer in layers]
        expected = [(directions, batch, layer_sizes[index]) for layer_sizes in sizes]
        if layers is None or [tuple(layer.shape) for layer in layers] != expected:
            raise ShapeError(f"{who}: {name}_0 must be {_expectation(expected, batched)}, got {_form(field)}")
        per_field.append(layers)
    return [
        [kind(*(field[layer][direction] for field in per_field)) for direction in range(directions)]
        for layer in range(len(sizes))
    ]


def _per_layer(field: Any, layers: int, directions: int) -> list[Tensor] | None:
    """One (D, B, size) tensor a layer, from one (L · D, B, size) tensor or a sequence of tensors."""
    if isinstance(field, Tensor):
        return list(field.chunk(layers)) if field.dim() >= 2 and field.shape[0] == layers * directions else None
    return list(field) if isinstance(field, (list, tuple)) and len(field) == layers else None


def join_state(states: list[list[Any]], *, equal_sizes: bool, batched: bool) -> Any:
    """The states of every [layer][direction] as PyTorch returns them: h_n, or (h_n, c_n).

    Each is (L · D, B, size); for layers of unequal sizes a tuple of one (D, B, size) tensor for each layer.
    """
    joined: list[Any] = []
    for index in range(len(states[0][0])):
        layers = [[state[index] for state in directions] for directions in states]
        if equal_sizes:
            joined.append(_stacked([field for layer in layers for field in layer], batched))
        else:
            joined.append(tuple(_stacked(layer, batched) for layer in layers))
    return joined[0] if len(joined) == 1 else tuple(joined)


def _stacked(fields: list[Tensor], batched: bool) -> Tensor:
    """(fields, B, size), without the batch's axis where there is none.

    Always a copy, a single one too: the caller may change it in place, and an engine's own state may be saved for the
    backward pass, or be the state that the caller gave.
    """
    stacked = torch.stack(fields)
    return stacked if batched else stacked.squeeze(1)


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"{len(value)} of {', '.join(_form(item) for item in value)}"
    return type(value).__name__


def _expectation(expected: list[tuple[int, int, int]], batched: bool) -> str:
    shapes = [shape if batched else (shape[0], shape[2]) for shape in expected]
    if len(set(shapes)) == 1:
        return str((shapes[0][0] * len(shapes), *shapes[0][1:]))
    return f"a tuple of one tensor a layer, {', '.join(map(str, shapes))}"
