"""A fixed vector → a sequence (fig. 10.9): what describes an image, for example.

    h(t) = f(h(t-1), y(t-1), R x)
    p(y | x) = Π_t p(y(t) | y(1..t-1), x)

R, which brings the context x into the network, is shared by all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from throughtime.errors import ShapeError, UsageError
from throughtime.layers import in_evaluation_mode, output_distribution
from throughtime.models.design import DesignConfig, inside_lengths
from throughtime.models.feedback import FeedbackDesign, Lengths, Prepared, Run
from throughtime.models.probability import SequenceLogProb
from throughtime.models.sequence_length import StopKind, first, halted, halting, remaining, with_end
from throughtime.nn import RecurrentLayer


class ContextToSequenceConfig(DesignConfig):
    """The configuration of fig. 10.9."""

    context_size: int = Field(ge=0, description="numbers in the context; 0: none, a distribution over sequences alone")
    context_as: Literal["input", "state", "both"] = Field(
        "input", description="where R x enters: at each step, in the initial state, or both"
    )
    stop: StopKind = Field("given", description="what ends a sequence: its length is given, or one of three ways")
    max_length: int = Field(100, ge=1, description="predicted_length: the greatest length")

    @model_validator(mode="after")
    def _end_symbols_are_categories(self) -> ContextToSequenceConfig:
        if self.stop == "end_symbol" and self.output != "categorical":
            raise ValueError(f'stop "end_symbol" needs categorical outputs, got {self.output}; try "bernoulli_halt"')
        if self.context_size == 0 and self.context_as != "input":
            raise ValueError(f"context_as must be input where there is no context, got {self.context_as}")
        return self


class ContextToSequence(FeedbackDesign):
    """p(y(1..τ) | x), x a vector, and, with `stop`, p(y, τ | x): the length of a sequence is a part of it.

    `ContextToSequence(context_size=..., output_size=..., context_as="input", stop="given", cell="lstm", ...)`. With
    `stop="end_symbol"` the network has one more category, `output_size`, which ends a sequence; targets do not hold it.

        >>> import torch, throughtime as tt
        >>> model = tt.models.ContextToSequence(context_size=3, output_size=5, hidden_size=8, stop="bernoulli_halt")
        >>> y = torch.zeros(7, 2, dtype=torch.int64)
        >>> model.log_prob(y, torch.zeros(2, 3), lengths=[7, 4]).total.shape
        torch.Size([2])

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.4, fig. 10.9, and the end of section 10.2.3.
    """

    Config = ContextToSequenceConfig

    def __init__(self, config: ContextToSequenceConfig | None = None, **keys: Any) -> None:
        super().__init__(config, **keys)
        shape = self.config
        if shape.stop == "end_symbol":
            self.distribution = output_distribution("categorical", shape.output_size + 1)
        as_input = shape.context_size if shape.context_as in ("input", "both") else 0
        counted = shape.stop == "predicted_length"
        self._build(as_input + counted, extra_outputs=shape.stop == "bernoulli_halt")
        if shape.context_as in ("state", "both"):
            width = sum(field.shape[-1] for state in self.first_states(torch.zeros(1, 1)) for field in state)
            self.initial = nn.Linear(shape.context_size, width)
        if counted:
            self.length_bias = nn.Parameter(torch.zeros(shape.max_length + 1))
            if shape.context_size:
                self.length = nn.Linear(shape.context_size, shape.max_length + 1, bias=False)

    @property
    def weight_rh(self) -> Tensor | None:
        """R: the columns of the first layer's `weight_ih` that read the context.

        None where the context is no input, or a cell of one's own has no `weight_ih`.
        """
        if self.config.context_as == "state" or not self.config.context_size:
            return None
        layers = self.recurrent
        first, name = (layers, "weight_ih_l0") if isinstance(layers, RecurrentLayer) else (layers.cells[0], "weight_ih")
        weight = getattr(first, name, None)
        return weight[:, : self.config.context_size] if isinstance(weight, Tensor) else None

    def prepare(self, inputs: Tensor | None, targets: Tensor, lengths: Lengths = None) -> Prepared:
        """The context (B, C), None where `context_size` is 0, and the targets, their end among them.

        Raises:
            ShapeError: context, targets or lengths that do not fit, or a length above `max_length`.
        """
        who, stop = type(self).__name__, self.config.stop
        if targets.dim() < 2:
            raise ShapeError(
                f"{who}: targets must be categories (T, B), or (T, B, values), got {tuple(targets.shape)}; "
                "time comes first"
            )
        steps, batch = targets.shape[:2]
        context = self._checked_context(inputs, batch)
        like = torch.empty(steps, batch, device=targets.device)
        lengths, inside = inside_lengths([steps] * batch if lengths is None else lengths, like, who=who)
        assert lengths is not None
        targets = self._checked_targets(targets, like, inside)
        if stop == "predicted_length" and batch and int(lengths.max()) > self.config.max_length:
            raise ShapeError(f"{who}: lengths must be at most max_length={self.config.max_length}, "
                             f"got {int(lengths.max())}; make max_length greater")  # fmt: skip
        if stop == "end_symbol":
            targets = with_end(targets, lengths, self.config.output_size)
        elif stop == "bernoulli_halt":
            targets = functional.pad(targets, (*[0, 0] * (targets.dim() - 1), 0, 1))
        ran = lengths + (len(targets) - steps)
        inside = torch.arange(len(targets), device=targets.device)[:, None] < ran
        external = self.external(context, lengths, len(targets))
        return Prepared(external, targets, self.states(context), ran, inside, lengths, context)

    def losses(self, sequences: Prepared, done: Run) -> Float[Tensor, "T B"]:
        """−log p of each step in nats, one row more than targets where the length is random.

        The row more is the last step, in which a sequence ends ("end_symbol", "bernoulli_halt": at a sequence's own
        length, zero behind it), or the first, −log p(τ) ("predicted_length").
        """
        stop, o, lengths = self.config.stop, done.outputs, sequences.symbols
        assert lengths is not None
        if stop == "bernoulli_halt":
            symbols = self.distribution.log_prob(o[..., : self.distribution.size], sequences.targets)
            return -halting(o[..., -1], symbols, lengths)
        steps = super().losses(sequences, done)
        if stop != "predicted_length":
            return steps
        of_length = self.length_log_prob(sequences.context, len(lengths)).gather(1, lengths[:, None])  # (B, 1)
        return torch.cat([-of_length.mT, steps])

    def _checked_context(self, context: Tensor | None, batch: int) -> Tensor | None:
        size, who = self.config.context_size, type(self).__name__
        got = None if context is None else tuple(context.shape)
        if size == 0 and context is not None:
            raise ShapeError(f"{who}: context must be None, as context_size is 0, got {got}")
        if size and got != (batch, size):
            raise ShapeError(f"{who}: context must be ({batch}, {size}), got {got}; one vector for each sequence")
        return context

    # -- what decoding needs ---------------------------------------------------------------------------------------

    def external(self, context: Tensor | None, lengths: Int[Tensor, " B"], steps: int) -> Float[Tensor, "T B E"]:
        """What enters at each step besides y(t-1): the context, and τ-t where lengths are predicted."""
        dtype, batch = self._dtype(), len(lengths)
        parts = [torch.zeros(steps, batch, 0, dtype=dtype, device=lengths.device)]
        if context is not None and self.config.context_as != "state":
            parts.append(context.to(dtype).expand(steps, -1, -1))
        if self.config.stop == "predicted_length":
            parts.append(remaining(lengths, steps, self.config.max_length).to(dtype))
        return torch.cat(parts, -1)

    def states(self, context: Tensor | None) -> list[Any] | None:
        """The layers' states before the first step, tanh of a map of the context; None for zeros."""
        if context is None or self.config.context_as == "input":
            return None
        example = self.first_states(context)
        sizes = [field.shape[-1] for state in example for field in state]
        fields = iter(torch.split(torch.tanh(self.initial(context)), sizes, -1))
        return [type(state)(*(next(fields) for _ in state)) for state in example]

    def length_log_prob(self, context: Tensor | None, batch_size: int) -> Float[Tensor, "B L"]:
        """log p(τ | x) in nats for τ = 0..max_length, where lengths are predicted."""
        logits = self.length_bias.expand(batch_size, -1)
        return (logits if context is None else logits + self.length(context)).log_softmax(-1)

    # -- probability -----------------------------------------------------------------------------------------------

    def log_prob(self, targets: Tensor, context: Tensor | None = None, *, lengths: Lengths = None) -> SequenceLogProb:
        """log p(y, τ | x) in nats: of each step, as `forward` has them, and of each sequence.

        Raises:
            ShapeError: targets, context or lengths that do not fit.
        """
        steps = -self(context, targets=targets, lengths=lengths)
        return SequenceLogProb(steps, steps.sum(0))

    @torch.no_grad()
    def sample(
        self,
        context: Tensor | None = None,
        *,
        max_length: int,
        batch_size: int | None = None,
        lengths: Lengths = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Int[Tensor, " B"]]:
        """Ancestral sampling of y and of its length, in evaluation mode.

        Args:
            context: x (B, C); None where `context_size` is 0.
            max_length: a sequence that has not ended by then is cut there.
            batch_size: the number of sequences, where there is no context.
            lengths: τ of each, where `stop` is "given", cut at `max_length`; all of that length when missing.
            generator: of all that is drawn.

        Returns:
            y (T, B) or (T, B, values), zeros behind the lengths; the lengths (B,).

        Raises:
            ShapeError: context or lengths that do not fit.
            UsageError: neither context nor batch_size, a negative max_length, or lengths of a model that chooses them.
            DivergedError: the outputs are no numbers.
        """
        who, stop = type(self).__name__, self.config.stop
        if context is None and batch_size is None:
            raise UsageError(f"{who}: sample needs a context, or a batch_size where there is none")
        if max_length < 0:
            raise UsageError(f"{who}: max_length must be at least 0 steps, got {max_length}")
        if lengths is not None and stop != "given":
            raise UsageError(f'{who}: lengths must be None, as a model built with stop="{stop}" chooses them, got some')
        batch = len(context) if context is not None else int(batch_size or 0)
        context = self._checked_context(context, batch)
        with in_evaluation_mode(self):
            y, found = self._ancestral(context, batch, max_length, lengths, generator)
        inside = torch.arange(len(y), device=y.device)[:, None] < found
        longest = int(found.max()) if batch else 0
        return self._padded(y, inside)[:longest], found

    def _checked_lengths(self, lengths: Int[Tensor, " B"] | Sequence[int], batch: int) -> Tensor:
        found = torch.as_tensor(lengths)
        if found.shape != (batch,) or found.is_floating_point() or bool((found < 0).any()):
            raise ShapeError(
                f"{type(self).__name__}: lengths must be {batch} whole numbers of at least 0, one for each sequence, "
                f"got {found.tolist()}"
            )
        return found

    def _ancestral(
        self,
        context: Tensor | None,
        batch: int,
        max_length: int,
        lengths: Lengths,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        stop, distribution = self.config.stop, self.distribution
        like = self.readout.bias_ho
        limit = torch.full((batch,), max_length, device=like.device)
        if lengths is not None:
            limit = self._checked_lengths(lengths, batch).to(like.device).clamp(max=max_length)
        planned = limit
        if stop == "predicted_length":
            of_lengths = output_distribution("categorical", self.config.max_length + 1)
            log_p = self.length_log_prob(context, batch)
            planned = of_lengths.draw(log_p, of_lengths.noise(batch, like=log_p, generator=generator))
            limit = planned.clamp(max=max_length)
        noise = distribution.noise(max_length, batch, like=like, generator=generator)
        external = self.external(context, planned, max_length)
        o = self.run_freely(external, self.states(context), feedback="sample", noise=noise).outputs
        y = distribution.draw(o[..., : distribution.size], noise)
        if stop == "end_symbol":
            return y, first(y == self.config.output_size)
        if stop == "bernoulli_halt":
            of_halts = output_distribution("bernoulli", 1)
            return y, halted(o[..., -1], of_halts.noise(max_length, batch, like=o, generator=generator)[..., 0])
        return y, limit
