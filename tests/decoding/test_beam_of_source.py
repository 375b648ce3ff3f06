"""Beam search over an encoder-decoder: where it looks, ragged sources, what coverage asks for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import throughtime as tt
from throughtime.decoding import given, greedy
from throughtime.decoding.beam import Hypotheses, Search, beam_search
from throughtime.decoding.ensemble import Ensemble
from throughtime.errors import ConfigError

TIGHT: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}
LENGTHS = (5, 1, 3, 4)
SEARCHES = [
    Search(),
    Search(length_penalty=0.8, coverage_penalty=0.5),
    Search(no_repeat_ngram=2, coverage_penalty=1.0, required=[4]),
    Search(groups=2, diversity=0.6, length_penalty=0.5),
]


def translator(seed: int = 0, **keys: Any) -> tt.models.EncoderDecoder:
    torch.manual_seed(seed)
    keys = {"source_vocabulary_size": 9, "target_vocabulary_size": 8, "hidden_size": 6, "embedding_size": 5, **keys}
    model = tt.models.EncoderDecoder(**keys).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def sources() -> torch.Tensor:
    return torch.randint(9, (5, 4), generator=torch.Generator().manual_seed(1))  # (S, B)


def row_of(found: Hypotheses, row: int, length: int, places: int) -> list[Any]:
    """What was found for one row, without padding."""
    attention = None if found.attention is None else found.attention[:length, row, :, :places]
    return [found.tokens[:length, row], found.lengths[row], found.scores[row], found.ranking[row],
            found.token_scores[:length, row], attention]  # fmt: skip


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("stop", ["end_symbol", "bernoulli_halt", "predicted_length"])
def test_padding_and_the_batch_change_nothing(search: Search, stop: str) -> None:
    model = translator(stop=stop, max_length=6)
    keys: dict[str, Any] = {"length": 6, "width": 4, "n_best": 3, "search": search}
    found = beam_search(given(model, inputs=sources(), lengths=LENGTHS), **keys)
    assert found.attention is not None
    for row, places in enumerate(LENGTHS):
        alone = beam_search(given(model, inputs=sources()[:places, row : row + 1]), **keys)
        length = len(alone.tokens)
        for one, other in zip(row_of(found, row, length, places), row_of(alone, 0, length, places), strict=True):
            torch.testing.assert_close(one, other, **TIGHT)
        assert not found.attention[:, row, :, places:].any()
        looked = found.attention[:, row].sum(-1)  # (T, N)
        real = found.scores[row] > -math.inf
        count = int(found.lengths[row, 0])
        torch.testing.assert_close(looked[:count, 0], torch.ones(count, dtype=torch.float64))
        assert not looked[:, ~real].any()


def test_what_was_looked_at_is_what_the_model_says() -> None:
    """The ranking is the equation, from what is handed back; and scores are of the model, read with teacher forcing."""
    model, search = translator(), Search(length_penalty=0.7, coverage_penalty=0.9)
    found = beam_search(given(model, inputs=sources(), lengths=LENGTHS), length=7, width=6, n_best=4, search=search)
    assert found.attention is not None
    for row, places in enumerate(LENGTHS):
        for index in range(4):
            written = min(7, int(found.lengths[row, index]) + 1)
            coverage = found.attention[:, row, index, :places].sum(0).clamp(max=1)
            right = found.scores[row, index] / ((5 + written) / 6) ** 0.7 + 0.9 * coverage.log().sum()
            assert float(found.ranking[row, index]) == pytest.approx(float(right))


def test_an_ensemble_of_runs() -> None:
    runs = [given(translator(seed), inputs=sources(), lengths=LENGTHS) for seed in (1, 2)]
    keys: dict[str, Any] = {"length": 6, "width": 4, "search": Search(coverage_penalty=0.3)}
    found = beam_search(Ensemble(runs), **keys)
    assert found.attention is not None
    alone = [beam_search(run, **keys) for run in runs]
    again = beam_search(Ensemble([runs[0], runs[0]]), **keys)
    torch.testing.assert_close(again.ranking, alone[0].ranking, **TIGHT)
    assert torch.equal(again.tokens, alone[0].tokens)
    assert not torch.allclose(found.scores, alone[0].scores)


def test_one_beginning_is_no_worse_than_greedy_and_a_model_without_attention_says_so() -> None:
    model = translator(attention="none")
    about = given(model, inputs=sources(), lengths=LENGTHS)
    found = beam_search(about, length=6, width=1)
    assert found.attention is None
    assert (found.scores[:, 0] >= greedy(about, length=6).log_probs.sum(0) - 1e-9).all()
    with pytest.raises(
        ConfigError, match="coverage_penalty needs a model that attends, got OfSource without attention"
    ):
        beam_search(about, length=6, width=1, search=Search(coverage_penalty=0.1))
