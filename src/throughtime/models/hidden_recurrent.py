"""Design A: an output at every time step, and recurrent connections between hidden units (fig. 10.3).

    a(t) = b + W h(t-1) + U x(t)        (10.8)
    h(t) = tanh(a(t))                   (10.9; or an LSTM, a GRU, any cell)
    o(t) = c + V h(t)                   (10.10)
    L = Σ_t L(t) = −Σ_t log p(y(t) | x(1), ..., x(t))    (10.12-10.14)

Given the inputs, the outputs are independent of each other: no y(t) has an arrow to a later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from throughtime.layers import in_evaluation_mode
from throughtime.models.design import Design, DesignConfig
from throughtime.models.probability import SequenceLogProb


class HiddenRecurrentConfig(DesignConfig):
    """A's configuration."""

    input_size: int = Field(ge=1, description="numbers in x(t), or categories, which are read one-hot")
    bidirectional: bool = Field(False, description="also read from the end (fig. 10.11): y(t) sees all of x")


class HiddenRecurrent(Design):
    """p(y | x) = Π_t p(y(t) | x(1..t)) by a recurrent network with an output at each step: design A.

    `HiddenRecurrent(input_size=..., output_size=..., output="categorical", cell="lstm", ...)` takes the keys of
    `HiddenRecurrentConfig`. Inputs are (T, B, I), or int64 categories (T, B).

        >>> import torch, throughtime as tt
        >>> model = tt.models.HiddenRecurrent(input_size=3, output_size=5, cell="gru", hidden_size=8)
        >>> model(torch.zeros(7, 2, 3)).shape
        torch.Size([7, 2, 5])
        >>> model.log_prob(torch.zeros(7, 2, dtype=torch.int64), torch.zeros(7, 2, 3), lengths=[7, 4]).total.shape
        torch.Size([2])

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.8-10.14 and section 10.3.
    """

    Config = HiddenRecurrentConfig

    def __init__(self, config: HiddenRecurrentConfig | None = None, **keys: Any) -> None:
        super().__init__(config, **keys)
        self.recurrent = self._recurrent_layers(self.config.input_size, bidirectional=self.config.bidirectional)
        self.dropout = nn.Dropout(self.config.dropout)
        self.readout = self._readout(self.recurrent.output_size)

    def forward(
        self,
        inputs: Tensor,
        *,
        targets: Tensor | None = None,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> Float[Tensor, "T B O"] | Float[Tensor, "T B"]:
        """The outputs o(1..τ); with `targets` y(1..τ) the loss L(t) = −log p(y(t) | x(1..t)) in nats (T, B).

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        x, lengths, inside = self.read_inputs(inputs, lengths)  # (T, B, I)
        h, _ = self.recurrent(x, lengths=lengths)  # (T, B, D · H)
        o: Tensor = self.readout(self.dropout(h))  # (T, B, O)
        if targets is None:
            return o
        return -self._step_log_prob(o, self._checked_targets(targets, x, inside), inside)

    def log_prob(
        self, targets: Tensor, inputs: Tensor, *, lengths: Int[Tensor, " B"] | Sequence[int] | None = None
    ) -> SequenceLogProb:
        """log p(y(t) | x(1..t)) in nats for each step, and their sum for each sequence.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        steps = -self(inputs, targets=targets, lengths=lengths)
        return SequenceLogProb(steps, steps.sum(0))

    @torch.no_grad()
    def sample(
        self,
        inputs: Tensor,
        *,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """y(t) ~ p(y(t) | x(1..t)) at every step, in evaluation mode.

        Returns (T, B) categories or (T, B, values), zeros behind a length.

        Raises:
            DivergedError: the outputs are no numbers.
        """
        _, _, inside = self.read_inputs(inputs, lengths)
        with in_evaluation_mode(self):
            o = self(inputs, lengths=lengths)
        drawn = self.distribution.draw(o, self.distribution.noise(*o.shape[:2], like=o, generator=generator))
        return self._padded(drawn, inside)
