"""The gradient of each time step's own copy of the parameters: `step_gradients`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from throughtime.kernels import Recurrence, Unfolded
from throughtime.kernels.native.autograd import BackwardPass
from throughtime.recurrence.gradients.copies import copied_steps
from throughtime.recurrence.gradients.native import factors_of
from throughtime.recurrence.gradients.reduction import Reduce, Reduction
from throughtime.recurrence.gradients.unrolling import Loss, learnt_parameters
from throughtime.recurrence.gradients.walking import Walk
from throughtime.recurrence.walk import Place

_WHO = "step_gradients"


@dataclass(frozen=True)
class StepGradients:
    """What `step_gradients` found. Step t is that of the inputs, in both directions; time comes first everywhere.

    `loss`: L, one number. `parameters`: by the names of `layer.named_parameters()`, dL/dW(t), (T, *shape), or its norm
    or projection, (T,). `states`: `states[layer][direction]` is a `State` with dL/dh(t), (T, B, H), and for an LSTM
    dL/dc(t): total derivatives, by every way from the state after step t to the loss; zero behind a sequence's length.
    `engines`: for each layer and direction "native", or "reference" where every copy was really made.
    """

    loss: Tensor
    parameters: dict[str, Tensor]
    states: tuple[tuple[Any, ...], ...]
    engines: tuple[str, ...]

    @property
    def h(self) -> tuple[tuple[Tensor, ...], ...]:
        """dL/dh(t) (T, B, H) of each [layer][direction]."""
        return tuple(tuple(state[0] for state in layer) for layer in self.states)

    @property
    def c(self) -> tuple[tuple[Tensor, ...], ...]:
        """dL/dc(t) (T, B, H) of each [layer][direction] of an LSTM.

        Raises:
            AttributeError: the cell has no c.
        """
        return tuple(tuple(state.c for state in layer) for layer in self.states)


def step_gradients(
    layer: torch.nn.Module,
    inputs: Tensor,
    targets_or_loss: Tensor | Loss,
    *,
    state: Any = None,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    reduce: Reduce = "full",
    max_bytes: int = 4 << 30,
) -> StepGradients:
    """dL/dW(t): the gradient of the loss by each time step's own copy of each parameter.

    Backpropagation through time sums these, dL/dW = Σ_t dL/dW(t); here they are seen one by one, and so is how much of
    what a network learns comes from which step. `.grad` is not touched. Masks are drawn anew in training mode, as by
    any call of the layer.

        >>> import torch, throughtime as tt
        >>> lstm = tt.nn.LSTM(3, 5)
        >>> found = tt.bptt.step_gradients(lstm, torch.randn(7, 2, 3), lambda outputs: outputs[-1].sum())
        >>> found.parameters["weight_hh_l0"].shape, found.h[0][0].shape
        (torch.Size([7, 20, 5]), torch.Size([7, 2, 5]))

    The built-in cells run on the native engine, which hands out what it sends back at each step: norms then cost less
    than the usual backward pass. Where it is not to be had (`result.engines` tells: layer normalisation, other devices,
    `engine=` another) and for a `tt.Cell` of one's own, each step really gets its copies, step by step in plain torch,
    which gives the same numbers and is slow.

    Args:
        layer: `tt.nn.RNN`, `LSTM`, `GRU`, `CellStack`, or any `tt.Cell`. Parameters that require no gradient are left
            out.
        inputs: as the layer takes them, but no `PackedSequence`; (T, B, I) for a cell.
        targets_or_loss: a function `loss(outputs)`, or `loss(outputs, final_state)` if it needs two arguments, that
            returns one number; or targets of the outputs' shape, then L = ½ Σ (outputs - targets)² over all outputs
            that are not padding. Outputs and final state come as the layer returns them.
        state: as the layer takes it; zeros when missing.
        lengths: the number of steps of each sequence.
        reduce: "full" for (T, *shape); "norm" for Frobenius norms (T,); or a mapping from names of parameters to
            directions of their shapes, for the inner products (T,) of these parameters alone. In float32 a norm far
            smaller than the contributions of the batch's sequences to it is exact to some 3e-4 of those.
        max_bytes: the most that "full" may take.

    Raises:
        UsageError: not a layer or cell; weights that are shared or made of others, or a first state made of them;
            a loss of more than one number, or of no gradient; an unknown `reduce`; more than `max_bytes`.
        ShapeError: inputs, state, lengths, targets or directions that do not fit.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.2.
    """
    parameters = learnt_parameters(layer, who=_WHO)
    reduction = Reduction(parameters, reduce, "steps", max_bytes=max_bytes, who=_WHO)
    walk = _StepWalk(layer, parameters, reduction, who=_WHO)
    loss = walk.walk(inputs, targets_or_loss, state, lengths)
    return StepGradients(loss, reduction.found, walk.states(), tuple(walk.engines))


class _StepWalk(Walk):
    axis = 0

    def __init__(self, *arguments: Any, who: str) -> None:
        super().__init__(*arguments, who=who)
        self._initial: dict[Place, tuple[int, Any]] = {}  # the number of steps, and the state before the first
        self._found: dict[Place, list[Tensor]] = {}  # for each field of the state (T, B, size)

    def states(self) -> tuple[tuple[Any, ...], ...]:
        """dL/ds(t) for each field s of the state, of each [layer][direction]; zero where nothing came back."""
        by_layer: dict[int, list[Any]] = {}
        for place, (steps, state) in self._initial.items():
            found = self._found.get(place) or _zeros(steps, state)
            by_layer.setdefault(place.layer, []).append(type(state)(*found))
        return tuple(tuple(directions) for directions in by_layer.values())

    def _run(self, call: Recurrence, place: Place) -> Unfolded:
        self._initial[place] = call.inputs.shape[0], call.state
        return super()._run(call, place)

    def _take(self, found: BackwardPass, place: Place) -> None:
        self._found[place] = [field for field in found.deltas[1:] if field is not None]
        for name, factors in factors_of(found).items():
            self._gather.take_factors(place.parameter(name), factors)

    def _run_copied(self, call: Recurrence, place: Place) -> Unfolded:
        states = self._found[place] = _zeros(call.inputs.shape[0], call.state)

        def take(t: int, name: str, gradient: Tensor) -> None:
            self._gather.take(t, place.parameter(name), gradient)

        def take_state(t: int, field: int, gradient: Tensor) -> None:
            states[field][t] = gradient

        return copied_steps(call, take, take_state)


def _zeros(steps: int, state: Any) -> list[Tensor]:
    return [field.new_zeros(steps, *field.shape) for field in state]
