"""Every option of beam search against a search through everything, in plain Python."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, settings
from hypothesis import given as such_that
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.decoding import EndSymbol, beam, given, greedy
from throughtime.decoding.beam import Hypotheses, Search, beam_search
from throughtime.decoding.hypotheses import Chains
from throughtime.errors import ConfigError

pytestmark = pytest.mark.usefixtures("bookkeeping")

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}
PLACES = (3, 1, 2)  # of the sources


class Looking(NamedTuple):
    """A state: the last token, which row it is, where it has looked, and all that was read."""

    last: Tensor
    more: dict[str, Any]
    read: list[Tensor]


class Translator:
    """Looks at a source of each row; what comes next depends on it, and on the two last tokens.

    Its state remembers what was read, twice; a step finds out if the two do not agree.
    """

    border_id = 0

    def __init__(self, vocabulary_size: int = 3, rows: tuple[int, ...] = (0, 1, 2)) -> None:
        generator = torch.Generator().manual_seed(3)
        size = self.vocabulary_size = vocabulary_size
        self.table = 2 * torch.randn(3, size, size, size, generator=generator, dtype=torch.float64)
        self.looks = 3 * torch.randn(size, size, 3, generator=generator, dtype=torch.float64)
        self.mask = torch.arange(3) < torch.tensor(PLACES)[:, None]  # (B, S)
        self.rows, self.batch_size = rows, len(rows)
        self.fed: list[int] = []

    def initial_state(self, batch_size: int) -> Looking:
        assert batch_size == len(self.rows)
        zeros = torch.zeros(batch_size, dtype=torch.int64)
        more = {"row": (torch.tensor(self.rows),), "weights": torch.zeros(batch_size, 3), "digest": zeros}
        return Looking(zeros, more, [])

    def step(self, tokens: Tensor, state: Looking) -> tuple[Tensor, Looking]:
        self.fed.append(len(tokens))
        row, read = state.more["row"][0], [*state.read, tokens]
        again = torch.zeros_like(tokens)
        for one in state.read:
            again = 31 * again + one + 1
        assert torch.equal(again, state.more["digest"])
        weights = self.looks[state.last, tokens].masked_fill(~self.mask[row], -math.inf).softmax(-1)
        digest = 31 * again + tokens + 1
        # No two sequences are equally likely, whatever their last tokens are.
        own = torch.sin(digest[:, None] * torch.arange(1.0, self.vocabulary_size + 1, dtype=torch.float64))
        more = {"row": (row,), "weights": weights, "digest": digest}
        return self.table[row, state.last, tokens] + own, Looking(tokens, more, read)

    def attention(self, state: Looking) -> Tensor:
        return state.more["weights"]

    def source_mask(self, state: Looking) -> Tensor:
        return self.mask[state.more["row"][0]]


class Way(NamedTuple):
    """A whole sequence: its tokens without the end, log p and attention of each, the end among these."""

    tokens: tuple[int, ...]
    scores: list[float]
    looks: list[Tensor]

    def ranking(self, search: Search, mask: Tensor) -> float:
        penalty = ((5 + len(self.scores)) / 6) ** search.length_penalty
        coverage = torch.stack(self.looks).sum(0)[mask].clamp(max=1).log().sum()
        return sum(self.scores) / penalty + search.coverage_penalty * float(coverage)


@functools.cache
def everything(row: int, length: int, end: int | None, vocabulary: int = 3) -> list[Way]:
    """Every sequence that the model can write for a row."""
    model = Translator(vocabulary, (row,))
    ways: list[Way] = []

    def go_on(way: Way, token: int, state: Any) -> None:
        logits, state = model.step(torch.tensor([token]), state)
        looks = [*way.looks, model.attention(state)[0]]
        for y, log_p in enumerate(logits[0].log_softmax(-1).tolist()):
            scores = [*way.scores, log_p]
            if y == end:
                ways.append(Way(way.tokens, scores, looks))
            elif len(scores) == length:
                ways.append(Way((*way.tokens, y), scores, looks))
            else:
                go_on(Way((*way.tokens, y), scores, looks), y, state)

    go_on(Way((), [], []), 0, model.initial_state(1))
    return ways


def held(tokens: tuple[int, ...], phrase: tuple[int, ...]) -> int:
    """How often a phrase stands in a sequence."""
    return sum(tokens[start : start + len(phrase)] == phrase for start in range(len(tokens)))


def allowed(way: Way, search: Search, row: int, end: int | None) -> bool:
    """What the options say, in words of their own."""
    tokens, ended = way.tokens, len(way.scores) > len(way.tokens)
    closed = (*tokens, end) if ended and end is not None else tokens
    size, prefix = search.no_repeat_ngram, search.prefixes(3)[row]
    return (
        (not ended or len(tokens) >= search.minimum_length)
        and not any(held(closed, phrase) for phrase in search.banned_phrases)
        and all(held(tokens, phrase) for phrase in search.required_phrases)
        and tokens[: len(prefix)] == prefix
        and not (size and any(held(tokens, tokens[i : i + size]) > 1 for i in range(len(tokens) - size + 1)))
    )


def check(found: Hypotheses, row: int, ways: list[Way], search: Search, end: int | None) -> None:
    """The N best of one row are the N best of all, with all that is told of them."""
    mask = Translator().mask[row]
    ways = sorted(ways, key=lambda way: -way.ranking(search, mask))
    for index in range(found.ranking.shape[1]):
        if index >= len(ways):
            assert found.scores[row, index] == found.ranking[row, index] == -math.inf
            assert found.lengths[row, index] == 0
            assert not found.token_scores[:, row, index].any()
            continue
        way = ways[index]
        length, count = int(found.lengths[row, index]), len(way.scores)
        assert tuple(found.tokens[:length, row, index].tolist()) == way.tokens
        assert end is None or (found.tokens[length:, row, index] == end).all()
        assert float(found.ranking[row, index]) == pytest.approx(way.ranking(search, mask))
        assert float(found.scores[row, index]) == pytest.approx(sum(way.scores))
        assert found.token_scores[:count, row, index].tolist() == pytest.approx(way.scores)
        assert found.attention is not None
        torch.testing.assert_close(found.attention[:count, row, index], torch.stack(way.looks), **TIGHT)
        assert not found.token_scores[count:, row, index].any()
        assert not found.attention[count:, row, index].any()


phrases = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=2).map(tuple), max_size=2)
prefixes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 2), max_size=2).map(tuple),
    st.lists(st.lists(st.integers(0, 2), max_size=2).map(tuple), min_size=3, max_size=3),
)
normalised = st.builds(
    Search,
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.5]),
    coverage_penalty=st.sampled_from([0.0, 0.2, 2.0]),
    minimum_length=st.integers(0, 3),
)


@such_that(
    normalised, phrases, phrases, prefixes, st.integers(0, 2), st.sampled_from([None, 0]), st.integers(1, 4), st.data()
)
@settings(max_examples=60)
def test_with_full_width_every_search_is_one_through_everything(
    search: Search, banned: Any, required: Any, prefix: Any, ngram: int, end: int | None, length: int, data: Any
) -> None:
    width = 3 ** (length - 1)
    n_best = data.draw(st.integers(1, 6))
    stop = None if end is None else EndSymbol(end)
    # Most sets of options exclude each other: they are drawn one at a time, and all together.
    kept = data.draw(st.sampled_from(["banned", "required", "prefix", "ngram", "all"]))
    options = {"banned": banned, "required": required, "prefix": prefix, "no_repeat_ngram": ngram}
    if kept != "all":
        options = {name: value for name, value in options.items() if name.endswith(kept)}
    try:
        search = replace(search, **options)
        found = beam_search(Translator(), length=length, width=width, n_best=n_best, stop=stop, search=search)
    except ConfigError:
        assume(False)
    for row in range(3):
        ways = [way for way in everything(row, length, end) if allowed(way, search, row, end)]
        check(found, row, ways, search, end)


options = st.sampled_from(
    [
        Search(),
        Search(length_penalty=0.8),
        Search(length_penalty=1.5, coverage_penalty=0.4, minimum_length=2),
        Search(coverage_penalty=1.0, no_repeat_ngram=2, banned=[(1, 2), 4]),
        Search(required=[(1, 2), (3,)], length_penalty=0.5),
        Search(prefix=[1, 2], banned=[0, (3, 3)]),
        Search(groups=2, diversity=0.7, length_penalty=0.5),
        Search(groups=2, diversity=0.3, required=[(2, 1)], no_repeat_ngram=3),
    ]
)


def equal(one: Hypotheses, other: Hypotheses) -> None:
    """The same sequences with the same numbers, whatever stands behind their ends."""
    length = min(len(one.tokens), len(other.tokens))
    for a, b in zip(one, other, strict=True):
        if a is not None and a.dim() > 2:
            a, b = a[:length], b[:length]
        torch.testing.assert_close(a, b, **TIGHT)


@such_that(options, st.integers(1, 3), st.integers(1, 5), st.integers(4, 9), st.booleans())
@settings(max_examples=20)
def test_a_row_is_the_same_in_any_batch(search: Search, pairs: int, n_best: int, length: int, ends: bool) -> None:
    keys: dict[str, Any] = {"length": length, "width": 2 * pairs, "n_best": n_best, "search": search}
    keys["stop"] = EndSymbol() if ends else None
    whole = beam_search(Translator(5), **keys)
    turned = beam_search(Translator(5, (2, 0, 1)), **keys)
    for place, row in enumerate((2, 0, 1)):
        alone = beam_search(Translator(5, (row,)), **keys)
        equal(rows_of(whole, row), alone)
        equal(rows_of(turned, place), alone)


def rows_of(found: Hypotheses, row: int) -> Hypotheses:
    """One row."""
    parts = [None if part is None else part[row : row + 1] if axis == 0 else part[:, row : row + 1]
             for part, axis in zip(found, (1, 0, 0, 0, 1, 1), strict=True)]  # fmt: skip
    return Hypotheses(*parts)  # type: ignore[arg-type]


@such_that(options, st.integers(1, 3), st.integers(1, 5), st.integers(4, 12))
@settings(max_examples=20)
def test_stopping_early_loses_nothing(search: Search, pairs: int, n_best: int, length: int) -> None:
    keys: dict[str, Any] = {"length": length, "width": 2 * pairs, "n_best": n_best, "search": search}
    keys["stop"] = EndSymbol()
    model, endless = Translator(5), Translator(5)
    found = beam_search(model, **keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "unsettled", lambda scores, *_: torch.ones(len(scores), dtype=torch.bool))
        natively = beam.lengthen
        patch.setattr(beam, "lengthen", lambda *given, **more: natively(*given, **more)._replace(going=None))
        equal(found, beam_search(endless, **keys))
    assert len(endless.fed) == length
    assert sum(model.fed) <= sum(endless.fed)


@pytest.mark.parametrize(("share", "best", "steps"), [(0.382, 7, 7), (0.3819, 0, 1)])
def test_the_bound_of_an_early_stop_is_one_that_is_reached(share: float, best: int, steps: int) -> None:
    """It ends at once, or never: log(1 - q) against log(q) / lp(7) = log(q) / 2, which differ by less than 0.0002."""

    class OnceOrNever:
        vocabulary_size, border_id = 2, 0

        def __init__(self) -> None:
            self.steps = 0

        def initial_state(self, batch_size: int) -> None:
            return None

        def step(self, tokens: Tensor, state: None) -> tuple[Tensor, None]:
            self.steps += 1
            first = torch.tensor([1 - share, share], dtype=torch.float64)
            return torch.where(tokens[:, None] == 0, first, torch.tensor([0.0, 1.0]).double()).log(), None

    model = OnceOrNever()
    found = beam_search(model, length=7, width=2, stop=EndSymbol(), search=Search(length_penalty=1.0))
    assert found.lengths.tolist() == [[best]]
    assert model.steps == steps


def test_a_row_that_is_settled_costs_nothing_more() -> None:
    class Short(Translator):
        """Row 0 ends at once, row 1 goes on, row 2 ends after two tokens."""

        def step(self, tokens: Tensor, state: Looking) -> tuple[Tensor, Looking]:
            logits, after = super().step(tokens, state)
            ends = torch.tensor([1, 99, 3])[state.more["row"][0]] <= len(after.read)
            logits = logits.clone()
            logits[:, 0] = torch.where(ends, 50.0, -50.0).double()
            return logits, after

    model = Short(4)
    found = beam_search(model, length=6, width=3, stop=EndSymbol())
    assert found.lengths.tolist() == [[0], [6], [2]]
    assert model.fed == [3, 6, 6, 3, 3, 3]


@such_that(options, st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=20)
def test_nothing_that_was_whole_is_lost(search: Search, pairs: int, n_best: int) -> None:
    """However it came about, the N best are those of all whole sequences that the search ever saw."""
    assume(search.groups == 1)  # groups see the same sequence several times
    seen: dict[int, list[float]] = {row: [] for row in range(3)}
    kept, natively = Chains.end, beam._Beam._lengthened_natively

    def see(chains: Chains, ranking: Tensor) -> None:
        for row, values in zip(chains.rows.tolist(), ranking.tolist(), strict=True):
            seen[row] += values

    def spy(chains: Chains, ranking: Tensor, steps: int) -> None:
        see(chains, ranking)
        kept(chains, ranking, steps)

    def spy_natively(self: beam._Beam, following: beam.Ranked) -> Any:
        if self._may_end() and following.of_end is not None:
            ended = self.scores + following.of_end.view_as(self.scores)
            see(self.chains, ended / self.task.penalty(self._step + 1))
        return natively(self, following)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "end", spy)
        patch.setattr(beam._Beam, "_lengthened_natively", spy_natively)
        found = beam_search(Translator(5), length=7, width=2 * pairs, n_best=n_best, stop=EndSymbol(), search=search)
    for row in range(3):
        best = sorted([*seen[row], *[-math.inf] * n_best], reverse=True)[:n_best]
        assert found.ranking[row].tolist() == best


@such_that(options, st.integers(1, 3), st.integers(1, 5), st.booleans())
@settings(max_examples=20)
def test_every_score_is_the_models_own(search: Search, pairs: int, n_best: int, ends: bool) -> None:
    """Each sequence is read again, token by token: log p and attention are what they were in the beam."""
    stop = EndSymbol() if ends else None
    found = beam_search(Translator(5), length=8, width=2 * pairs, n_best=n_best, stop=stop, search=search)
    assert found.attention is not None
    model = Translator(5)
    for index in range(n_best):
        state, fed = model.initial_state(3), torch.zeros(3, dtype=torch.int64)
        for step, tokens in enumerate(found.tokens[..., index]):
            logits, state = model.step(fed, state)
            own = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            real = (found.scores[:, index] > -math.inf) & (step < found.lengths[:, index] + ends)
            torch.testing.assert_close(found.token_scores[step, :, index], own.where(real, 0.0), **TIGHT)
            look = model.attention(state).where(real[:, None], 0.0)
            torch.testing.assert_close(found.attention[step, :, index], look, **TIGHT)
            fed = tokens
    totals = found.token_scores.sum(0)
    torch.testing.assert_close(totals, found.scores.where(found.scores > -math.inf, 0.0), **TIGHT)


def test_one_beginning_without_an_end_is_greedy() -> None:
    torch.manual_seed(0)
    model = tt.models.LanguageModel(vocabulary_size=30, hidden_size=12, embedding_size=6).double()
    prompts = torch.randint(30, (3, 5))
    for length_penalty in (0.0, 1.0):  # all are of one length
        found = beam_search(model, prompts, length=9, width=1, search=Search(length_penalty=length_penalty))
        for row in range(5):
            right = greedy(model, prompts[:, row], length=9, engine="model")
            assert torch.equal(found.tokens[:, row, 0], right.tokens[:, 0])
            torch.testing.assert_close(found.token_scores[:, row, 0], right.log_probs[:, 0], **TIGHT)


@pytest.mark.parametrize("stop", ["end_symbol", "bernoulli_halt", "predicted_length"])
def test_the_designs_with_every_end_and_a_normalised_length(stop: str) -> None:
    torch.manual_seed(7)
    model = tt.models.ContextToSequence(context_size=2, output_size=2, hidden_size=4, max_length=3, stop=stop)
    about = given(model.double().eval(), context=torch.randn(2, dtype=torch.float64))
    every = beam_search(about, length=4, width=16, n_best=40)
    ended = (every.scores > -math.inf) & (every.lengths < 4)
    assert int(ended.sum()) == 15
    penalties = ((5 + every.lengths + ended).double() / 6) ** 3
    right = (every.scores / penalties).sort(dim=1, descending=True).values
    found = beam_search(about, length=4, width=16, n_best=40, search=Search(length_penalty=3))
    torch.testing.assert_close(found.ranking, right, **TIGHT)
    assert not torch.equal(found.tokens, every.tokens)
    sums = found.token_scores.sum(0).where(found.scores > -math.inf, -math.inf)
    torch.testing.assert_close(sums, found.scores, **TIGHT)


@pytest.mark.parametrize("stop", ["end_symbol", "bernoulli_halt", "predicted_length"])
@pytest.mark.parametrize(
    "search",
    [
        Search(minimum_length=2, no_repeat_ngram=2),
        Search(prefix=[2], banned=[(0, 1), 1]),
        Search(prefix=[[1], [], [0, 2]], required=[(2, 2)]),
        Search(required=[0, (1, 2)], length_penalty=1.0),
    ],
)
def test_constraints_hold_for_every_way_to_end(stop: str, search: Search) -> None:
    """The length that is drawn first is no token: nothing forbids it, and nothing counts it."""
    torch.manual_seed(7)
    model = tt.models.ContextToSequence(context_size=2, output_size=3, hidden_size=4, max_length=4, stop=stop)
    about = given(model.double().eval(), context=torch.randn(3, 2, dtype=torch.float64))
    every = beam_search(about, length=4, width=81 * 5, n_best=300)
    found = beam_search(about, length=4, width=81 * 5, n_best=300, search=search)
    for row in range(3):
        right = []
        for index in range(300):
            length = int(every.lengths[row, index])
            tokens = tuple(every.tokens[:length, row, index].tolist())
            # Where lengths are predicted, four tokens are a whole sequence, cut before an end that is certain.
            way = Way(tokens, [0.0] * min(length + 1, 4), [])
            if every.scores[row, index] > -math.inf and allowed(way, search, row, None):
                penalty = ((5 + len(way.scores)) / 6) ** search.length_penalty
                right.append((float(every.scores[row, index]) / penalty, tokens))
        right.sort(reverse=True)
        assert right
        assert found.ranking[row, : len(right)].tolist() == pytest.approx([score for score, _ in right])
        assert (found.ranking[row, len(right) :] == -math.inf).all()
        for index, (_, tokens) in enumerate(right):
            assert tuple(found.tokens[: len(tokens), row, index].tolist()) == tokens
