"""Random masks of regularised recurrence, drawn before the loop, so that every engine sees the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from throughtime.errors import UsageError


def checked_probability(value: float, *, who: str, name: str) -> float:
    """`value`, when it is a probability below 1 (dropping everything would leave nothing to scale up).

    Raises:
        UsageError: outside [0, 1).
    """
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UsageError(f"{who}: {name} must be a probability in [0, 1), got {value!r}")
    return float(value)


def locked_mask(like: Float[Tensor, "..."], size: tuple[int, ...], probability: float) -> Tensor:
    """A dropout mask of the given size: 0 with `probability`, else 1 / (1 - probability)."""
    return torch.empty(size, dtype=like.dtype, device=like.device).bernoulli_(1 - probability) / (1 - probability)


def zoneout_masks(
    like: Float[Tensor, "T B _"], sizes: Sequence[int], probabilities: Sequence[float], training: bool
) -> list[Tensor | None]:
    """For each field of the state, the share (T, B, size) of the old value that each unit keeps at each step.

    In training each unit keeps all of it with its probability; otherwise every unit keeps the expected share.
    Source: Krueger et al. 2017, section 3.
    """
    shares: list[Tensor | None] = []
    for size, probability in zip(sizes, probabilities, strict=True):
        shape = (*like.shape[:2], size)
        share = torch.full((), probability, dtype=like.dtype, device=like.device).expand(shape)
        shares.append((torch.bernoulli(share) if training else share) if probability else None)
    return shares


class LockedDropout(nn.Module):
    """Dropout with one mask for a whole sequence: the same units of (T, B, ·) are dropped at every time step.

    Source: Gal & Ghahramani 2016; called locked dropout by Merity, Keskar & Socher 2018.

    Raises:
        UsageError: `probability` is not in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = checked_probability(probability, who="LockedDropout", name="probability")

    def forward(self, inputs: Float[Tensor, "T B F"]) -> Float[Tensor, "T B F"]:
        """In training, `inputs` times a fresh mask (1, B, F); otherwise `inputs`."""
        mask = self.mask(inputs[0]) if len(inputs) else None
        return inputs if mask is None else inputs * mask

    def mask(self, like: Float[Tensor, "B F"]) -> Float[Tensor, "B F"] | None:
        """In training, a fresh mask for the steps of one sequence, each like `like`; otherwise None."""
        if not self.training or not self.probability:
            return None
        return locked_mask(like, tuple(like.shape), self.probability)

    def extra_repr(self) -> str:
        """The probability."""
        return f"{self.probability}"
