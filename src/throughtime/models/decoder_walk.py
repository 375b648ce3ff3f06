"""An encoder-decoder's decoder, one step at a time: its layers, its attention, and what it feeds to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.layers import output_distribution
from throughtime.models.sequence_length import first, remaining
from throughtime.nn import LayerSteps

if TYPE_CHECKING:
    from throughtime.models.encoder_decoder import Encoded, EncoderDecoder


class DecoderWalk:
    """T steps of a decoder, differentiable, its random masks drawn once for all of them.

    hidden: h̃(1..t) so far, (B, H) each. penalties: Σ_j min(α_j(t), coverage_j(t)) of the steps so far, (B,) each,
    where the attention has a coverage (See, Liu & Manning 2017, eq. 12). size: H.
    """

    def __init__(self, model: EncoderDecoder, steps: int, encoded: Encoded) -> None:
        self._model, self._memory = model, encoded.memory
        self._states = encoded.states
        self._layers = LayerSteps(model.decoder, steps, encoded.summary)
        self.size: int = model.config.hidden_size
        self._fed = encoded.summary.new_zeros(len(encoded.summary), self.size)
        self._coverage: Tensor | None = None
        if self._memory is not None and model.config.coverage:
            self._coverage = self._memory.values.new_zeros(self._memory.values.shape[:2])  # (B, S)
        self._locked = model.locked_dropout.mask(encoded.summary)
        self.hidden: list[Tensor] = []
        self.penalties: list[Tensor] = []

    def advance(self, y: Float[Tensor, "B E"], external: Float[Tensor, "B X"]) -> Float[Tensor, "B H"]:
        """One step, from the embedding of y(t-1) and what else enters: h̃(t)."""
        model = self._model
        parts = [model.dropout(y), external, *[self._fed] * model.config.input_feeding]
        h, self._states = self._layers.advance(len(self.hidden), torch.cat(parts, -1), self._states)
        if self._memory is not None:
            attended = model.attention(h[:, None], self._memory, self._coverage)
            h = model.attentional(attended.context[:, 0], h)
            if self._coverage is not None:
                weights = attended.weights[:, 0]  # (B, S)
                self.penalties.append(torch.minimum(weights, self._coverage).sum(-1))
                self._coverage = self._coverage + weights
        dropped: Tensor = model.dropout(h)
        h = dropped if self._locked is None else dropped * self._locked
        self._fed = h
        self.hidden.append(h)
        return h


def ancestral(
    model: EncoderDecoder, encoded: Encoded, max_length: int, generator: torch.Generator | None
) -> tuple[Int[Tensor, "T B"], Int[Tensor, " B"]]:
    """Tokens drawn one after the other, each from p(y(t) | y(1..t-1), x), and the lengths at which they end.

    What stands behind a length means nothing. Drawing stops when every sequence has ended.
    """
    shape, like = model.config, encoded.summary
    limit = torch.full((len(like),), max_length, device=like.device)
    if shape.stop == "predicted_length":
        of_lengths = output_distribution("categorical", shape.max_length + 1)
        log_p = model.length_log_prob(encoded)
        limit = of_lengths.draw(log_p, of_lengths.noise(len(like), like=log_p, generator=generator))
    external = remaining(limit, max_length, shape.max_length)[..., : int(shape.stop == "predicted_length")]
    noise = model.distribution.noise(max_length, len(like), like=like, generator=generator)
    of_halts = output_distribution("bernoulli", 1)
    halting_noise = of_halts.noise(max_length, len(like), like=like, generator=generator)[..., 0]  # (T, B)
    walk, y = DecoderWalk(model, max_length, encoded), torch.full_like(limit, shape.border_id)
    drawn, ends = [], []
    over = torch.zeros_like(limit, dtype=torch.bool)
    for t in range(max_length):
        h = walk.advance(model.target_embedding(y), external[t].to(like.dtype))
        o = model.outputs(h)
        y = model.distribution.draw(o[..., : model.distribution.size], noise[t])
        drawn.append(y)
        if shape.stop == "bernoulli_halt":
            ends.append(halting_noise[t] < torch.sigmoid(o[..., -1]))
        else:
            ends.append(y == shape.border_id if shape.stop == "end_symbol" else limit <= t)
        over = over | ends[-1]
        if bool(over.all()):
            break
    tokens = torch.stack(drawn) if drawn else limit.new_zeros(0, len(like))
    return tokens, first(torch.stack(ends)) if drawn else torch.zeros_like(limit)
