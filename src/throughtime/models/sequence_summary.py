"""Design C: a whole sequence read, and one output at its end (fig. 10.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from throughtime.layers import in_evaluation_mode
from throughtime.models.design import Design, DesignConfig
from throughtime.models.probability import SequenceLogProb


class SequenceSummaryConfig(DesignConfig):
    """C's configuration."""

    input_size: int = Field(ge=1, description="numbers in x(t), or categories, which are read one-hot")
    bidirectional: bool = Field(False, description="also read from the end (fig. 10.11)")
    pooling: Literal["last", "mean", "max", "attention"] = Field(
        "last", description="what of h(1..τ) the output is made of: the last state, mean, maximum, or weighted mean"
    )


class SequenceSummary(Design):
    """p(y | x(1..τ)), one y for a whole sequence: design C.

    Pooling "last" takes h(τ) of each sequence (with both directions, the state in which each ends), "mean" and "max"
    go over its own steps, "attention" weighs them by softmax(vᵀ tanh(A h(t))), learnt (Yang et al. 2016). A sequence of
    length zero is pooled to zeros.

        >>> import torch, throughtime as tt
        >>> model = tt.models.SequenceSummary(input_size=3, output_size=10, hidden_size=8, pooling="attention")
        >>> model(torch.zeros(7, 2, 3), lengths=[7, 4]).shape
        torch.Size([2, 10])

    Source: Goodfellow, Bengio & Courville 2016, section 10.2, fig. 10.5.
    """

    Config = SequenceSummaryConfig

    def __init__(self, config: SequenceSummaryConfig | None = None, **keys: Any) -> None:
        super().__init__(config, **keys)
        self.recurrent = self._recurrent_layers(self.config.input_size, bidirectional=self.config.bidirectional)
        width = self.recurrent.output_size
        if self.config.pooling == "attention":
            self.attention = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))
        self.dropout = nn.Dropout(self.config.dropout)
        self.readout = self._readout(width)

    def forward(
        self,
        inputs: Tensor,
        *,
        targets: Tensor | None = None,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> Float[Tensor, "B O"] | Float[Tensor, " B"]:
        """The output o (B, O); with `targets` y, one for each sequence, the loss L = −log p(y | x) in nats (B,).

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        x, lengths, inside = self.read_inputs(inputs, lengths)  # (T, B, I)
        h, _ = self.recurrent(x, lengths=lengths)  # (T, B, D · H)
        o: Tensor = self.readout(self.dropout(self._pool(h, lengths, inside)))  # (B, O)
        if targets is None:
            return o
        self.distribution.check(targets, o, who=type(self).__name__)
        self._check_range(targets)
        return -self.distribution.log_prob(o, targets)

    def _pool(
        self, h: Float[Tensor, "T B H"], lengths: Int[Tensor, " B"] | None, inside: Bool[Tensor, "T B"] | None
    ) -> Float[Tensor, "B H"]:
        """h(1..τ) of each sequence as one vector."""
        steps, batch, _ = h.shape
        if not steps:
            return h.new_zeros(batch, h.shape[2])
        if lengths is None or inside is None:
            lengths = torch.full((batch,), steps, device=h.device)
            inside = torch.ones(steps, batch, dtype=torch.bool, device=h.device)
        if self.config.pooling == "last":
            return self._last(h, lengths)
        mask = inside[..., None]  # (T, B, 1)
        if self.config.pooling == "mean":
            return h.sum(0) / lengths.clamp(min=1)[:, None]  # behind a length h is zero
        empty = (lengths == 0)[:, None]
        if self.config.pooling == "max":
            return torch.where(mask, h, -torch.inf).amax(0).where(~empty, 0.0)
        scores = self.attention(h).masked_fill(~mask & ~empty, -torch.inf)  # (T, B, 1)
        pooled: Tensor = (scores.softmax(0) * h).sum(0)
        return pooled

    def _last(self, h: Tensor, lengths: Tensor) -> Tensor:
        """The state in which each direction ends: at the last step, and at the first, of each sequence."""
        forward, backward = (h, h[:, :, :0])
        if self.config.bidirectional:
            forward, backward = h.chunk(2, -1)
        index = (lengths - 1).clamp(min=0)[None, :, None].expand(1, -1, forward.shape[2])
        return torch.cat([forward.gather(0, index)[0], backward[0]], -1)

    def log_prob(
        self, targets: Tensor, inputs: Tensor, *, lengths: Int[Tensor, " B"] | Sequence[int] | None = None
    ) -> SequenceLogProb:
        """log p(y | x) in nats: one step (1, B), and the same as total (B,).

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        total = -self(inputs, targets=targets, lengths=lengths)
        return SequenceLogProb(total[None], total)

    @torch.no_grad()
    def sample(
        self,
        inputs: Tensor,
        *,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """y ~ p(y | x) for each sequence, (B,) categories or (B, values), in evaluation mode.

        Raises:
            DivergedError: the outputs are no numbers.
        """
        with in_evaluation_mode(self):
            o = self(inputs, lengths=lengths)
        return self.distribution.draw(o, self.distribution.noise(len(o), like=o, generator=generator))
