"""Phrases that every sequence must hold."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given as such_that
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from throughtime.decoding import EndSymbol
from throughtime.decoding.beam import Search, beam_search
from throughtime.decoding.phrases import Phrase, holds, longest_beginning, needless, room_for
from throughtime.decoding.required import RequiredPhrases, fair_choice

CPU = torch.device("cpu")
phrases_of = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)


class Table:
    """What comes next depends on the last token, and most of it is unlikely."""

    vocabulary_size, border_id = 12, 0

    def __init__(self, seed: int = 0) -> None:
        self.logits = 6 * torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits[tokens], state


def tokens_met(phrases: tuple[Phrase, ...], written: Phrase) -> int:
    """How many tokens of the phrases are met after the tokens `written`."""
    whole = [phrase for phrase in phrases if holds(written, phrase)]
    others = [longest_beginning(written, phrase) for phrase in phrases if phrase not in whole]
    return sum(map(len, whole)) + max(others, default=0)


@such_that(phrases_of, st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=40)
def test_the_room_that_phrases_need(phrases: list[tuple[int, ...]], written: list[int]) -> None:
    kept, prefix = needless(tuple(phrases)), tuple(written)
    shortest = sum(map(len, kept))
    for order in itertools.permutations(kept):
        whole = prefix
        for phrase in order:
            if not holds(whole, phrase):
                whole += phrase[longest_beginning(whole, phrase) :]
        shortest = min(shortest, len(whole) - len(prefix))
    assert room_for(kept, prefix) <= shortest
    if len(kept) <= 2 and not prefix:
        assert room_for(kept) == shortest


@such_that(phrases_of, st.lists(st.integers(0, 5), max_size=12))
def test_the_automata_count_what_a_sequence_holds(phrases: list[tuple[int, ...]], written: list[int]) -> None:
    kept = needless(tuple(phrases))
    assert all(any(holds(one, phrase) for one in kept) for phrase in phrases)
    assert not any(holds(one, other) for one, other in itertools.permutations(kept, 2))
    automata = RequiredPhrases(kept, 6, CPU)
    progress = automata.begin(1)
    for count, token in enumerate([None, *written]):
        if token is not None:
            every = automata.after(progress, torch.arange(6)[None, None])  # (1, 1, V, P)
            progress = every[:, :, token]
        met = tokens_met(kept, tuple(written[:count]))
        assert automata.met(progress).tolist() == [[met]]
        whole = all(holds(tuple(written[:count]), phrase) for phrase in phrases)
        assert (met == automata.total) == whole
        # The next token can always bring it on.
        following = automata.met(automata.after(progress, torch.arange(6)[None, None]))
        assert met == automata.total or int(following.max()) > met


@such_that(phrases_of, st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(0, 5))
@settings(max_examples=60)
def test_however_narrow_the_beam_every_phrase_is_met(
    phrases: list[tuple[int, ...]], width: int, room: int, ends: bool, seed: int
) -> None:
    phrases = [tuple(token + 1 for token in phrase) for phrase in phrases]
    length = sum(map(len, needless(tuple(phrases)))) + room
    stop = EndSymbol() if ends else None
    found = beam_search(Table(seed), length=length, width=width, n_best=2, stop=stop, search=Search(required=phrases))
    assert found.scores[0, 0] > -math.inf
    for index in range(2):
        written = tuple(found.tokens[: found.lengths[0, index], 0, index].tolist())
        assert found.scores[0, index] == -math.inf or all(holds(written, phrase) for phrase in phrases)


def test_a_wider_beam_finds_a_likelier_sequence_with_the_phrases() -> None:
    search = Search(required=[(3, 4), 7], no_repeat_ngram=2)
    scores = [
        float(beam_search(Table(seed), length=6, width=width, search=search).scores[0, 0])
        for width in (1, 40)
        for seed in range(8)
    ]
    assert sum(scores[8:]) > sum(scores[:8]) + 8


def test_the_best_of_each_bank_come_first_the_greatest_bank_before_all() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, -math.inf], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    banks = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    assert fair_choice(scores, banks, 2, 4).tolist() == [[3, 0, 4, 1], [0, 1, 2, 3]]
    # What is impossible comes last.
    assert fair_choice(scores, banks, 2, 6).tolist() == [[3, 0, 4, 1, 2, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("required", [[(1, 2), (2, 3)], [(1, 1), (1, 2)]])
def test_phrases_may_overlap(required: list[tuple[int, int]]) -> None:
    found = beam_search(Table(), length=4, width=500, n_best=300, search=Search(required=required))
    written = {tuple(found.tokens[:, 0, i].tolist()) for i in range(300) if found.scores[0, i] > -math.inf}
    everything = itertools.product(range(12), repeat=4)
    assert written == {way for way in everything if all(holds(way, phrase) for phrase in required)}
