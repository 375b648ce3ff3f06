"""Diverse groups against a beam search in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given as such_that
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from throughtime.decoding import EndSymbol
from throughtime.decoding.beam import Search, beam_search


class Hashing:
    """What comes next depends on all that was read."""

    vocabulary_size, border_id = 6, 0

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.arange(1, batch_size + 1)  # each row has its own beginning

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = (state * 31 + tokens + 1) % 10007
        logits = 3 * torch.sin(state[:, None] * torch.arange(1.0, 7, dtype=torch.float64))
        logits[:, 0] -= 2
        return logits, state


def plainly(row: int, length: int, width: int, n_best: int, search: Search) -> list[tuple[tuple[int, ...], float]]:
    """Vijayakumar et al.'s algorithm 1, one beginning after the other; the sequences found and their log p."""
    model, share = Hashing(), width // search.groups

    def log_p(written: tuple[int, ...]) -> list[float]:
        state = torch.tensor([row + 1])
        for token in (0, *written):
            logits, state = model.step(torch.tensor([token]), state)
        values: list[float] = logits.log_softmax(-1)[0].tolist()
        return values

    beams: list[list[tuple[tuple[int, ...], float]]] = [[((), 0.0)] for _ in range(search.groups)]
    whole: dict[tuple[tuple[int, ...], bool], float] = {}
    for step in range(length):
        chosen: list[int] = []
        kept = max(share, math.ceil(n_best / search.groups)) if step + 1 == length else share
        for group, beam in enumerate(beams):
            candidates = []
            for written, score in beam:
                values = log_p(written)
                whole[written, True] = score + values[0]
                candidates += [((*written, y), score + values[y]) for y in range(1, 6)]
            candidates.sort(key=lambda way: way[1] - search.diversity * chosen.count(way[0][-1]), reverse=True)
            beams[group] = candidates[:kept]
            chosen += [written[-1] for written, _ in beams[group]]
    for written, score in (way for beam in beams for way in beam):
        whole[written, False] = score
    found = sorted(whole.items(), key=lambda way: -way[1])[:n_best]
    return [(written, score) for (written, _), score in found]


@such_that(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 0.4, 1.5, 50.0]), st.integers(1, 5), st.integers(1, 5)
)
@settings(max_examples=40)
def test_groups_choose_one_after_the_other(groups: int, share: int, diversity: float, n_best: int, length: int) -> None:
    search, width = Search(groups=groups, diversity=diversity), groups * share
    found = beam_search(Hashing(), [[0, 0]], length=length, width=width, n_best=n_best, stop=EndSymbol(), search=search)
    for row in range(2):
        right = plainly(row, length, width, n_best, search)
        assert found.scores[row, : len(right)].tolist() == pytest.approx([score for _, score in right])
        assert (found.scores[row, len(right) :] == -math.inf).all()
        for index, (written, _) in enumerate(right):
            assert tuple(found.tokens[: len(written), row, index].tolist()) == written
            assert int(found.lengths[row, index]) == len(written)


def test_one_group_and_groups_without_diversity_are_plain() -> None:
    keys: dict[str, Any] = {"length": 7, "n_best": 4, "stop": EndSymbol()}
    plain = beam_search(Hashing(), [[0, 0, 0]], width=4, **keys)
    for search, width in ((Search(groups=1, diversity=3.0), 4), (Search(groups=3), 12)):
        found = beam_search(Hashing(), [[0, 0, 0]], width=width, search=search, **keys)
        for one, other in zip(plain, found, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_groups_begin_with_different_tokens() -> None:
    search = Search(groups=5, diversity=100.0)
    found = beam_search(Hashing(), length=6, width=5, n_best=5, search=search)
    assert len(set(found.tokens[0, 0].tolist())) == 5
    alike = beam_search(Hashing(), length=6, width=5, n_best=5)
    assert len(set(alike.tokens[0, 0].tolist())) < 5
