"""What a derivation is about: inputs, targets, the weights and the outputs' own gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A batch of sequences for a network with the output o(t) = c + V h(t) and ŷ = softmax(o), all of it checked.

    `running[t, b]` is true where step t lies within sequence b.
    """

    equations: Any
    V: Float[Tensor, "O H"]
    c: Float[Tensor, " O"]
    inputs: Float[Tensor, "T B I"]
    targets: Int[Tensor, "T B"]
    running: Bool[Tensor, "T B"]
    state: Any

    @property
    def bias(self) -> Tensor | float:
        """b (G · H,), the sum of both biases; 0 where the cell has none."""
        weights = self.equations.weights
        return 0.0 if weights.bias_ih is None else weights.bias_ih + weights.bias_hh

    def inside(self, t: int, values: Tensor) -> Tensor:
        """`values` (B, ·) of step t; zero where the sequence has ended."""
        return torch.where(self.running[t][:, None], values, 0)

    def outputs(
        self, t: int, h: Float[Tensor, "B H"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B O"], Float[Tensor, "B O"]]:
        """L(t), ŷ(t) and ∇_o(t) L of one step; zero where the sequence has ended.

        L(t) = -log ŷ_y(t)(t)                    (10.13)
        (∇_o(t) L)_i = ŷ_i(t) - 1_{i = y(t)}     (10.18), for ∂L/∂L(t) = 1 (10.17)
        """
        o = self.c + h @ self.V.mT  # (B, O)                                          (10.10)
        log_y_hat = o.log_softmax(-1)  # (B, O)                                       (10.11)
        y = self.targets[t][:, None]  # (B, 1)
        loss = self.inside(t, -log_y_hat.gather(-1, y))[:, 0]  # (B,)
        one_hot = torch.zeros_like(o).scatter(-1, y, 1)
        nabla_o = self.inside(t, log_y_hat.exp() - one_hot)  # (B, O)
        return loss, self.inside(t, log_y_hat.exp()), nabla_o
