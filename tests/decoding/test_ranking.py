"""The likeliest tokens, in an order that only the model decides."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given as such_that
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from throughtime.decoding import EndSymbol
from throughtime.decoding.beam import Search, beam_search
from throughtime.decoding.protocol import Ranked, Ranking
from throughtime.decoding.ranking import likeliest, log_normaliser, ranked, ranked_step


@such_that(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
@settings(max_examples=60)
def test_equals_stand_by_their_index(rows: int, size: int, k: int, seed: int) -> None:
    # Few different values, so that most are equal; some stand for nothing.
    values = torch.randint(4, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    values[values == 0] = -math.inf
    best, indices = likeliest(values, min(k, size))
    for row in range(rows):
        right = sorted(range(size), key=lambda i: (-float(values[row, i]), i))[: min(k, size)]
        assert best[row].tolist() == [float(values[row, i]) for i in right]
        real = [i for i in right if values[row, i] > -math.inf]
        assert indices[row, : len(real)].tolist() == real


def test_the_end_stands_apart_and_the_logits_stay_as_they_are() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 3.0], [0.0, -math.inf, 1e4, 2.0]])
    before = logits.clone()
    log_p = logits.double().log_softmax(-1)
    torch.testing.assert_close(logits.double() - log_normaliser(logits), log_p)
    found = ranked(logits, log_normaliser(logits), "state", 2, 0)
    assert found.ids.tolist() == [[2, 3], [2, 3]]
    torch.testing.assert_close(found.log_p, log_p.gather(1, found.ids))
    torch.testing.assert_close(found.of_end, log_p[:, 0])
    assert found.state == "state"
    assert torch.equal(logits, before)
    alone = ranked(logits, log_normaliser(logits), None, 1, None)
    assert alone.of_end is None
    assert alone.ids.tolist() == [[0], [2]]
    assert log_normaliser(torch.tensor([[math.nan, 0.0]])).isnan().all()
    assert log_normaliser(torch.full((1, 2), -math.inf)).isnan().all()


class Table:
    """What comes next depends on the last token."""

    vocabulary_size, border_id = 7, 0

    def __init__(self) -> None:
        self.logits = 2 * torch.randn(7, 7, generator=torch.Generator().manual_seed(2))
        self.steps = 0

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.steps += 1
        return self.logits[tokens], state


class Ranks(Table):
    """As the same model, but it finds the best itself."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def rank(self, tokens: Tensor, state: Any, k: int, end: int | None) -> Ranked:
        self.asked.append(k)
        logits = self.logits[tokens]
        return ranked(logits, log_normaliser(logits), state, k, end)


def test_a_model_that_ranks_is_asked_for_no_more_than_the_beam_can_keep() -> None:
    assert isinstance(Ranks(), Ranking)
    for search, spare in ((Search(length_penalty=0.5, minimum_length=6), 0), (Search(banned=[3, 0]), 2)):
        plain, ranks = Table(), Ranks()
        keys: dict[str, Any] = {"length": 6, "width": 3, "n_best": 2, "stop": EndSymbol(), "search": search}
        right, found = beam_search(plain, **keys), beam_search(ranks, **keys)
        for one, other in zip(right, found, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
        assert plain.steps == 6
        assert (ranks.steps, ranks.asked) == (1, [3 + spare] * 5)  # the prompt alone is read by a step
    # What depends on all that was written needs all log-probabilities.
    ranks = Ranks()
    beam_search(ranks, length=4, width=3, search=Search(no_repeat_ngram=2))
    assert (ranks.steps, ranks.asked) == (4, [])


def test_a_step_is_the_models_own_where_it_has_no_rank() -> None:
    tokens, state = torch.tensor([1, 4]), torch.zeros(2)
    plain, ranks = Table(), Ranks()
    one, other = ranked_step(plain, tokens, state, 4, 2), ranked_step(ranks, tokens, state, 4, 2)
    assert (plain.steps, ranks.asked) == (1, [4])
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
