"""x(1..τ) → y(1..τ) with y(t-1) → h(t): outputs that depend on each other (fig. 10.10).

    h(t) = f(h(t-1), x(t), y(t-1))
    p(y | x) = Π_t p(y(t) | y(1..t-1), x(1..t))

Design A assumes the outputs independent, given x; the arrow from y(t-1) drops that assumption (section 10.2.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from throughtime.layers import in_evaluation_mode
from throughtime.models.design import DesignConfig, inside_lengths
from throughtime.models.feedback import Feedback, FeedbackDesign, Run
from throughtime.models.probability import SequenceLogProb

Lengths = Int[Tensor, " B"] | Sequence[int] | None


class ConditionalRecurrentConfig(DesignConfig):
    """The configuration of fig. 10.10, and of design B."""

    input_size: int = Field(ge=1, description="numbers in x(t), or categories, which are read one-hot")


class ConditionalRecurrent(FeedbackDesign):
    """p(y | x) = Π_t p(y(t) | y(1..t-1), x(1..t)) by a recurrent network that reads x(t) and y(t-1).

    `ConditionalRecurrent(input_size=..., output_size=..., output="categorical", cell="lstm", ...)`. The first step sees
    zeros in place of y(0).

        >>> import torch, throughtime as tt
        >>> model = tt.models.ConditionalRecurrent(input_size=3, output_size=5, hidden_size=8)
        >>> x = torch.zeros(7, 2, 3)
        >>> y = model.sample(x, generator=torch.Generator().manual_seed(0))
        >>> y.shape, model.log_prob(y, x).steps.shape
        (torch.Size([7, 2]), torch.Size([7, 2]))

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.4, fig. 10.10.
    """

    Config = ConditionalRecurrentConfig

    def __init__(self, config: ConditionalRecurrentConfig | None = None, **keys: Any) -> None:
        super().__init__(config, **keys)
        self._build(self.config.input_size)

    def forward(
        self,
        inputs: Tensor,
        *,
        targets: Tensor | None = None,
        lengths: Lengths = None,
        own: Bool[Tensor, "T B"] | None = None,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T B N"] | None = None,
    ) -> Float[Tensor, "T B O"] | Float[Tensor, "T B"]:
        """The loss L(t) = −log p(y(t) | y(1..t-1), x(1..t)) in nats (T, B); without targets o(1..τ), free-running.

        `own`, `feedback` and `noise` say where a step sees the network's own output in place of y(t-1); see
        `FeedbackDesign.run`. Without `own` training is by teacher forcing.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
            UsageError: samples without noise.
        """
        x = self._features(inputs, self.config.input_size, name="inputs")
        done = self.runs(x, targets, lengths=lengths, own=own, feedback=feedback, noise=noise)
        if targets is None:
            return done.outputs
        _, inside = inside_lengths(lengths, x, who=type(self).__name__)
        return -self._step_log_prob(done.outputs, targets, inside)

    def runs(self, inputs: Tensor, targets: Tensor | None = None, *, lengths: Lengths = None, **how: Any) -> Run:
        """o(1..τ) and h(1..τ) of a run, as `forward` makes it; what professor forcing compares.

        Raises:
            ShapeError, UsageError: see `forward`.
        """
        x = self._features(inputs, self.config.input_size, name="inputs")
        checked, inside = inside_lengths(lengths, x, who=type(self).__name__)
        if targets is not None:
            self._checked_targets(targets, *x.shape[:2])
            targets = self._padded(targets, inside)
        return self.run(x, targets, lengths=checked, **how)

    def log_prob(self, targets: Tensor, inputs: Tensor, *, lengths: Lengths = None) -> SequenceLogProb:
        """log p(y(t) | y(1..t-1), x(1..t)) in nats for each step, and their sum for each sequence.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        steps = -self(inputs, targets=targets, lengths=lengths)
        return SequenceLogProb(steps, steps.sum(0))

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral sampling: y(t) ~ p(y(t) | y(1..t-1), x(1..t)), in evaluation mode.

        Returns (T, B) categories or (T, B, values).
        """
        x = self._features(inputs, self.config.input_size, name="inputs")
        noise = self.distribution.noise(*x.shape[:2], like=x, generator=generator)
        with in_evaluation_mode(self):
            o = self.run(x, None, feedback="sample", noise=noise).outputs
        return self.distribution.sample(o, noise)
