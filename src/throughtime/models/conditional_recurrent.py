"""x(1..τ) → y(1..τ) with y(t-1) → h(t): outputs that depend on each other (fig. 10.10).

    h(t) = f(h(t-1), x(t), y(t-1))
    p(y | x) = Π_t p(y(t) | y(1..t-1), x(1..t))

Design A assumes the outputs independent, given x; the arrow from y(t-1) drops that assumption (section 10.2.4).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from throughtime.layers import in_evaluation_mode
from throughtime.models.design import DesignConfig
from throughtime.models.feedback import FeedbackDesign, Lengths, Prepared
from throughtime.models.probability import SequenceLogProb


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

    def prepare(self, inputs: Tensor | None, targets: Tensor, lengths: Lengths = None) -> Prepared:
        """Checked inputs (T, B, I), or categories (T, B), and targets.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        x, checked, inside = self.read_inputs(inputs, lengths)
        return Prepared(x, self._checked_targets(targets, x, inside), None, checked, inside)

    def log_prob(self, targets: Tensor, inputs: Tensor, *, lengths: Lengths = None) -> SequenceLogProb:
        """log p(y(t) | y(1..t-1), x(1..t)) in nats for each step, and their sum for each sequence.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        steps = -self(inputs, targets=targets, lengths=lengths)
        return SequenceLogProb(steps, steps.sum(0))

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, lengths: Lengths = None, generator: torch.Generator | None = None) -> Tensor:
        """Ancestral sampling: y(t) ~ p(y(t) | y(1..t-1), x(1..t)), in evaluation mode.

        Returns (T, B) categories or (T, B, values), zeros behind a length.

        Raises:
            DivergedError: the outputs are no numbers.
        """
        x, _, inside = self.read_inputs(inputs, lengths)
        noise = self.distribution.noise(*x.shape[:2], like=x, generator=generator)
        with in_evaluation_mode(self):
            o = self.run_freely(x, feedback="sample", noise=noise).outputs
        return self._padded(self.distribution.draw(o, noise), inside)
