"""Beam search against a search through everything."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given as such_that
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.decoding import BernoulliHalt, EndSymbol, PredictedLength, beam_search, given, greedy
from throughtime.errors import ConfigError, DivergedError, ShapeError

pytestmark = pytest.mark.usefixtures("bookkeeping")

RULES = {"end_symbol": EndSymbol(), "bernoulli_halt": BernoulliHalt(), "predicted_length": PredictedLength()}
TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}


def context_model(stop: str, **keys: Any) -> tt.models.ContextToSequence:
    torch.manual_seed(7)
    keys = {"context_size": 2, "output_size": 2, "hidden_size": 4, "max_length": 4, **keys}
    model = tt.models.ContextToSequence(stop=stop, **keys).double().eval()
    with torch.no_grad():
        model.readout.weight_ho.mul_(4)
    return model


def contexts(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def language_model(**keys: Any) -> tt.models.LanguageModel:
    torch.manual_seed(0)
    model = tt.models.LanguageModel(vocabulary_size=4, hidden_size=6, embedding_size=3, border_id=1, **keys)
    with torch.no_grad():
        model.readout.weight_ho.mul_(4)
        model.embedding.weight.mul_(20)
    return model.double().eval()


def all_ways(model: Any, prompt: Tensor, length: int, end: int | None, silent: int = 0) -> list[tuple[Any, float]]:
    """Every sequence and its score, the best first, by stepping one after the other."""
    ways: list[tuple[tuple[int, ...], float]] = []

    def go_on(written: tuple[int, ...], score: float, logits: Tensor, state: Any) -> None:
        for y, log_p in enumerate(logits.log_softmax(-1)[0].tolist()):
            if log_p == -math.inf:
                continue
            if y == end:
                ways.append((written[silent:], score + log_p))
            elif len(written) + 1 == length + silent:
                ways.append(((*written, y)[silent:], score + log_p))
            else:
                go_on((*written, y), score + log_p, *model.step(torch.tensor([y]), state))

    state = model.initial_state(1)
    for y in prompt:
        logits, state = model.step(y[None], state)
    go_on((), 0.0, logits, state)
    return sorted(ways, key=lambda way: -way[1])


def check(found: Any, row: int, right: list[tuple[Any, float]], end: int | None) -> None:
    """The N best of one row are the N best of all."""
    count = found.scores.shape[1]
    best = right[:count] + [((), -math.inf)] * (count - len(right))
    torch.testing.assert_close(
        found.scores[row], torch.tensor([score for _, score in best], dtype=torch.float64), **TIGHT
    )
    for index, (written, _) in enumerate(best):
        length = int(found.lengths[row, index])
        assert tuple(found.tokens[:length, row, index].tolist()) == written
        if end is not None:
            assert (found.tokens[length:, row, index] == end).all()


@pytest.mark.parametrize("stop", RULES)
def test_a_full_width_is_a_search_through_everything(stop: str) -> None:
    model, x = context_model(stop), contexts(2)
    found = beam_search(given(model, context=x), length=4, width=16, n_best=40, stop=RULES[stop])
    for row in range(2):
        about = given(model, context=x[row])
        right = all_ways(about, torch.tensor([2]), 4, 2, about.silent_actions)
        assert sum(math.exp(score) for _, score in right) == pytest.approx(1)
        check(found, row, right, 2)


@pytest.mark.parametrize("end", [None, 1])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_language_model_with_full_width(end: int | None, cell: str) -> None:
    model = language_model(cell=cell, num_layers=2)
    prompts = torch.tensor([[1, 1], [0, 2]])
    stop = None if end is None else EndSymbol()
    found = beam_search(model, prompts, length=3, width=16 if end is None else 9, n_best=70, stop=stop)
    for row in range(2):
        right = all_ways(model, prompts[:, row], 3, end)
        check(found, row, right, end)
    assert found.scores.isfinite().sum() == 2 * (64 if end is None else 1 + 3 + 9 + 27)


@such_that(
    stop=st.sampled_from(sorted(RULES)), width=st.integers(1, 6), n_best=st.integers(1, 4), length=st.integers(0, 6)
)
@settings(max_examples=20)
def test_scores_are_those_of_the_model_in_any_batch(stop: str, width: int, n_best: int, length: int) -> None:
    model, x = context_model(stop, output_size=3), contexts(4)
    found = beam_search(given(model, context=x), length=length, width=width, n_best=n_best)
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    real = found.scores > -math.inf
    for index in range(n_best):
        right = model.log_prob(found.tokens[..., index].clamp(max=2), x, lengths=found.lengths[:, index]).total
        ended = real[:, index] & (found.lengths[:, index] < length)
        torch.testing.assert_close(found.scores[ended, index], right[ended], **TIGHT)
    written = [
        [tuple(found.tokens[: found.lengths[row, i], row, i].tolist()) for i in range(n_best) if real[row, i]]
        for row in range(4)
    ]
    if stop != "predicted_length":  # there a sequence cut at `length` may have been meant to be of several lengths
        assert all(len(set(row)) == len(row) for row in written)
    turned = beam_search(given(model, context=x.flip(0)), length=length, width=width, n_best=n_best)
    torch.testing.assert_close(turned.scores.flip(0), found.scores, **TIGHT)
    for row in range(4):
        alone = beam_search(given(model, context=x[row]), length=length, width=width, n_best=n_best)
        torch.testing.assert_close(alone.scores[0], found.scores[row], **TIGHT)
        count = len(alone.tokens)
        assert torch.equal(alone.tokens[:, 0], found.tokens[:count, row])


@pytest.mark.parametrize("stop", RULES)
def test_one_beginning_is_no_worse_than_greedy(stop: str) -> None:
    model, x = context_model(stop, output_size=3), contexts(12)
    decoded = greedy(given(model, context=x), length=6).log_probs.sum(0)
    found = beam_search(given(model, context=x), length=6, width=1).scores[:, 0]
    assert (found >= decoded - 1e-12).all()
    wider = beam_search(given(model, context=x), length=6, width=729).scores[:, 0]
    assert (wider >= found - 1e-12).all()


@pytest.mark.parametrize("kind", [tt.models.ConditionalRecurrent, tt.models.OutputRecurrent, tt.models.HiddenRecurrent])
def test_designs_with_inputs_and_ragged_lengths(kind: Any) -> None:
    torch.manual_seed(1)
    model = kind(input_size=2, output_size=3, hidden_size=4).double().eval()
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    lengths = [4, 0, 2]
    found = beam_search(given(model, inputs=x, lengths=lengths), length=5, width=81, n_best=2)
    assert found.lengths.tolist() == [[4, 4], [0, 0], [2, 2]]
    for row, length in enumerate(lengths):
        sequences = list(itertools.product(range(3), repeat=length))
        everything = torch.tensor(sequences, dtype=torch.int64).reshape(len(sequences), length)
        own = x[:length, row : row + 1].expand(-1, len(everything), -1)
        totals = model.log_prob(everything.mT, own).total.sort(descending=True)
        right = totals.values[:2] if length else torch.tensor([0.0, -math.inf]).double()
        torch.testing.assert_close(found.scores[row], right.detach(), **TIGHT)
        if length:
            assert torch.equal(found.tokens[:length, row].mT, everything[totals.indices[:2]])


class Counts(NamedTuple):
    """A state of one's own."""

    last: Tensor
    more: dict[str, Any]


class OwnModel:
    """What comes next depends on the last two tokens; the state is a nest, with the batch as first axis."""

    vocabulary_size, border_id = 3, 0

    def __init__(self) -> None:
        self.table = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2

    def initial_state(self, batch_size: int) -> Counts:
        return Counts(
            torch.zeros(batch_size, dtype=torch.int64), {"steps": [torch.zeros(batch_size, 2)], "name": "own"}
        )

    def step(self, tokens: Tensor, state: Counts) -> tuple[Tensor, Counts]:
        assert state.more["name"] == "own"
        assert len(state.more["steps"][0]) == len(tokens)
        return self.table[state.last, tokens], state._replace(last=tokens)


def test_a_model_of_ones_own_with_any_nest_as_state() -> None:
    model = OwnModel()
    prompts = torch.tensor([[0, 0, 0], [1, 2, 1]])
    found = beam_search(model, prompts, length=4, width=27, n_best=5, stop=EndSymbol())
    for row in range(3):
        check(found, row, all_ways(model, prompts[:, row], 4, 0), 0)


def test_a_sequence_that_has_ended_is_not_lost(fixed: Any) -> None:
    model = fixed([0.4, 0.35, 0.25])
    found = beam_search(model, length=30, width=1, n_best=3, stop=EndSymbol())
    # The beam follows 1, 1, 1, ...; the empty sequence, which left it first, stays the best.
    assert found.lengths.tolist() == [[0, 1, 2]]
    expected = [math.log(0.4) + n * math.log(0.35) for n in range(3)]
    torch.testing.assert_close(found.scores[0], torch.tensor(expected, dtype=torch.float64))
    assert found.tokens[:, 0].mT.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_no_step_is_made_once_nothing_better_can_come(fixed: Any) -> None:
    model = fixed([0.4, 0.35, 0.25])
    beam_search(model, length=1000, width=5, stop=EndSymbol())
    assert len(model.fed) == 1


def test_a_greater_width_finds_what_greedy_misses() -> None:
    class Trap(OwnModel):
        def __init__(self) -> None:
            super().__init__()
            p = torch.tensor([[0.02, 0.5, 0.48], [0.02, 0.49, 0.49], [0.01, 0.01, 0.98]], dtype=torch.float64)
            self.table = p.log().expand(3, 3, 3)  # after token n comes what row n says

    narrow, wide = (beam_search(Trap(), length=3, width=width) for width in (1, 2))
    assert narrow.tokens[0, 0, 0] == 1
    assert wide.tokens[:, 0, 0].tolist() == [2, 2, 2]
    assert wide.scores[0, 0] > narrow.scores[0, 0]


def test_nothing_to_write(fixed: Any) -> None:
    found = beam_search(fixed([0.5, 0.5]), length=0, width=3, n_best=2)
    assert found.tokens.shape == (0, 1, 2)
    assert found.lengths.tolist() == [[0, 0]]
    assert found.scores.tolist() == found.ranking.tolist() == [[0.0, -math.inf]]
    assert found.token_scores.shape == (0, 1, 2)


def test_a_beam_wider_than_the_vocabulary_holds_as_many_as_there_are(fixed: Any) -> None:
    model = fixed([0.1, 0.2, 0.3, 0.4])
    found = beam_search(model, length=3, width=50, n_best=60, stop=EndSymbol())
    assert [len(tokens) for tokens in model.fed] == [1, 3, 9]
    # 1 + 3 + 9 sequences end, 27 are cut; the others do not exist.
    assert int((found.scores > -math.inf).sum()) == 40
    assert found.scores.exp().sum() == pytest.approx(1)


def test_a_vocabulary_of_the_end_alone(fixed: Any) -> None:
    found = beam_search(fixed([1.0]), length=3, width=2, n_best=2, stop=EndSymbol())
    assert found.tokens.tolist() == [[[0, 0]]]
    assert found.scores.tolist() == [[0.0, -math.inf]]


def test_what_is_told_of_each_token(fixed: Any) -> None:
    found = beam_search(fixed([0.5, 0.3, 0.2]), length=2, width=2, n_best=3, stop=EndSymbol())
    assert found.tokens[:, 0].mT.tolist() == [[0, 0], [1, 0], [2, 0]]
    right = [[0.5, 1.0], [0.3, 0.5], [0.2, 0.5]]
    torch.testing.assert_close(found.token_scores[:, 0].mT.exp(), torch.tensor(right, dtype=torch.float64))
    torch.testing.assert_close(found.token_scores.sum(0), found.scores)
    assert torch.equal(found.ranking, found.scores)
    assert found.attention is None


def test_what_was_found_can_be_trained_on() -> None:
    model = language_model().train()
    found = beam_search(model, length=3, width=2, n_best=2)
    assert model.training
    (model.log_prob(found.tokens[:, 0]).total * found.scores[0]).sum().backward()
    assert next(model.parameters()).grad is not None


def test_errors(fixed: Any) -> None:
    model = fixed([0.5, 0.5])
    for name, keys in (("width", {"width": 0}), ("n_best", {"n_best": 0}), ("length", {"length": -1})):
        with pytest.raises(ConfigError, match=rf"^beam_search: {name} must be >= [01], got {keys[name]}$"):
            beam_search(model, **{"length": 2, "width": 2, **keys})
    with pytest.raises(ConfigError, match="BernoulliHalt: the model must be ContextToSequence"):
        beam_search(model, length=2, width=2, stop=BernoulliHalt())
    model.logits = torch.full((2,), math.nan)
    with pytest.raises(DivergedError, match="FixedModel gave logits that are not finite"):
        beam_search(model, length=2, width=2)

    class Sideways(OwnModel):
        def initial_state(self, batch_size: int) -> Any:
            return Counts(torch.zeros(batch_size, dtype=torch.int64), {"steps": [torch.zeros(7, 1)], "name": "own"})

        def step(self, tokens: Tensor, state: Counts) -> tuple[Tensor, Counts]:
            return self.table[state.last, tokens], state

    with pytest.raises(
        ShapeError,
        match=r"^decoding: tensors of the state of Sideways must have the batch of 1 as first axis, got \(7, 1\); "
        r"define reorder\(state, indices\) for other states$",
    ):
        beam_search(Sideways(), length=2, width=2)
