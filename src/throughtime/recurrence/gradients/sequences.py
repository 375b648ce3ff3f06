"""The gradient of each sequence of a batch, in one backward pass: `sequence_gradients`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from throughtime.kernels import Recurrence, Unfolded
from throughtime.kernels.native.autograd import BackwardPass
from throughtime.recurrence.gradients.copies import copied_sequences
from throughtime.recurrence.gradients.native import factors_of
from throughtime.recurrence.gradients.reduction import Reduce, Reduction
from throughtime.recurrence.gradients.unrolling import Loss, learnt_parameters
from throughtime.recurrence.gradients.walking import Walk
from throughtime.recurrence.walk import Place

_WHO = "sequence_gradients"


@dataclass(frozen=True)
class SequenceGradients:
    """What `sequence_gradients` found.

    `loss`: the loss as it was returned, (B,) or one number. `parameters`: by the names of `layer.named_parameters()`,
    the gradient of each sequence, (B, *shape), or its norm or projection, (B,). `engines`: for each layer and direction
    "native", or "reference" where every sequence was run by itself.
    """

    loss: Tensor
    parameters: dict[str, Tensor]
    engines: tuple[str, ...]


def sequence_gradients(
    layer: torch.nn.Module,
    inputs: Tensor,
    targets_or_loss: Tensor | Loss,
    *,
    state: Any = None,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    reduce: Reduce = "full",
    max_bytes: int = 4 << 30,
) -> SequenceGradients:
    """dL/dW by sequence: the part of the gradient that each row of a batch has, from one backward pass over all rows.

    The loss is to be a sum over sequences, L = Σ_b L_b: then row b's gradient is that of L_b, as if the batch had only
    that row. Of a loss that compares rows with each other it is dL/dW(b), every sequence having a copy W(b) of the
    parameters to itself. In either case the rows sum to `.grad`, which is not touched.

        >>> import torch, throughtime as tt
        >>> gru = tt.nn.GRU(3, 5)
        >>> found = tt.bptt.sequence_gradients(gru, torch.randn(7, 2, 3), lambda outputs: outputs.square().sum((0, 2)))
        >>> found.loss.shape, found.parameters["weight_hh_l0"].shape
        (torch.Size([2]), torch.Size([2, 15, 5]))

    The built-in cells run on the native engine, all rows together. Where it is not to be had, and for a `tt.Cell` of
    one's own, every row is run by itself in plain torch, which gives the same numbers and is slow.

    Args:
        layer: `tt.nn.RNN`, `LSTM`, `GRU`, `CellStack`, or any `tt.Cell`. Parameters that require no gradient are left
            out.
        inputs: as the layer takes them, but no `PackedSequence`; (T, B, I) for a cell.
        targets_or_loss: a function `loss(outputs)`, or `loss(outputs, final_state)` if it needs two arguments, that
            returns (B,), the loss of each sequence, or their sum; or targets of the outputs' shape, then
            L = ½ Σ (outputs - targets)² over all outputs that are not padding.
        state: as the layer takes it; zeros when missing.
        lengths: the number of steps of each sequence.
        reduce: "full" for (B, *shape); "norm" for Frobenius norms (B,); or a mapping from names of parameters to
            directions of their shapes, for the inner products (B,) of these parameters alone.
        max_bytes: the most that "full" may take.

    Raises:
        UsageError: not a layer or cell; weights that are shared or made of others, or a first state made of them;
            a loss of another shape, or of no gradient; an unknown `reduce`; more than `max_bytes`.
        ShapeError: inputs, state, lengths, targets or directions that do not fit.
    """
    parameters = learnt_parameters(layer, who=_WHO)
    reduction = Reduction(parameters, reduce, "sequences", max_bytes=max_bytes, who=_WHO)
    walk = SequenceWalk(layer, parameters, reduction, who=_WHO)
    loss = walk.walk(inputs, targets_or_loss, state, lengths)
    return SequenceGradients(loss, reduction.found, tuple(walk.engines))


class SequenceWalk(Walk):
    """Tells a `Gather` of each sequence."""

    axis = 1

    def loss_shapes(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """One number, or one for each sequence."""
        return ((), (rows,))

    def _take(self, found: BackwardPass, place: Place) -> None:
        for name, factors in factors_of(found).items():
            self._gather.take_factors(place.parameter(name), factors.transposed())

    def _run_copied(self, call: Recurrence, place: Place) -> Unfolded:
        def take(b: int, name: str, gradient: Tensor) -> None:
            self._gather.take(b, place.parameter(name), gradient)

        return copied_sequences(call, take)
