"""Several models as one: the mean of their probabilities, step by step.

    p(y(t) | y(<t), x) = Σ_i w_i p_i(y(t) | y(<t), x),   Σ_i w_i = 1

Source: Sutskever, Vinyals & Le 2014, "Sequence to sequence learning with neural networks", section 3.6
(ensembles of LSTMs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from throughtime.decoding.protocol import Attending, Masking, Reading, Steppable, reordered
from throughtime.decoding.stop import border_of
from throughtime.errors import ConfigError, ShapeError


class Members(NamedTuple):
    """The state of each member, all of `rows` rows."""

    rows: int
    states: tuple[Any, ...]


class Ensemble(nn.Module):
    """Models of one vocabulary as one that `greedy`, `sample` and `beam_search` take.

        >>> import throughtime as tt
        >>> runs = [tt.models.LanguageModel(vocabulary_size=10, hidden_size=size) for size in (8, 16)]
        >>> tt.decoding.greedy(tt.decoding.Ensemble(runs), length=5).tokens.shape
        torch.Size([5, 1])

    What is asked of the members (that they read prompts at once, attend, tell their padding, end in a certain way)
    holds for the ensemble where it holds for all. Attention is the mean of theirs, in the same weights.

    Args:
        models: anything `Steppable`, of one vocabulary and one border token.
        weights: of each model, above 0; they are divided by their sum. By default all count alike.

    Raises:
        ConfigError: no models; another number of weights, or weights that are not above 0; vocabularies, border tokens,
            stop rules or numbers of sources that differ. All faults at once.
    """

    def __init__(self, models: Sequence[Steppable], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self._check(models, weights)
        self.members = list(models)
        # So that devices and modes are those of the members.
        self._modules_of_members = nn.ModuleList(model for model in models if isinstance(model, nn.Module))
        weights = [1.0] * len(models) if weights is None else weights
        self.weights = tuple(weight / sum(weights) for weight in weights)
        first = models[0]
        self.vocabulary_size = first.vocabulary_size
        self.border_id = border_of(first)
        self.silent_actions = int(getattr(first, "silent_actions", 0))
        self.batch_size = next((size for size in map(_batch_size, models) if size is not None), None)
        if hasattr(first, "stop_kind"):
            self.stop_kind = first.stop_kind
        # A method that a model has is a promise: see `Attending` and `Masking`.
        if all(isinstance(model, Attending) for model in models):
            self.attention = self._attention
        if all(isinstance(model, Masking) for model in models):
            self.source_mask = self._source_mask

    @staticmethod
    def _check(models: Sequence[Steppable], weights: Sequence[float] | None) -> None:
        if not models:
            raise ConfigError("Ensemble: models must be at least one, got none")
        faults = []
        if weights is not None and (len(weights) != len(models) or not all(0 < w < math.inf for w in weights)):
            faults.append(f"weights must be {len(models)} numbers > 0, one for each model, got {list(weights)}")
        sizes = [size for size in map(_batch_size, models) if size is not None]
        parts: dict[str, list[Any]] = {
            "vocabulary_size": [model.vocabulary_size for model in models],
            "border_id": [border_of(model) for model in models],
            "stop_kind": [getattr(model, "stop_kind", None) for model in models],
            "batch_size": sizes,
        }
        faults += [
            f"{name} must be the same for all models, got {', '.join(map(str, values))}"
            for name, values in parts.items()
            if len(set(values)) > 1
        ]
        if faults:
            raise ConfigError(f"Ensemble: {'; '.join(faults)}")

    def initial_state(self, batch_size: int) -> Members:
        """Every member before its first token."""
        return Members(batch_size, tuple(model.initial_state(batch_size) for model in self.members))

    def step(self, tokens: Int[Tensor, " B"], state: Members) -> tuple[Float[Tensor, "B V"], Members]:
        """log of the mean probability of each next token, float64, and the new states."""
        return self._mean(
            [model.step(tokens, own) for model, own in zip(self.members, state.states, strict=True)], len(tokens)
        )

    def read(self, tokens: Int[Tensor, "T B"], state: Members) -> tuple[Float[Tensor, "B V"], Members]:
        """As `step`, after all of `tokens`."""
        made = []
        for model, own in zip(self.members, state.states, strict=True):
            if isinstance(model, Reading):
                made.append(model.read(tokens, own))
                continue
            for row in tokens:
                logits, own = model.step(row, own)
            made.append((logits, own))
        return self._mean(made, state.rows)

    def reorder(self, state: Members, indices: Int[Tensor, " N"]) -> Members:
        """These rows of every member."""
        parts = [
            reordered(model, own, indices, rows=state.rows)
            for model, own in zip(self.members, state.states, strict=True)
        ]
        return Members(len(indices), tuple(parts))

    def _mean(self, made: list[tuple[Tensor, Any]], rows: int) -> tuple[Tensor, Members]:
        weighted = [
            logits.double().log_softmax(-1) + math.log(weight)
            for (logits, _), weight in zip(made, self.weights, strict=True)
        ]
        return torch.stack(weighted).logsumexp(0), Members(rows, tuple(own for _, own in made))

    def _attention(self, state: Members) -> Float[Tensor, "B S"] | None:
        """The mean of the members' attention; None where one of them has not looked anywhere."""
        looks = [
            model.attention(own)  # type: ignore[attr-defined]
            for model, own in zip(self.members, state.states, strict=True)
        ]
        if any(look is None for look in looks):
            return None
        _check_places(looks)
        weights = torch.tensor(self.weights, dtype=looks[0].dtype, device=looks[0].device)
        return torch.einsum("mbs,m->bs", torch.stack(looks), weights)

    def _source_mask(self, state: Members) -> Bool[Tensor, "B S"] | None:
        """The places of the source that are real to any member; None where one of them looks nowhere."""
        masks = [
            model.source_mask(own)  # type: ignore[attr-defined]
            for model, own in zip(self.members, state.states, strict=True)
        ]
        if any(mask is None for mask in masks):
            return None
        _check_places(masks)
        return torch.stack(masks).any(0)


def _check_places(parts: list[Tensor]) -> None:
    """All members see one source."""
    if len({part.shape for part in parts}) > 1:
        raise ShapeError(
            "Ensemble: the models must see the same source, got attention of shapes "
            f"{', '.join(str(tuple(part.shape)) for part in parts)}; give all of them the same tokens"
        )


def _batch_size(model: Steppable) -> int | None:
    size = getattr(model, "batch_size", None)
    return None if size is None else int(size)
