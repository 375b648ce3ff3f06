"""An encoder-decoder is a distribution over sequences of all lengths: every one of a small model is looked at."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

import throughtime as tt

STOPS = ("end_symbol", "bernoulli_halt", "predicted_length")
OPTIONS: list[dict[str, Any]] = [
    {"attention": "general"},
    {"attention": "none", "cell": "gru"},
    {"attention": "additive", "coverage": True, "input_feeding": True, "num_layers": 2},
]
BORDER, MOST = 1, 3
SYMBOLS = (0, 2)


def made(stop: str, **keys: Any) -> Any:
    """A small model, its weights far enough from zero for what it has read to matter."""
    torch.manual_seed(4)
    sizes = {"source_vocabulary_size": 4, "target_vocabulary_size": 3, "hidden_size": 4, "embedding_size": 3}
    model = tt.models.EncoderDecoder(stop=stop, border_id=BORDER, max_length=MOST, **sizes, **keys).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def source(rows: int) -> Tensor:
    return torch.tensor([[3], [0], [2]]).expand(-1, rows)


def every(length: int) -> Tensor:
    """Every sequence of that length, (T, N)."""
    sequences = list(itertools.product(SYMBOLS, repeat=length))
    return torch.tensor(sequences, dtype=torch.int64).reshape(len(sequences), length).mT


def likely(model: Any) -> dict[tuple[int, ...], float]:
    """The probability of each sequence of at most `MOST` symbols, cut there whether it has ended or not."""
    found: dict[tuple[int, ...], float] = {}
    for length in range(MOST + 1):
        y = every(length)
        logs = model.log_prob(y, source(y.shape[1]))
        cut = length == MOST and model.config.stop != "predicted_length"
        p = (logs.steps[:MOST].sum(0) if cut else logs.total).exp()
        found |= dict(zip(map(tuple, y.mT.tolist()), p.tolist(), strict=True))
    return found


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stop", STOPS)
def test_probabilities_over_all_sequences_sum_to_one(stop: str, options: dict[str, Any]) -> None:
    """Those of at most three symbols, and where there are longer ones, the mass that goes on behind three."""
    p = likely(made(stop, **options))
    shorter = sum(one for y, one in p.items() if len(y) < MOST)
    assert 0.01 < shorter < 0.999
    assert len(p) == 1 + 2 + 4 + 8
    assert sum(p.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("stop", STOPS)
def test_what_was_written_matters(stop: str) -> None:
    """p(y(2)) is another one after another y(1): the sums above are no product of independent ones."""
    logs = made(stop).log_prob(every(2), source(4)).steps[int(stop == "predicted_length") + 1].tolist()
    assert abs(logs[0] - logs[2]) > 1e-2  # 0 0 and 2 0


@pytest.mark.parametrize("stop", STOPS)
def test_other_sources_have_other_lengths(stop: str) -> None:
    for options in ({}, {"bridge": "zeros"}):
        model = made(stop, **options)
        sources = torch.tensor([[3, 1], [0, 1], [2, 0]])
        empty = torch.zeros(0, 2, dtype=torch.int64)
        p = model.log_prob(empty, sources).total.exp().tolist()
        assert abs(p[0] - p[1]) > 1e-5, options


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stop", STOPS)
def test_sequences_are_drawn_as_often_as_they_are_likely(stop: str, options: dict[str, Any]) -> None:
    model, rows = made(stop, **options), 4000
    y, lengths = model.sample(source(rows), max_length=MOST, generator=torch.Generator().manual_seed(7))
    assert y.shape == (int(lengths.max()), rows)
    drawn = [tuple(one[:length]) for one, length in zip(y.mT.tolist(), lengths.tolist(), strict=True)]
    counts, expected, rare = [], [], 0.0
    p = likely(model)
    assert set(drawn) <= set(p)
    for sequence, probability in p.items():
        if probability * rows < 5:
            rare += probability * rows
        else:
            counts.append(drawn.count(sequence))
            expected.append(probability * rows)
    if rare:
        counts, expected = [*counts, rows - sum(counts)], [*expected, rare]
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("stop", STOPS)
def test_draws_stop_where_they_should(stop: str) -> None:
    model = made(stop).train()
    for limit in (0, 2, 6):
        y, lengths = model.sample(source(200), max_length=limit, generator=torch.Generator().manual_seed(5))
        assert int(lengths.max()) == len(y) <= (min(limit, MOST) if stop == "predicted_length" else limit)
        inside = torch.arange(len(y))[:, None] < lengths
        assert bool((y[~inside] == BORDER).all())
        assert not bool((y[inside] == BORDER).any())
        again = model.sample(source(200), max_length=limit, generator=torch.Generator().manual_seed(5))
        assert torch.equal(y, again[0])
    assert model.training
    assert model.decoder.training


def test_a_halt_comes_at_once_or_never() -> None:
    model = made("bernoulli_halt")
    with torch.no_grad():
        model.halt.weight.zero_()
    for bias, length in ((-50.0, 6), (50.0, 0)):
        with torch.no_grad():
            model.halt.bias.fill_(bias)
        y, lengths = model.sample(source(5), max_length=6, generator=torch.Generator().manual_seed(0))
        assert (len(y), lengths.tolist()) == (length, [length] * 5)


@pytest.mark.parametrize("stop", STOPS)
def test_drawing_stops_when_all_have_ended(stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that nobody comes near costs nothing."""
    model, steps = made(stop), []
    embed = model.target_embedding.forward
    monkeypatch.setattr(model.target_embedding, "forward", lambda y: steps.append(1) or embed(y))
    _, lengths = model.sample(source(50), max_length=10_000, generator=torch.Generator().manual_seed(5))
    assert len(steps) == int(lengths.max()) + 1
