"""The gradient of a batch with each sequence's share clipped: `clip_by_sequence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.errors import UsageError
from throughtime.recurrence.gradients.factors import Factors
from throughtime.recurrence.gradients.reduction import Reduction
from throughtime.recurrence.gradients.sequences import SequenceWalk
from throughtime.recurrence.gradients.unrolling import Loss, learnt_parameters

_WHO = "clip_by_sequence"


@dataclass(frozen=True)
class ClippedGradients:
    """What `clip_by_sequence` found.

    `loss`: as it was returned, (B,) or one number. `norms`: of the sequences' gradients before, over all parameters
    together, (B,). `parameters`: the sums of what clipping left, by the names of `layer.named_parameters()`.
    """

    loss: Tensor
    norms: Tensor
    parameters: dict[str, Tensor]


def clip_by_sequence(
    layer: torch.nn.Module,
    inputs: Tensor,
    targets_or_loss: Tensor | Loss,
    max_norm: float,
    *,
    state: Any = None,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    max_bytes: int = 4 << 30,
) -> ClippedGradients:
    """Σ_b min(1, max_norm / ‖g_b‖) g_b, where g_b is what `sequence_gradients` gives for row b.

    No sequence has more weight in the sum than `max_norm`: for data with outliers and, with noise added, for
    differential privacy. On the native engine no g_b is multiplied out; elsewhere all are, in at most `max_bytes`.

        >>> import torch, throughtime as tt
        >>> lstm = tt.nn.LSTM(3, 5)
        >>> found = tt.bptt.clip_by_sequence(lstm, torch.randn(7, 2, 3), lambda outputs: outputs[-1].sum(1), 0.1)
        >>> for name, parameter in lstm.named_parameters():
        ...     parameter.grad = found.parameters[name] / 2
        >>> found.norms.shape
        torch.Size([2])

    Raises:
        UsageError: `max_norm` is not positive; and as for `sequence_gradients`.
        ShapeError: inputs, state, lengths or targets that do not fit.

    Source: Abadi et al. 2016, algorithm 1.
    """
    parameters = learnt_parameters(layer, who=_WHO)
    if not max_norm > 0:
        raise UsageError(f"{_WHO}: max_norm must be positive, got {max_norm}")
    parts = _Parts(parameters, Reduction(parameters, "full", "sequences", max_bytes=max_bytes, who=_WHO))
    loss = SequenceWalk(layer, parameters, parts, who=_WHO).walk(inputs, targets_or_loss, state, lengths)
    norms = parts.norms()
    weights = torch.where(norms > max_norm, max_norm / norms, 1)
    return ClippedGradients(loss, norms, parts.weighted_sums(weights))


class _Parts:
    """Every sequence's gradients, as factors where they come as such."""

    def __init__(self, parameters: Mapping[str, Tensor], whole: Reduction) -> None:
        self._parameters = parameters
        self._factors: dict[str, Factors] = {}
        self._whole = whole
        self._count = 0

    def expect(self, count: int) -> None:
        self._count = count

    def take_factors(self, name: str, factors: Factors) -> None:
        if name in self._parameters:
            self._factors[name] = factors

    def take(self, index: int, name: str, gradient: Tensor) -> None:
        self._whole.expect(self._count)
        self._whole.take(index, name, gradient)

    def norms(self) -> Float[Tensor, " B"]:
        """Over all parameters."""
        first = next(iter(self._parameters.values()))
        squares = first.new_zeros(self._count)
        for factors in self._factors.values():
            squares = squares + factors.squared_norms()
        for name, gradients in self._whole.found.items():
            if name not in self._factors:
                squares = squares + gradients.flatten(1).square().sum(1)
        return squares.sqrt()

    def weighted_sums(self, weights: Float[Tensor, " B"]) -> dict[str, Tensor]:
        """Of each parameter, in its type, as `.grad` has it; zero where the loss has nothing to do with it."""
        found = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for name, gradients in self._whole.found.items():
            found[name] = torch.tensordot(weights.to(gradients.dtype), gradients, 1)
        for name, factors in self._factors.items():
            found[name] = factors.weighted_sum(weights).to(self._parameters[name].dtype)
        return found
