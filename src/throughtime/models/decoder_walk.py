"""An encoder-decoder's decoder, one step at a time: its layers, its attention, and what it feeds to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from throughtime.nn import LayerSteps

if TYPE_CHECKING:
    from throughtime.models.encoder_decoder import Encoded, EncoderDecoder


class DecoderWalk:
    """T steps of a decoder, differentiable, its random masks drawn once for all of them.

    hidden: h̃(1..t) so far, (B, H) each. penalties: Σ_j min(α_j(t), coverage_j(t)) of the steps so far, (B,) each,
    where the attention has a coverage (See, Liu & Manning 2017, eq. 12). weights: α of the last step (B, S), None
    without attention. size: H.
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
        self.weights: Tensor | None = None

    def advance(self, y: Float[Tensor, "B E"], external: Float[Tensor, "B X"]) -> Float[Tensor, "B H"]:
        """One step, from the embedding of y(t-1) and what else enters: h̃(t)."""
        model = self._model
        parts = [model.dropout(y), external, *[self._fed] * model.config.input_feeding]
        h, self._states = self._layers.advance(len(self.hidden), torch.cat(parts, -1), self._states)
        if self._memory is not None:
            attended = model.attention(h[:, None], self._memory, self._coverage)
            self.weights = attended.weights[:, 0]  # (B, S)
            h = model.attentional(attended.context[:, 0], h)
            if self._coverage is not None:
                self.penalties.append(torch.minimum(self.weights, self._coverage).sum(-1))
                self._coverage = self._coverage + self.weights
        dropped: Tensor = model.dropout(h)
        h = dropped if self._locked is None else dropped * self._locked
        self._fed = h
        self.hidden.append(h)
        return h
