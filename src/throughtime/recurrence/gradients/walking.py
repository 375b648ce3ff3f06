"""One forward and one backward pass of a layer in which every recurrence is watched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from throughtime.errors import UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.kernels.native.autograd import BackwardPass, run_differentiably
from throughtime.recurrence.gradients.factors import Factors
from throughtime.recurrence.gradients.unrolling import (
    Loss,
    check_its_own,
    detached,
    loss_of,
    runs_natively,
    send_back,
)
from throughtime.recurrence.lengths import inside
from throughtime.recurrence.walk import Place, walk


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

    def __init__(self, layer: Any, learnt: Mapping[str, Tensor], gather: Gather, *, who: str) -> None:
        self._layer, self._learnt = layer, learnt
        self._gather = gather
        self._who = who
        self._rows = 0
        self._present: Tensor | None = None  # (T, B, 1)
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
            UsageError: the inputs are no tensor, or the loss is not of a shape that is allowed.
        """
        if not isinstance(inputs, Tensor):
            raise UsageError(f"{self._who}: inputs must be a padded tensor with lengths=, got {type(inputs).__name__}")
        with torch.enable_grad():
            outputs, final_state = walk(
                self._layer, self._run, detached(inputs), detached(state), lengths=lengths, who=self._who
            )
            loss = loss_of(outputs, final_state, self._present_in(outputs), targets_or_loss, who=self._who)
            allowed = self.loss_shapes(self._rows)
            if tuple(loss.shape) not in allowed:
                raise UsageError(
                    f"{self._who}: loss must be of shape {' or '.join(map(str, allowed))}, got {tuple(loss.shape)}; "
                    "sum over the other axes"
                )
            # What is gathered on the way is as precise as what the kernels hand out, whatever the forward pass was.
            with torch.autocast(inputs.device.type, enabled=False):
                send_back(list(self._learnt.values()), loss.sum(), who=self._who)
        return loss.detach()

    def _present_in(self, outputs: Tensor) -> Tensor | None:
        """Which outputs, in the layer's own layout, are no padding; None where all are."""
        present = self._present
        if present is None:
            return None
        if outputs.dim() == 2:
            return present[:, 0]
        return present.transpose(0, 1) if getattr(self._layer, "batch_first", False) else present

    def loss_shapes(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """Of a loss of a batch of that many rows: one number."""
        return ((),)

    def _run(self, call: Recurrence, place: Place) -> Unfolded:
        check_its_own(call, place, self._learnt, who=self._who)
        self._rows = call.inputs.shape[1]
        self._present = None if call.lengths is None else inside(call.lengths, call.inputs)[..., None]
        self._gather.expect(call.inputs.shape[self.axis])
        native = runs_natively(self._layer, call)
        self.engines.append("native" if native else "reference")
        if native:
            return run_differentiably(call, lambda found: self._take(found, place))
        return self._run_copied(call, place)

    @abstractmethod
    def _take(self, found: BackwardPass, place: Place) -> None:
        """What the native backward pass handed out."""

    @abstractmethod
    def _run_copied(self, call: Recurrence, place: Place) -> Unfolded:
        """The call with copies whose gradients are handed to the `Gather`."""
