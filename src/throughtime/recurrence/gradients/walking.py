"""One forward and one backward pass of a layer in which every recurrence is watched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from throughtime.cells import Cell
from throughtime.errors import UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.kernels.native.autograd import BackwardPass, run_differentiably
from throughtime.recurrence.gradients.factors import Factors
from throughtime.recurrence.gradients.unrolling import (
    Loss,
    Place,
    detached,
    learnt_parameters,
    loss_of,
    runs_natively,
    send_back,
    unroll,
)


@runtime_checkable
class Gather(Protocol):
    """Keeps what is wanted of N gradients of each parameter."""

    def expect(self, count: int) -> None:
        """N, before anything is taken; more than once for several recurrences."""
        ...

    def take_factors(self, name: str, factors: Factors) -> None:
        """All gradients of a parameter at once."""
        ...

    def take(self, index: int, name: str, gradient: Tensor) -> None:
        """Gradient `index` of a parameter."""
        ...


class Walk(ABC):
    """Runs a layer's recurrences, natively or by copies, and hands what their backward passes tell to a `Gather`."""

    # The axis of the inputs (T, B, I) that has a gradient for each place.
    axis: int

    def __init__(self, layer: torch.nn.Module, gather: Gather, *, who: str) -> None:
        self._layer = layer
        self._gather = gather
        self._who = who
        self.engines: list[str] = []

    def walk(
        self,
        inputs: Tensor,
        targets_or_loss: Tensor | Loss,
        state: Any,
        lengths: Int[Tensor, " B"] | Sequence[int] | None,
    ) -> Tensor:
        """There and back again: the loss.

        Raises:
            UsageError: the loss is not of a shape that is allowed.
        """
        with torch.enable_grad():
            unrolled = unroll(self._layer, detached(inputs), detached(state), lengths, self._run, who=self._who)
            loss = loss_of(unrolled, targets_or_loss, who=self._who)
            if tuple(loss.shape) not in self.loss_shapes(unrolled.rows):
                allowed = " or ".join(str(shape) for shape in self.loss_shapes(unrolled.rows))
                raise UsageError(
                    f"{self._who}: loss must be of shape {allowed}, got {tuple(loss.shape)}; sum over the other axes"
                )
            # What is gathered on the way is as precise as what the kernels hand out, whatever the forward pass was.
            parameters = list(learnt_parameters(self._layer, who=self._who).values())
            with torch.autocast(inputs.device.type, enabled=False):
                send_back(parameters, loss.sum(), who=self._who)
        return loss.detach()

    def loss_shapes(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """Of a loss of a batch of that many rows: one number."""
        return ((),)

    def _run(self, call: Recurrence, place: Place) -> Unfolded:
        self._gather.expect(call.inputs.shape[self.axis])
        native = runs_natively(self._layer, call)
        self.engines.append("native" if native else "reference")
        if native:
            return run_differentiably(call, lambda found: self._take(found, place))
        return self._run_copied(call, place)

    def _name(self, name: str, place: Place) -> str:
        """What the layer calls its cell's parameter."""
        if isinstance(self._layer, Cell):
            return name
        return f"{name}_l{place.layer}" + ("_reverse" if place.direction else "")

    @abstractmethod
    def _take(self, found: BackwardPass, place: Place) -> None:
        """What the native backward pass handed out."""

    @abstractmethod
    def _run_copied(self, call: Recurrence, place: Place) -> Unfolded:
        """The call with copies whose gradients are handed to the `Gather`."""
