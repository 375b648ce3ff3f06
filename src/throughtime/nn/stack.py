"""Any cells over each other, in one or two directions.

    x₀(t) = x(t);   x_l(t) = h_l(t), or x_{l-1}(t) + h_l(t) from the second layer on with `residual`
    h_l(t) = f_l(h_l(t-1), x_{l-1}(t))                               layer l, forward in time
    h_l(t) = [f_l forward ; f'_l backward], the latter from h(t+1)   with two directions (fig. 10.11)

Layers over each other are the first of the three ways to make a recurrent network deep (fig. 10.13a).
Source: Goodfellow, Bengio & Courville 2016, sections 10.3 and 10.5; Graves, Mohamed & Hinton 2013.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cells import Cell
from throughtime.errors import ShapeError, UsageError
from throughtime.kernels import Recurrence, StepEquations, check_engine_name
from throughtime.layers import checked_probability
from throughtime.recurrence import MemoryBudget, checked_lengths, checked_resets
from throughtime.recurrence.checkpointing import engine_run
from throughtime.recurrence.walk import Place, Run, uncomputed


class CellStack(nn.Module):
    """Layers of any `tt.Cell`s, one over the other, run over whole sequences as the layers of `tt.nn` are.

        >>> import torch, throughtime as tt
        >>> stack = tt.nn.CellStack([tt.nn.LSTMCell(3, 5), tt.nn.GRUCell(5, 4)])
        >>> outputs, final_state = stack(torch.zeros(7, 2, 3), lengths=[7, 4])
        >>> outputs.shape, [type(state).__name__ for state in final_state]
        (torch.Size([7, 2, 4]), ['LSTMState', 'GRUState'])

    Args:
        cells: one for each layer, the bottom one first; each takes what the one below puts out.
        backward: with it the stack is bidirectional: one cell for each layer that reads every sequence from its own
            end. Both directions take the same inputs; their outputs stand side by side, forward first.
        dropout: probability that an output of a layer is dropped on its way to the next, in training.
        residual: from the second layer on, a layer's inputs are added to its outputs.
        engine: "auto", or the name of one engine; `tt.kernels.explain(stack, inputs)` tells which runs.

    Raises:
        ShapeError: a layer that does not take what the layer below gives; with `residual`, layers of unequal sizes.
        UsageError: no cells, something that is no `tt.Cell`, or not as many backward cells as layers.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        backward: Sequence[Cell] | None = None,
        dropout: float = 0.0,
        residual: bool = False,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        _check_cells(cells, backward)
        self.cells = nn.ModuleList(cells)
        self.backward_cells = None if backward is None else nn.ModuleList(backward)
        self.dropout = checked_probability(dropout, who="CellStack", name="dropout")
        self.residual = residual
        self.engine = check_engine_name(engine, who="CellStack")
        _check_sizes(self._layers(), residual)
        self.input_size: int = cells[0].input_size
        self.num_layers = len(cells)
        self.bidirectional = backward is not None

    def _layers(self) -> list[tuple[Any, ...]]:
        """The cell of each direction, layer by layer."""
        return list(zip(self.cells, *([] if self.backward_cells is None else [self.backward_cells]), strict=True))

    @property
    def output_size(self) -> int:
        """The last axis of the outputs: the size of the last layer's h, of both directions where there are two."""
        return _layer_size(self._layers()[-1])

    def forward(
        self,
        inputs: Float[Tensor, "T B I"],
        state: Any = None,
        *,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
        resets: Bool[Tensor, "T B"] | None = None,
        checkpoint: str | int | MemoryBudget | None = None,
    ) -> tuple[Float[Tensor, "T B H"], tuple[Any, ...]]:
        """Run the layers over a batch of sequences.

        Args:
            inputs: (T, B, I).
            state: a `State` for each layer, the bottom one first; in two directions a pair (forward, backward) of them
                for each layer; what each cell begins with when missing. A final state handed on carries sequences on.
            lengths: the number of steps of each sequence, in any order, zero allowed.
            resets: true at [t, b] where row b begins a new sequence; its state is cleared before step t.
            checkpoint: as of `tt.unfold`, for each layer and direction: less memory, the same gradients.

        Returns:
            outputs (T, B, output_size), zero behind a length, and the final state, nested as `state` is.

        Raises:
            ShapeError: inputs, state, lengths or resets that do not fit.
            UsageError: resets in two directions, or a `checkpoint` that there is not.
            EngineError: the engine asked for by name cannot run a cell.
        """
        compute = engine_run(self.engine, checkpoint, who="CellStack")
        return self.walk(lambda call, _: compute(call), inputs, state, lengths=lengths, resets=resets)

    def walk(
        self, run: Run, inputs: Tensor, state: Any = None, *, lengths: Any = None, resets: Any = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """The outputs and the final state as `forward` returns them, `run(call, place)` computing each recurrence.

        Raises:
            ShapeError: inputs, state, lengths or resets that do not fit.
        """
        x, initial, lengths, resets = self._checked(inputs, state, lengths, resets)
        final: list[Any] = []
        for layer, cells in enumerate(self._layers()):
            found = []
            for direction, (cell, own) in enumerate(zip(cells, initial[layer], strict=True)):
                call = cell.recurrence(x, own, lengths=lengths, resets=resets, reverse=bool(direction))
                found.append(run(call, _place(layer, direction, cell)))
            outputs = torch.cat([unfolded.outputs for unfolded in found], -1)  # (T, B, D·H)
            if self.residual and layer > 0:
                outputs = outputs + x
            if self.training and self.dropout and layer < self.num_layers - 1:
                outputs = functional.dropout(outputs, self.dropout)
            x = outputs
            after = tuple(unfolded.final_state for unfolded in found)
            final.append(after if self.bidirectional else after[0])
        return x, tuple(final)

    def recurrences(self, inputs: Tensor, state: Any = None, **options: Any) -> Iterator[tuple[str, Recurrence]]:
        """Each layer's and direction's `Recurrence`, uncomputed, for `tt.kernels.explain`."""
        yield from uncomputed(self, inputs, state, **options)

    def step_equations(self) -> list[StepEquations]:
        """The equations of each layer with the weights of this moment, the bottom one first, to be stepped by hand.

        `dropout` between the layers, and `residual`, are the caller's to apply.

        Raises:
            UsageError: the stack is bidirectional: what reads from the end has no next step.
        """
        if self.bidirectional:
            raise UsageError("CellStack: a bidirectional stack cannot be taken step by step; leave `backward` out")
        return [cell.bind() for (cell,) in self._layers()]

    def zero_states(self, batch_size: int, like: Tensor) -> list[Any]:
        """The `State` of each layer before the first step, of the type and on the device of `like`.

        Zeros, unless a cell of one's own begins with something else.
        """
        return [cell.initial_state(batch_size, dtype=like.dtype, device=like.device) for cell, *_ in self._layers()]

    def _checked(
        self, inputs: Tensor, state: Any, lengths: Any, resets: Any
    ) -> tuple[Tensor, list[list[Any]], Tensor | None, Tensor | None]:
        """The arguments of a call, the state as [layer][direction]; None for a direction that begins anew."""
        if inputs.dim() != 3 or inputs.shape[2] != self.input_size:
            raise ShapeError(f"CellStack: inputs must be (T, B, {self.input_size}), got {tuple(inputs.shape)}; "
                             "the time axis comes first")  # fmt: skip
        directions = 2 if self.bidirectional else 1
        lengths = checked_lengths(lengths, inputs, who="CellStack")
        resets = checked_resets(resets, inputs, who="CellStack", lengths=lengths)
        if state is None:
            return inputs, [[None] * directions] * self.num_layers, lengths, resets
        layers = [list(own) if directions == 2 else [own] for own in state]
        if len(layers) != self.num_layers or any(len(own) != directions for own in layers):
            form = "a pair (forward, backward) of states" if self.bidirectional else "one state"
            got = f"{len(layers)} layers of {[len(own) for own in layers]} states"
            raise ShapeError(f"CellStack: state must be {form} for each of {self.num_layers} layers, got {got}")
        return inputs, layers, lengths, resets

    def extra_repr(self) -> str:
        """What differs from the defaults."""
        usual = {"dropout": 0.0, "residual": False, "engine": "auto"}
        return ", ".join(
            f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value
        )


def _place(layer: int, direction: int, cell: Cell) -> Place:
    where = f"CellStack layer {layer} {type(cell).__name__}{' reverse' if direction else ''}"
    return Place(layer, direction, where, f"{'backward_cells' if direction else 'cells'}.{layer}.{{}}")


def _check_cells(cells: Sequence[Any], backward: Sequence[Any] | None) -> None:
    if not cells:
        raise UsageError("CellStack: expected at least one cell, got none")
    if backward is not None and len(backward) != len(cells):
        raise UsageError(
            f"CellStack: backward must have one cell for each of {len(cells)} layers, got {len(backward)}; "
            "leave it out for one direction"
        )
    for cell in (*cells, *(backward or ())):
        if not isinstance(cell, Cell):
            raise UsageError(
                f"CellStack: expected tt.Cells, one for each layer, got {type(cell).__name__}; "
                "tt.nn.LSTMCell and the like are cells, tt.nn.LSTM is a stack of its own"
            )


def _check_sizes(layers: list[tuple[Any, ...]], residual: bool) -> None:
    for layer, cells in enumerate(layers):
        below = _layer_size(layers[layer - 1]) if layer else cells[0].input_size
        for cell in cells:
            if cell.input_size != below:
                source = f"layer {layer - 1} gives" if layer else "the forward cell has"
                raise ShapeError(
                    f"CellStack: layer {layer} {type(cell).__name__}: input_size must be {below}, which {source}, "
                    f"got {cell.input_size}"
                )
    sizes = [_layer_size(cells) for cells in layers]
    if residual and len(set(sizes)) > 1:
        raise ShapeError(f"CellStack: residual needs layers of one size, got {sizes}")


def _layer_size(cells: tuple[Any, ...]) -> int:
    """The size of a layer's outputs: h, the first field of the state, of each direction."""
    return sum(cell.state_sizes()[0] for cell in cells)
