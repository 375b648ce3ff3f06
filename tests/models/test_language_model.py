"""The language model as a distribution over sequences: its laws, by enumeration, by hand and by counting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.models import LanguageModel

V = 3  # border and two symbols


def model_of(seed: int = 0, **keys: Any) -> LanguageModel:
    """A small float64 model in eval mode, far from uniform."""
    torch.manual_seed(seed)
    settings = {"vocabulary_size": V, "hidden_size": 6, "embedding_size": 4} | keys
    model = LanguageModel(**settings).double().eval()
    with torch.no_grad():
        model.embedding.weight.mul_(8)
        model.readout.weight_ho.mul_(4)
        model.readout.bias_ho.normal_()
    return model


def tokens_of(steps: int, rows: int, *, vocabulary: int = V, seed: int = 0) -> Tensor:
    return torch.randint(0, vocabulary, (steps, rows), generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "rnn": {"cell": "rnn"},
    "stacked": {"num_layers": 2},
    "unequal": {"num_layers": 2, "hidden_size": [6, 5]},
    "unequal gru": {"cell": "gru", "num_layers": 2, "hidden_size": [6, 5]},
    "equal list": {"num_layers": 2, "hidden_size": [6, 6]},
    "list of one": {"hidden_size": [6]},
    "tied": {"embedding_size": 6, "tied": True},
    "residual": {"num_layers": 2, "residual": True},
    "layer norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.2},
}
every_kind = pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)


@every_kind
@torch.no_grad()
def test_log_prob_is_the_product_of_conditionals(keys: dict[str, Any]) -> None:
    model = model_of(**keys)
    tokens = tokens_of(5, 2)
    found = model.log_prob(tokens)
    for row in range(2):
        state, before, total = model.initial_state(1), torch.zeros(1, dtype=torch.int64), 0.0
        for step, token in enumerate(tokens[:, row].tolist()):
            logits, state = model.step(before, state)
            conditional = (logits[0, token].exp() / logits[0].exp().sum()).log()
            torch.testing.assert_close(found.steps[step, row], conditional)
            total, before = total + float(conditional), torch.tensor([token])
        assert float(found.total[row]) == pytest.approx(total)


def test_log_prob_counts_no_step_behind_a_length() -> None:
    model = model_of()
    tokens = tokens_of(6, 3)
    found = model.log_prob(tokens, lengths=torch.tensor([6, 2, 0]))
    assert bool((found.steps[2:, 1] == 0).all())
    assert float(found.total[2].detach()) == 0
    torch.testing.assert_close(found.total[1], model.log_prob(tokens[:2, 1:2]).total[0])


@pytest.mark.parametrize("border", [0, 2])
def test_probabilities_of_all_sequences_sum_to_one(border: int) -> None:
    """Of sequences that have ended within 5 steps, and of the unfinished ones of 5 steps."""
    model = model_of(border_id=border)
    symbols = [token for token in range(V) if token != border]
    total = 0.0
    for length in range(6):
        ends = [[border]] if length < 5 else [[]]
        sequences = [[*text, *end] for text in itertools.product(symbols, repeat=length) for end in ends]
        with torch.no_grad():
            total += float(model.log_prob(torch.tensor(sequences).T).total.exp().sum())
    assert total == pytest.approx(1, abs=1e-12)


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    model = model_of()
    count, longest = 4000, 3
    tokens, lengths = model.sample(count, longest, generator=torch.Generator().manual_seed(1))
    assert tokens.shape == (longest, count)
    assert torch.equal(lengths, (tokens != 0).sum(0))
    outcomes = [sequence for sequence in itertools.product(range(V), repeat=longest) if _ends_once(sequence)]
    expected = []
    for sequence in outcomes:
        length = min((*sequence, 0).index(0) + 1, longest)
        with torch.no_grad():
            expected.append(count * float(model.log_prob(torch.tensor(sequence[:length])[:, None]).total.exp()))
    drawn = [tuple(row) for row in tokens.T.tolist()]
    assert sum(expected) == pytest.approx(count)
    assert chisquare([drawn.count(sequence) for sequence in outcomes], expected).pvalue > 0.001


def _ends_once(sequence: tuple[int, ...]) -> bool:
    """Nothing but borders stands behind the first border."""
    return 0 not in sequence or not any(sequence[sequence.index(0) :])


def test_samples_can_be_had_again() -> None:
    model = model_of()
    draws = [model.sample(5, 8, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape != draws[2].shape or not torch.equal(draws[0], draws[2])
    assert model.sample(2, 0)[0].shape == (0, 2)


@every_kind
def test_reading_is_stepping(keys: dict[str, Any]) -> None:
    model = model_of(**keys)
    tokens = tokens_of(7, 3)
    logits, after = model.read(tokens, model.initial_state(3))
    state = model.initial_state(3)
    for step in tokens:
        stepped, state = model.step(step, state)
    torch.testing.assert_close(logits, stepped)
    assert len(after) == len(state)
    for one, other in zip(after, state, strict=True):
        assert one.shape[1] == 3
        torch.testing.assert_close(one, other)


@every_kind
@settings(max_examples=8)
@given(cut=st.integers(0, 8))
def test_a_carried_state_makes_one_long_sequence(keys: dict[str, Any], cut: int) -> None:
    model = model_of(**keys)
    tokens = tokens_of(8, 2)
    whole, after = model(tokens)
    first, state = model(tokens[:cut])
    second, state = model(tokens[cut:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for one, other in zip(state, after, strict=True):
        torch.testing.assert_close(one, other)


@every_kind
@settings(max_examples=8)
@given(data=st.data())
def test_resets_make_separate_sequences(keys: dict[str, Any], data: st.DataObject) -> None:
    model = model_of(**keys)
    tokens = tokens_of(6, 2)
    starts = [data.draw(st.lists(st.integers(0, 5), unique=True)) for _ in range(2)]
    resets = torch.zeros(6, 2, dtype=torch.bool)
    for row, steps in enumerate(starts):
        resets[steps, row] = True
    _, carried = model(tokens_of(3, 2, seed=1))
    logits, after = model(tokens, carried, resets=resets)
    for row, steps in enumerate(starts):
        borders = sorted({0, *steps, 6})
        state: Any = tuple(tensor[:, row : row + 1] for tensor in carried)
        parts = []
        for begin, end in itertools.pairwise(borders):
            part, state = model(tokens[begin:end, row : row + 1], None if begin in steps else state)
            parts.append(part[:, 0])
        torch.testing.assert_close(torch.cat(parts), logits[:, row])
        for one, other in zip(after, state, strict=True):
            torch.testing.assert_close(one[:, row], other[:, 0])


@settings(max_examples=10)
@given(seed=st.integers(0, 100))
def test_a_batch_is_its_members(seed: int) -> None:
    model = model_of(cell="gru", num_layers=2)
    tokens = tokens_of(5, 3, seed=seed)
    lengths = torch.tensor([5, 0, 3])
    together = model.log_prob(tokens, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.log_prob(tokens[:length, row : row + 1])
        torch.testing.assert_close(together.total[row], alone.total[0])


def test_tokens_must_be_time_by_batch() -> None:
    with pytest.raises(ShapeError, match=r"LanguageModel: tokens must be \(T, B\), got \(5,\); time comes first"):
        model_of()(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"LanguageModel: tokens must be int64, got torch.int32; use tokens.long\(\)"):
        model_of()(torch.zeros(5, 2, dtype=torch.int32))


@pytest.mark.parametrize("token", [-1, 7])
def test_tokens_must_be_of_the_vocabulary(token: int) -> None:
    model = model_of(vocabulary_size=7)
    text = rf"LanguageModel: tokens must be in 0..6, its vocabulary, got {min(token, 3)}..{max(token, 3)}; encode the"
    with pytest.raises(ShapeError, match=text):
        model(torch.tensor([[3], [token]]))


def test_forget_gates_begin_open() -> None:
    model = LanguageModel(vocabulary_size=V, hidden_size=[6, 5], num_layers=2)
    for layer, size in enumerate([6, 5]):
        bias = getattr(model.recurrent, f"bias_ih_l{layer}") + getattr(model.recurrent, f"bias_hh_l{layer}")
        assert bias[size : 2 * size].tolist() == [1.0] * size


# -- regularisers --------------------------------------------------------------------------------------------------

REGULARISERS: dict[str, dict[str, Any]] = {
    name: {name: 0.5}
    for name in (
        "dropout", "variational_dropout", "embedding_dropout", "recurrent_dropout", "zoneout", "weight_dropout",
    )
}  # fmt: skip


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("keys", REGULARISERS.values(), ids=REGULARISERS)
def test_a_regulariser_is_random_in_training_alone(keys: dict[str, float], cell: str) -> None:
    model = model_of(cell=cell, **keys)
    tokens = tokens_of(9, 4)
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    if "zoneout" not in keys:  # in evaluation its units move by the expected share
        plain = model_of(cell=cell)
        plain.load_tensors(model.tensors(), origin="here")
        assert torch.equal(model(tokens)[0], plain(tokens)[0])
    model.train()
    torch.manual_seed(0)
    first, second = model(tokens)[0], model(tokens)[0]
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, model(tokens)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_all_regularisers_together_learn(cell: str) -> None:
    keys = dict.fromkeys(REGULARISERS, 0.1)
    torch.manual_seed(0)
    model = LanguageModel(
        vocabulary_size=5, cell=cell, hidden_size=16, embedding_size=16, num_layers=2, tied=True, layer_norm=True,
        residual=True, **keys,
    )  # fmt: skip
    tokens = (torch.arange(40) % 4 + 1)[:, None].expand(-1, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = -model.log_prob(tokens).steps.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_embedding_dropout_drops_whole_types() -> None:
    model = LanguageModel(vocabulary_size=50, embedding_size=3, hidden_size=4, embedding_dropout=0.5).train()
    with torch.no_grad():
        model.embedding.weight.fill_(1)
    tokens = torch.arange(50).repeat(2)[:, None]
    torch.manual_seed(0)
    embedded = model._embed(tokens)
    assert set(embedded.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(embedded[:50], embedded[50:])
    assert bool((embedded == embedded[..., :1]).all())


def test_a_locked_mask_lasts_a_window() -> None:
    model = LanguageModel(vocabulary_size=V, hidden_size=40, variational_dropout=0.5).train()
    dropped = model.locked_dropout(torch.ones(6, 3, 40))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))


def test_what_stands_behind_a_length_is_not_looked_at() -> None:
    model = LanguageModel(vocabulary_size=7, hidden_size=5, embedding_size=3).double()
    tokens = torch.randint(0, 7, (6, 3))
    lengths = torch.tensor([6, 2, 0])
    expected = model.log_prob(tokens, lengths=lengths)
    padded = tokens.masked_fill(torch.arange(6)[:, None] >= lengths, -100)
    got = model.log_prob(padded, lengths=lengths)
    assert torch.equal(got.steps, expected.steps)
    assert torch.equal(got.total, expected.total)


def test_sampling_has_no_dropout_and_leaves_every_mode_as_it_was() -> None:
    model = LanguageModel(vocabulary_size=7, hidden_size=5, embedding_size=3, dropout=0.5).train()
    model.readout.eval()
    drawn, _ = model.sample(4, 20, generator=torch.Generator().manual_seed(0))
    assert model.training
    assert model.recurrent.training
    assert not model.readout.training
    expected, _ = model.eval().sample(4, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, expected)
