"""How far the lengths of a model's sequences are from the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from throughtime.decoding.conditioned import given
from throughtime.decoding.sampling import greedy
from throughtime.errors import ConfigError, ShapeError
from throughtime.layers.modes import in_evaluation_mode
from throughtime.models import ContextToSequence
from throughtime.models.sequence_length import first


class LengthError(NamedTuple):
    """Mean distances from the true lengths, in symbols.

    decoded: of the lengths that greedy decoding gives. expected: of the mean length of sequences that are drawn.
    """

    decoded: float
    expected: float


@torch.no_grad()
def length_error(
    model: ContextToSequence,
    lengths: Int[Tensor, " B"] | Sequence[int],
    context: Tensor | None = None,
    *,
    max_length: int,
    samples: int = 16,
    seed: int = 0,
) -> LengthError:
    """Mean |τ̂ - τ| over sequences whose true lengths are known, whatever `stop` the model was built with.

    Outputs that are no categories are decoded by their means, and halt where s(t) is above one half.

    Args:
        model: a `ContextToSequence` that chooses the lengths of its sequences.
        lengths: τ, the true ones, (B,).
        context: x (B, C); None where the model takes none.
        max_length: where sequences that go on are cut.
        samples: sequences drawn for each context, of which `expected` takes the mean length.
        seed: of the draws.

    Raises:
        ConfigError: the lengths of the model's sequences are given from outside.
        ShapeError: not one length for each context.
    """
    name = type(model).__name__
    if getattr(model.config, "stop", "given") == "given":
        raise ConfigError(f"length_error: {name} must choose its lengths, got one to which they are given; "
                          'build it with stop="end_symbol", "bernoulli_halt" or "predicted_length"')  # fmt: skip
    true = torch.as_tensor(lengths).cpu()
    if true.dim() != 1 or not len(true) or (context is not None and len(context) != len(true)):
        expected = "(B,), not empty" if context is None else f"({len(context)},), one for each context"
        raise ShapeError(f"length_error: lengths must be {expected}, got {tuple(true.shape)}")
    batch = len(true)
    with in_evaluation_mode(model):
        decoded = _decoded(model, context, max_length).cpu()
    generator = torch.Generator().manual_seed(seed)
    each = None if context is None else context.repeat_interleave(samples, 0)
    _, drawn = model.sample(each, max_length=max_length, batch_size=batch * samples, generator=generator)
    mean = drawn.reshape(batch, samples).double().mean(1).cpu()
    return LengthError(float((decoded - true).abs().double().mean()), float((mean - true).abs().mean()))


def _decoded(model: ContextToSequence, context: Tensor | None, max_length: int) -> Int[Tensor, " B"]:
    """The lengths of greedy decoding: (B,), or (1,) where there is no context."""
    batch = 1 if context is None else len(context)
    if model.config.stop == "predicted_length":
        return model.length_log_prob(context, batch).argmax(-1).clamp(max=max_length)
    if model.config.output == "categorical":
        return greedy(given(model, context=context), length=max_length).lengths
    limit = torch.full((batch,), max_length, device=model.readout.bias_ho.device)
    o = model.run_freely(model.external(context, limit, max_length), model.states(context)).outputs  # (T, B, O)
    return first(o[..., -1] > 0)
