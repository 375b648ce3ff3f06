"""Several models as one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.decoding import EndSymbol, given, greedy, sample
from throughtime.decoding.beam import Search, beam_search
from throughtime.decoding.ensemble import Ensemble
from throughtime.decoding.protocol import Attending, Masking
from throughtime.errors import ConfigError, ShapeError

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}


def language_model(seed: int, cell: str = "lstm", **keys: Any) -> tt.models.LanguageModel:
    torch.manual_seed(seed)
    keys = {"vocabulary_size": 9, "hidden_size": 6 + seed, "embedding_size": 4, "border_id": 0, "cell": cell, **keys}
    model = tt.models.LanguageModel(**keys)
    with torch.no_grad():
        model.readout.weight_ho.mul_(5)
        model.embedding.weight.mul_(10)
    return model.double()


class Table:
    """No network: what comes next depends on the last token, and it looks at a source of two places."""

    border_id = 0

    def __init__(self, seed: int, places: int = 2, vocabulary_size: int = 9) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary_size = vocabulary_size
        self.logits = 2 * torch.randn(9, vocabulary_size, generator=generator, dtype=torch.float64)
        self.looks = torch.randn(9, places, generator=generator, dtype=torch.float64).softmax(-1)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"last": torch.zeros(batch_size, dtype=torch.int64)}

    def step(self, tokens: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.logits[tokens] + 0.3 * state["last"][:, None], {"last": tokens}

    def attention(self, state: dict[str, Tensor]) -> Tensor:
        return self.looks[state["last"]]

    def source_mask(self, state: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(state["last"]), self.looks.shape[1], dtype=torch.bool)


def same(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, **TIGHT)


def test_equal_models_are_one() -> None:
    model, table = language_model(1), Table(4)
    keys: dict[str, Any] = {"length": 8, "width": 4, "n_best": 3, "stop": EndSymbol()}
    same(beam_search(Ensemble([model, model]), [0, 3, 5], **keys), beam_search(model, [0, 3, 5], **keys))
    same(beam_search(Ensemble([model]), **keys), beam_search(model, **keys))
    keys["search"] = Search(length_penalty=0.7, coverage_penalty=0.3)
    same(beam_search(Ensemble([table, table], [3, 1]), **keys), beam_search(table, **keys))
    same(greedy(Ensemble([model, model]), length=8), greedy(model, length=8, engine="model"))


def test_probabilities_are_the_weighted_mean_step_by_step() -> None:
    members = [language_model(1), language_model(2, "gru"), Table(5)]
    model = Ensemble(members, [1, 2, 5])
    found = beam_search(model, [0, 4, 4], length=6, width=5, n_best=4)
    assert not isinstance(model, Attending)
    for index in range(4):
        read = [0, 4, 4, *found.tokens[:, 0, index].tolist()]
        states = [member.initial_state(1) for member in members]
        own = []
        for token, following in itertools.pairwise(read):
            p = 0.0
            for place, (member, weight) in enumerate(zip(members, (1, 2, 5), strict=True)):
                logits, states[place] = member.step(torch.tensor([token]), states[place])
                p += weight / 8 * float(logits.detach().softmax(-1)[0, following])
            own.append(math.log(p))
        assert found.token_scores[:, 0, index].tolist() == pytest.approx(own[2:])


def test_attention_is_the_mean_and_a_design_ends_as_it_does() -> None:
    one, other = Table(1), Table(2)
    both = Ensemble([one, other], [1, 3])
    assert isinstance(both, Attending)
    assert isinstance(both, Masking)
    found = beam_search(both, length=3, width=2)
    assert found.attention is not None
    read = [0, *found.tokens[:-1, 0, 0].tolist()]
    torch.testing.assert_close(found.attention[:, 0, 0], (one.looks[read] + 3 * other.looks[read]) / 4)
    torch.manual_seed(1)
    designs = [
        tt.models.ContextToSequence(context_size=2, output_size=3, hidden_size=4, stop="predicted_length", max_length=4)
        for _ in range(2)
    ]
    about = [given(model.double().eval(), context=torch.zeros(2, 2, dtype=torch.float64)) for model in designs]
    found = beam_search(Ensemble(about), length=4, width=81, n_best=200)
    whole = torch.where(found.scores > -math.inf, found.scores, -math.inf).exp().sum(1)
    torch.testing.assert_close(whole, torch.ones(2, dtype=torch.float64))


def test_members_are_in_evaluation_mode_and_then_as_before() -> None:
    models = [language_model(1, dropout=0.5).train(), language_model(2, dropout=0.5).train()]
    both = Ensemble(models)
    keys: dict[str, Any] = {"length": 6, "width": 3}
    same(beam_search(both, **keys), beam_search(both, **keys))
    assert all(model.training for model in models)
    assert sample(both, length=5, samples=2, seed=1).tokens.shape == (5, 2)


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"^Ensemble: models must be at least one, got none$"):
        Ensemble([])
    with pytest.raises(
        ConfigError,
        match=r"^Ensemble: weights must be 2 numbers > 0, one for each model, got \[1, 0\]; vocabulary_size must be "
        r"the same for all models, got 9, 8$",
    ):
        Ensemble([Table(1), Table(1, vocabulary_size=8)], [1, 0])
    with pytest.raises(ConfigError, match=r"^Ensemble: border_id must be the same for all models, got 0, 3$"):
        Ensemble([language_model(1), language_model(1, border_id=3)])
    with pytest.raises(
        ShapeError,
        match=r"^Ensemble: the models must see the same source, got attention of shapes \(1, 2\), \(1, 3\); give all "
        r"of them the same tokens$",
    ):
        beam_search(Ensemble([Table(1), Table(2, places=3)]), length=2, width=1)
