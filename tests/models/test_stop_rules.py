"""The three ways to end a sequence, in the models: losses by hand, and what each can do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.models.sequence_length import first, halted, halting, remaining, with_end

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}
STOPS = ["end_symbol", "bernoulli_halt", "predicted_length"]


def model_of(stop: str, **keys: Any) -> tt.models.ContextToSequence:
    torch.manual_seed(1)
    keys = {"context_size": 2, "output_size": 3, "hidden_size": 4, "max_length": 6, **keys}
    return tt.models.ContextToSequence(stop=stop, **keys).double().eval()


def contexts(count: int = 3) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


Y = torch.tensor([[0, 2, 1], [1, 1, 0], [2, 0, 0], [1, 1, 2]])
LENGTHS = [4, 0, 2]


# -- pieces ----------------------------------------------------------------------------------------------------------


def test_the_end_stands_behind_each_sequence() -> None:
    longer = with_end(torch.tensor([[1, 0], [2, 0]]), torch.tensor([2, 0]), 9)
    assert longer.tolist() == [[1, 9], [2, 0], [9, 0]]


def test_a_sequence_halts_once() -> None:
    halt, symbols = torch.tensor([[0.5], [-1.0], [2.0], [9.0]]), torch.tensor([[-1.0], [-2.0], [-3.0], [-4.0]])
    found = halting(halt, symbols, torch.tensor([2]))[:, 0]
    s = torch.sigmoid(halt[:, 0])
    torch.testing.assert_close(found, torch.stack([(1 - s[0]).log() - 1, (1 - s[1]).log() - 2, s[2].log(), s[0] * 0]))


def test_the_first_end_counts() -> None:
    ends = torch.tensor([[False, True, False], [True, True, False], [True, False, False]])
    assert first(ends).tolist() == [1, 0, 3]
    logits = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])
    assert halted(logits, torch.full((2, 2), 0.5)).tolist() == [1, 0]


def test_what_remains_is_counted_down_to_zero() -> None:
    assert remaining(torch.tensor([3, 1]), 4, 6)[..., 0].mul(6).tolist() == [[2, 0], [1, 0], [0, 0], [0, 0]]


# -- losses by hand --------------------------------------------------------------------------------------------------


def outputs(model: Any, row: int, length: int, extra: int) -> Tensor:
    """o(1..τ+extra) of one sequence, stepped by hand."""
    x = contexts()[row : row + 1]
    states, fed, found = model.first_states(x), torch.zeros(1, model.distribution.feedback_size).double(), []
    for t in range(length + extra):
        parts = [x, fed]
        if model.config.stop == "predicted_length":
            parts.insert(1, torch.tensor([[(length - t - 1) / 6]], dtype=torch.float64))
        h, states = model.advance(torch.cat(parts, -1), states)
        found.append(model.readout(h)[0])
        if t < length:
            fed = functional.one_hot(Y[t, row : row + 1], model.distribution.feedback_size).double()
    return torch.stack(found) if found else torch.zeros(0, model.readout.bias_ho.shape[0]).double()


@pytest.mark.parametrize("stop", STOPS)
def test_losses_are_the_equations(stop: str) -> None:
    model = model_of(stop)
    found = model(contexts(), targets=Y, lengths=LENGTHS)
    assert found.shape == (5, 3)
    for row, length in enumerate(LENGTHS):
        o = outputs(model, row, length, int(stop != "predicted_length"))
        y = Y[:length, row]
        if stop == "end_symbol":
            right = -o.log_softmax(-1)[torch.arange(length + 1), torch.cat([y, torch.tensor([3])])]
        elif stop == "bernoulli_halt":
            s = torch.sigmoid(o[:, 3])
            symbols = o[:length, :3].log_softmax(-1)[torch.arange(length), y]
            right = -torch.cat([(1 - s[:length]).log() + symbols, s[length:].log()])
        else:
            of_lengths = model.length_log_prob(contexts(), 3)
            torch.testing.assert_close(of_lengths.exp().sum(1), torch.ones(3).double(), **TIGHT)
            symbols = o.log_softmax(-1)[torch.arange(length), y]
            right = -torch.cat([of_lengths[row, length][None], symbols])
        torch.testing.assert_close(found[: length + 1, row], right, **TIGHT)
        assert not found[length + 1 :, row].any()


@pytest.mark.parametrize("stop", STOPS)
def test_every_parameter_learns(stop: str) -> None:
    model = model_of(stop, context_as="both")
    model(contexts(), targets=Y, lengths=LENGTHS).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# -- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "output"),
    [*((stop, "categorical") for stop in ("given", *STOPS)), *((s, "learned_gaussian") for s in ("given", *STOPS[1:]))],
)
def test_draws_stop_where_they_should(stop: str, output: str) -> None:
    model, x = model_of(stop, output=output), contexts(200)
    for limit in (0, 4, 9):
        generator = torch.Generator().manual_seed(5)
        y, lengths = model.sample(x, max_length=limit, generator=generator)
        assert int(lengths.min()) >= 0
        assert int(lengths.max()) == len(y) <= limit
        assert not any(y[int(length) :, row].any() for row, length in enumerate(lengths))
        if output == "categorical" and limit:
            assert int(y.max()) <= 2
        again = model.sample(x, max_length=limit, generator=torch.Generator().manual_seed(5))
        assert torch.equal(y, again[0])
    if stop == "predicted_length":
        assert int(lengths.max()) <= 6
    if stop == "given":
        y, lengths = model.sample(x[:3], max_length=5, lengths=[2, 0, 9], generator=torch.Generator().manual_seed(0))
        assert lengths.tolist() == [2, 0, 5]


def test_a_halt_that_never_comes_is_cut() -> None:
    model = model_of("bernoulli_halt", context_size=0)
    with torch.no_grad():
        model.readout.weight_ho.zero_()
        model.readout.bias_ho[-1] = -50.0
    _, lengths = model.sample(max_length=7, batch_size=4, generator=torch.Generator().manual_seed(0))
    assert lengths.tolist() == [7] * 4


@pytest.mark.parametrize("stop", STOPS)
def test_lengths_can_be_learned(stop: str) -> None:
    """Sequences as long as their context says."""
    torch.manual_seed(0)
    model = tt.models.ContextToSequence(
        context_size=1, output_size=2, hidden_size=16, cell="gru", stop=stop, max_length=6
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    lengths = torch.arange(64) % 5
    context, y = lengths[:, None].float() / 4, torch.ones(4, 64, dtype=torch.int64)
    before = tt.decoding.length_error(model, lengths[:5], context[:5], max_length=8)
    for _ in range(100):
        optimizer.zero_grad()
        model(context, targets=y, lengths=lengths).sum(0).mean().backward()
        optimizer.step()
    after = tt.decoding.length_error(model, lengths[:5], context[:5], max_length=8)
    assert math.isfinite(before.expected)
    assert after.decoded <= 0.2
    assert after.expected < before.expected / 2


def test_lengths_that_are_none_are_refused_in_sampling() -> None:
    given = tt.models.ContextToSequence(context_size=0, output_size=2, hidden_size=3)
    halting = tt.models.ContextToSequence(context_size=0, output_size=2, hidden_size=3, stop="bernoulli_halt")
    for lengths in ([-1, 2, 3], [1.5, 2, 2.5], [2]):
        with pytest.raises(
            ShapeError, match="lengths must be 3 whole numbers of at least 0, one for each sequence, got"
        ):
            given.sample(batch_size=3, max_length=5, lengths=lengths)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"lengths must be None, as a model built with stop=.bernoulli_halt. chooses"):
        halting.sample(batch_size=3, max_length=5, lengths=[1, 2, 3])
    with pytest.raises(UsageError, match="max_length must be at least 0 steps, got -1"):
        given.sample(batch_size=3, max_length=-1)
    y, lengths = given.sample(batch_size=3, max_length=2, lengths=[0, 1, 5])
    assert (y.shape, lengths.tolist()) == ((2, 3), [0, 1, 2])


def test_binary_targets_are_zero_or_one() -> None:
    model = tt.models.HiddenRecurrent(input_size=2, output="bernoulli", output_size=1, hidden_size=3)
    x, y = torch.zeros(4, 2, 2), torch.zeros(4, 2, 1)
    y[3, 0] = 2.0
    with pytest.raises(ShapeError, match="targets must be 0 or 1 where outputs are bernoulli, got 2"):
        model(x, targets=y)
    assert model(x, targets=y, lengths=[3, 4]).isfinite().all()  # behind a length it is not looked at
