"""From hidden states to outputs, and from outputs to the loss."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from throughtime.errors import ShapeError

# The target that does not count, as in torch.nn.functional.cross_entropy.
IGNORED = -100


class Readout(nn.Module):
    """o(t) = c + V h(t): unnormalised log-probabilities from the hidden state (eq. 10.10).

    `weight_ho` (O, H) is V; handed in from an embedding, input and output embeddings are tied
    (Press & Wolf 2017; Inan, Khosravi & Socher 2017).

    Raises:
        ShapeError: a tied weight that is not (O, H).
    """

    def __init__(self, hidden_size: int, output_size: int, *, tied_weight: Tensor | None = None) -> None:
        super().__init__()
        if tied_weight is not None and tied_weight.shape != (output_size, hidden_size):
            raise ShapeError(
                f"Readout: a tied weight must be ({output_size}, {hidden_size}), got {tuple(tied_weight.shape)}; "
                "the embedding size must equal the size of the last layer"
            )
        self.weight_ho = tied_weight if tied_weight is not None else nn.Parameter(torch.empty(output_size, hidden_size))
        self.bias_ho = nn.Parameter(torch.zeros(output_size))
        if tied_weight is None:
            bound = 1 / math.sqrt(hidden_size)
            nn.init.uniform_(self.weight_ho, -bound, bound)

    def forward(self, h: Float[Tensor, "*B H"]) -> Float[Tensor, "*B O"]:
        """o = c + V h."""
        return functional.linear(h, self.weight_ho, self.bias_ho)


class Loss(NamedTuple):
    """L = Σ L(t) in nats, a scalar, and the number of targets it sums over."""

    total: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a loss


class SequenceLoss(nn.Module):
    """L = Σ_t L(t) = −Σ_t log p(y(t) | x(1..t)), summed over the steps of all sequences (eqs. 10.12-10.14).

    Targets of -100 do not count.
    """

    def forward(self, logits: Float[Tensor, "T B V"], targets: Int[Tensor, "T B"], *, count: int | None = None) -> Loss:
        """The summed loss in nats; `count` spares counting the targets where the caller knows their number."""
        # Half precision would lose most of a long sum.
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = functional.cross_entropy(
            precise.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return Loss(total, int((targets != IGNORED).sum()) if count is None else count)
