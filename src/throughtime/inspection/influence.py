"""How much one output of a sequence changes the distribution of a later one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.errors import ShapeError, UsageError
from throughtime.layers import in_evaluation_mode
from throughtime.models.context_to_sequence import ContextToSequence
from throughtime.models.feedback import FeedbackDesign
from throughtime.models.hidden_recurrent import HiddenRecurrent
from throughtime.models.language import LanguageModel
from throughtime.models.model import Model

_WHO = "influence"


@torch.no_grad()
def influence(
    model: Model,
    targets: Int[Tensor, "T B"],
    *,
    inputs: Tensor | None = None,
    context: Tensor | None = None,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "T T"]:
    """At [t, i] how much y(i) changes the distribution of y(t), in nats; zero for t ≤ i.

    It is the mean, over the sequences and over every other category a that y(i) could have been, of
    KL(p(y(t) | y(1..t-1)) ‖ the same with y(i) = a and all else kept). Given x, and y(i+1..t-1) as they are, what is
    left between y(i) and y(t) goes through h. So it is zero for design A, in which no y is read; and for design B
    beyond i = t-1, whose steps are tied together by y(t-1) alone (section 10.2.3).

        >>> import torch, throughtime as tt
        >>> from throughtime.inspection import influence
        >>> model = tt.models.LanguageModel(vocabulary_size=10, hidden_size=8, embedding_size=4)
        >>> influence(model, torch.zeros(5, 2, dtype=torch.int64)).shape
        torch.Size([5, 5])

    Args:
        model: a `LanguageModel`, or a design with an output at each step and categorical outputs; it computes in
            evaluation mode, one batch for each i.
        targets: y(1..τ), categories.
        inputs: x(1..τ), of the designs that have them.
        context: x (B, C), of a `ContextToSequence` that has one.
        lengths: τ of each sequence; a later step counts those sequences only that have it.
        samples: for large vocabularies, so many other categories for each i, drawn without replacement.
        generator: of that draw.

    Raises:
        UsageError: a model with other outputs, or a number of samples that there are not.
        ShapeError: targets that are not categories (T, B), or other arguments that do not fit.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.3, figs. 10.7-10.8.
    """
    categories = _categories(model)
    if targets.dim() != 2 or targets.dtype != torch.int64:
        raise ShapeError(
            f"{_WHO}: targets must be int64 categories (T, B), got {targets.dtype} {tuple(targets.shape)}; "
            "time comes first"
        )
    if samples is not None and not 1 <= samples < categories:
        raise UsageError(
            f"{_WHO}: samples must be 1 to {categories - 1}, the number of other categories, got {samples}"
        )
    unread = inputs if isinstance(model, (ContextToSequence, LanguageModel)) else context
    if unread is not None:
        name = "inputs" if unread is inputs else "context"
        raise UsageError(f"{_WHO}: {name} must be None, as a {type(model).__name__} reads none, got some")
    steps, batch = targets.shape
    lengths = torch.full((batch,), steps) if lengths is None else torch.as_tensor(lengths)
    inside = (torch.arange(steps)[:, None] < lengths.cpu()).to(targets.device)  # (T, B)
    result = torch.zeros(steps, steps, dtype=torch.float64, device=targets.device)
    with in_evaluation_mode(model):
        given = _Given(model, inputs, context, lengths.to(targets.device))
        actual = given.log_p(targets[:, None])  # (T, 1, B, K)
        for i in range(steps - 1):
            offsets = _offsets(categories, samples, generator).to(targets.device)  # (A,)
            changed = targets[:, None].repeat(1, len(offsets), 1)  # (T, A, B)
            changed[i] = (targets[i] + offsets[:, None]) % categories
            divergence = _kl(actual[i + 1 :], given.log_p(changed)[i + 1 :]).mean(1)  # (T - i - 1, B)
            present = inside[i + 1 :]
            result[i + 1 :, i] = (divergence * present).sum(1) / present.sum(1).clamp(min=1)
    return result


def _categories(model: Model) -> int:
    """How many categories a y can be.

    Raises:
        UsageError: it has no categorical y at each step.
    """
    if isinstance(model, LanguageModel):
        return model.vocabulary_size
    if not isinstance(model, (FeedbackDesign, HiddenRecurrent)):
        raise UsageError(f"{_WHO}: the model must have an output at each step, got {type(model).__name__}")
    if model.config.output != "categorical":
        raise UsageError(f'{_WHO}: outputs must be "categorical", got {model.config.output!r}')
    return int(model.config.output_size)


def _offsets(categories: int, samples: int | None, generator: torch.Generator | None) -> Tensor:
    """Which other categories to try, as differences from the actual one: all, or some at random."""
    if samples is None:
        return torch.arange(1, categories)
    device = None if generator is None else generator.device
    return 1 + torch.randperm(categories - 1, generator=generator, device=device)[:samples]


def _kl(log_p: Float[Tensor, "T 1 B K"], log_q: Float[Tensor, "T A B K"]) -> Float[Tensor, "T A B"]:
    """KL(p ‖ q) = Σ p (log p - log q), in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _Given:
    """A model with all that its outputs are conditioned on besides y."""

    def __init__(self, model: Any, inputs: Tensor | None, context: Tensor | None, lengths: Tensor) -> None:
        self.model = model
        self.inputs = inputs
        self.context = context
        self.lengths = lengths

    def log_p(self, targets: Int[Tensor, "T A B"]) -> Float[Tensor, "T A B K"]:
        """log p(y(t) | y(1..t-1), ...) over all categories, for A variants of each sequence at once."""
        steps, variants, batch = targets.shape
        model, flat = self.model, targets.flatten(1)  # (T, A · B)
        lengths = self.lengths.repeat(variants)
        if isinstance(model, HiddenRecurrent):
            # It reads no y: one computation is that of every variant.
            o = model(self.inputs, lengths=self.lengths)[:, None].expand(-1, variants, -1, -1)  # (T, A, B, K)
        elif isinstance(model, LanguageModel):
            before = torch.cat([torch.full_like(flat[:1], model.config.border_id), flat[:-1]])
            o, _ = model(before, lengths=lengths)
        else:
            x = self.context if isinstance(model, ContextToSequence) else self.inputs
            axis = 0 if isinstance(model, ContextToSequence) else 1
            repeated = None if x is None else torch.cat([x] * variants, axis)
            # A step more than targets, in which a sequence ends, and an output that halts are not a y.
            o = model.run(model.prepare(repeated, flat, lengths)).outputs[:steps, :, : model.distribution.size]
        log_p: Tensor = o.reshape(steps, variants, batch, -1).double().log_softmax(-1)
        return log_p
