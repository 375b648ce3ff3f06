"""tt.unfold: the laws of a cell through time, for built-in cells and for a user's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import EngineError, ShapeError, UsageError

I, H = 2, 3  # noqa: E741


class LeakyState(NamedTuple):
    h: Tensor


class LeakyCell(tt.Cell):
    """No input projection hoisted, one field, its own parameters."""

    State = LeakyState

    def __init__(self) -> None:
        super().__init__(I, H)
        self.U, self.W = nn.Linear(I, H), nn.Linear(H, H)

    def step(self, projected: Tensor, state: LeakyState) -> LeakyState:
        return LeakyState(0.7 * state.h + 0.3 * torch.tanh(self.U(projected) + self.W(state.h)))


class PairState(NamedTuple):
    h: Tensor
    memory: Tensor


class MatrixMemoryCell(tt.Cell):
    """A second field with an axis more, a hoisted projection, an initial state that is not zero."""

    State = PairState

    def __init__(self) -> None:
        super().__init__(I, H)
        self.U = nn.Linear(I, H)
        self.start = nn.Parameter(torch.full((2, H), 0.1))

    def initial_state(self, batch_size: int, *, dtype: Any = None, device: Any = None) -> PairState:
        return PairState(torch.zeros(batch_size, H, dtype=dtype, device=device), self.start.expand(batch_size, 2, H))

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)

    def step(self, projected: Tensor, state: PairState) -> PairState:
        memory = 0.9 * state.memory + torch.stack([projected, state.h], dim=1)
        return PairState(torch.tanh(memory.sum(1)), memory)


CELLS: dict[str, Any] = {
    "own": LeakyCell,
    "own with two fields": MatrixMemoryCell,
    "rnn": lambda: tt.nn.RNNCell(I, H),
    "lstm": lambda: tt.nn.LSTMCell(I, H),
    "projected lstm": lambda: tt.nn.LSTMCell(I, H, proj_size=2),
    "normalised lstm": lambda: tt.nn.LSTMCell(I, H, layer_norm=True, peepholes=True),
    "gru": lambda: tt.nn.GRUCell(I, H),
    "gru of 2014": lambda: tt.nn.GRUCell(I, H, reset_after=False),
}


def made(kind: str) -> Any:
    torch.manual_seed(6)
    return CELLS[kind]().double()


def problem(draw: Any) -> tuple[Any, Tensor, Any]:
    """A cell, inputs (T, B, I) and an initial state."""
    cell = made(draw(st.sampled_from(sorted(CELLS))))
    steps, batch = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    inputs = torch.randn(steps, batch, I, generator=generator, dtype=torch.float64)
    shapes = [f.shape for f in cell.initial_state(batch, dtype=torch.float64)]
    return cell, inputs, cell.State(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))


def lengths_for(draw: Any, inputs: Tensor) -> Tensor:
    steps, batch = inputs.shape[:2]
    return torch.tensor(draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-9, atol=1e-11, equal_nan=False)


few = settings(max_examples=25)


@few
@given(st.data())
def test_unfolding_is_stepping_by_hand(data: Any) -> None:
    cell, inputs, state = problem(data.draw)
    outputs, final = tt.unfold(cell, inputs, state)
    assert type(final) is cell.State
    for t, x in enumerate(inputs):
        after = cell(x, state)
        state = cell.State(after) if isinstance(after, Tensor) else after
        same([outputs[t]], [state[0]])
    same(final, state)


@few
@given(st.data(), st.booleans())
def test_split_in_two_with_its_state_carried_it_is_one_sequence(data: Any, reverse: bool) -> None:
    cell, inputs, state = problem(data.draw)
    lengths = lengths_for(data.draw, inputs)
    cut = data.draw(st.integers(0, len(inputs)))
    whole, final = tt.unfold(cell, inputs, state, lengths=lengths, reverse=reverse)
    parts = [(inputs[:cut], lengths.clamp(max=cut)), (inputs[cut:], (lengths - cut).clamp(min=0))]
    pieces = [None, None]
    for k in (1, 0) if reverse else (0, 1):
        pieces[k], state = tt.unfold(cell, parts[k][0], state, lengths=parts[k][1], reverse=reverse)
    same([torch.cat(pieces)], [whole])
    same(state, final)


@few
@given(st.data(), st.booleans(), st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_padding_changes_nothing_not_even_gradients(data: Any, reverse: bool, rubbish: float) -> None:
    cell, inputs, state = problem(data.draw)
    lengths = lengths_for(data.draw, inputs)
    padding = torch.arange(len(inputs))[:, None] >= lengths
    found = []
    for filled in (0.0, rubbish):
        x = inputs.masked_fill(padding[..., None], filled).requires_grad_()
        outputs, final = tt.unfold(cell, x, state, lengths=lengths, reverse=reverse)
        assert not outputs[padding].any()
        total = outputs.sin().sum() + sum(f.cos().sum() for f in final)
        gradients = torch.autograd.grad(total, [x, *cell.parameters()], allow_unused=True, materialize_grads=True)
        assert not gradients[0][padding].any()
        found.append([outputs, *final, *gradients])
    same(found[1], found[0])


@few
@given(st.data(), st.booleans())
def test_a_batch_is_its_members_in_any_order(data: Any, reverse: bool) -> None:
    cell, inputs, state = problem(data.draw)
    lengths = lengths_for(data.draw, inputs)
    outputs, final = tt.unfold(cell, inputs, state, lengths=lengths, reverse=reverse)
    for b, length in enumerate(lengths.tolist()):
        own = cell.State(*(field[b : b + 1] for field in state))
        alone, end = tt.unfold(cell, inputs[:length, b : b + 1], own, reverse=reverse)
        same([outputs[:length, b : b + 1]], [alone])
        same([field[b : b + 1] for field in final], end)
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    shuffled = cell.State(*(field[order] for field in state))
    again, end = tt.unfold(cell, inputs[:, order], shuffled, lengths=lengths[order], reverse=reverse)
    same([again, *end], [outputs[:, order], *(field[order] for field in final)])


@few
@given(st.data())
def test_reverse_is_each_sequence_turned_around_within_its_length(data: Any) -> None:
    cell, inputs, state = problem(data.draw)
    lengths = lengths_for(data.draw, inputs)
    outputs, final = tt.unfold(cell, inputs, state, lengths=lengths, reverse=True)

    def turned(sequence: Tensor) -> Tensor:
        turned = sequence.clone()
        for b, length in enumerate(lengths.tolist()):
            turned[:length, b] = sequence[:length, b].flip(0)
        return turned

    forwards, end = tt.unfold(cell, turned(inputs), state, lengths=lengths)
    same([turned(outputs), *final], [forwards, *end])


@few
@given(st.data())
def test_a_reset_begins_a_sequence_of_its_own(data: Any) -> None:
    cell, inputs, state = problem(data.draw)
    steps, batch = inputs.shape[:2]
    lengths = lengths_for(data.draw, inputs)
    flags = data.draw(st.lists(st.booleans(), min_size=steps * batch, max_size=steps * batch))
    resets = torch.tensor(flags, dtype=torch.bool).reshape(steps, batch)
    outputs, final = tt.unfold(cell, inputs, state, lengths=lengths, resets=resets)
    for b, length in enumerate(lengths.tolist()):
        own = cell.State(*(field[b : b + 1] for field in state))
        starts = [0, *(t for t in range(length) if resets[t, b])]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            if start < steps and start < length and resets[start, b]:
                own = cell.State(*(torch.zeros_like(field) for field in own))
            piece, own = tt.unfold(cell, inputs[start:end, b : b + 1], own)
            same([outputs[start:end, b : b + 1]], [piece])
        same([field[b : b + 1] for field in final], own)


@few
@given(st.data(), st.booleans())
def test_every_engine_is_the_reference(data: Any, reverse: bool) -> None:
    cell, inputs, state = problem(data.draw)
    arguments: dict[str, Any] = {"lengths": lengths_for(data.draw, inputs), "reverse": reverse}
    if not reverse and data.draw(st.booleans()):
        arguments["resets"] = torch.rand(inputs.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.3
    x = inputs.requires_grad_()
    found = []
    for engine in tt.kernels.engine_names():
        if tt.kernels.explain(cell, x, state=state, engine=engine, **arguments).engines == ("none",):
            continue  # it refuses
        outputs, final = tt.unfold(cell, x, state, engine=engine, **arguments)
        total = outputs.sin().sum() + sum(f.cos().sum() for f in final)
        wanted = [x, *cell.parameters()]
        gradients = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
        found.append([outputs, *final, *gradients])
    for other in found[:-1]:  # the reference is the last
        same(other, found[-1])


def test_a_missing_state_is_the_cells_own_initial_state() -> None:
    cell, x = made("own with two fields"), torch.randn(4, 2, I, dtype=torch.float64)
    same([tt.unfold(cell, x)[0]], [tt.unfold(cell, x, cell.initial_state(2, dtype=torch.float64))[0]])
    tt.unfold(cell, x)[0].sum().backward()
    assert cell.start.grad.any()


@pytest.mark.parametrize("kind", ["own", "own with two fields"])
def test_finite_differences_of_a_cell_of_ones_own(kind: str) -> None:
    cell = made(kind)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tt.unfold(cell, x, lengths=[3, 1])[0], [x])
    assert torch.autograd.gradcheck(lambda x: tt.unfold(cell, x, lengths=[3, 1], reverse=True)[1][-1], [x])


class Forgetful(LeakyCell):
    def step(self, projected: Tensor, state: LeakyState) -> Any:
        return torch.tanh(self.W(state.h))


class Loose(LeakyCell):
    def step(self, projected: Tensor, state: LeakyState) -> Any:
        return (torch.tanh(self.W(state.h)),)


def test_what_step_returns_is_seen_to() -> None:
    with pytest.raises(UsageError, match=r"Forgetful: step\(\) must return LeakyState\(h\), got Tensor"):
        tt.unfold(Forgetful(), torch.zeros(2, 1, I))
    assert type(tt.unfold(Loose(), torch.zeros(2, 1, I))[1]) is LeakyState


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"inputs": torch.zeros(4, I)},
            ShapeError,
            r"LSTMCell: inputs must be \(T, B, 2\), got \(4, 2\); the time axis",
        ),
        ({"inputs": torch.zeros(4, 2, I + 1)}, ShapeError, r"got \(4, 2, 3\)"),
        (
            {"state": torch.zeros(2, H)},
            ShapeError,
            r"state must be LSTMState\(h \(2, 3\), c \(2, 3\)\), got \[\(2, 3\)\]",
        ),
        ({"lengths": [4]}, ShapeError, r"LSTMCell: lengths must be 2 whole numbers, .*got torch.int64 of shape \(1,\)"),
        ({"lengths": 3}, ShapeError, r"LSTMCell: lengths must be 2 whole numbers, .*of shape \(\)"),
        ({"lengths": "abc"}, ShapeError, "LSTMCell: lengths must be 2 whole numbers, got 'abc'"),
        ({"cell": tt.nn.LSTM(I, H)}, UsageError, "unfold: expected a tt.Cell, got LSTM; call it by itself"),
        ({"cell": torch.nn.LSTMCell(I, H)}, UsageError, "unfold: expected a tt.Cell, got LSTMCell; write its step"),
        ({"lengths": [4.0, 2.0]}, ShapeError, r"lengths must be 2 whole numbers, .*got torch.float32"),
        (
            {"lengths": [5, 1]},
            ShapeError,
            r"LSTMCell: lengths must lie in 0..4, the time steps of the inputs, got 1..5",
        ),
        ({"lengths": [-1, 1]}, ShapeError, r"got -1..1"),
        (
            {"resets": torch.zeros(2, 4, dtype=torch.bool)},
            ShapeError,
            r"LSTMCell: resets must be boolean of shape \(4, 2\), .*got torch.bool of shape \(2, 4\)",
        ),
        ({"resets": torch.zeros(4, 2)}, ShapeError, r"resets must be boolean .*got torch.float32"),
        (
            {"resets": torch.zeros(4, 2, dtype=torch.bool), "reverse": True},
            UsageError,
            "resets: a sequence cannot begin anew in a direction that reads it from its end; use lengths",
        ),
        ({"engine": "cuda"}, EngineError, "LSTMCell: engine must be one of auto, native, torch, reference, got 'cuda'"),
        (
            {"inputs": torch.zeros(4, 2, I, dtype=torch.float64)},
            ShapeError,
            "LSTMCell: inputs must be torch.float32 as the weights are, got torch.float64",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse_of_unfold_is_told_in_one_line(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tt.unfold(**{"cell": tt.nn.LSTMCell(I, H), "inputs": torch.zeros(4, 2, I)} | arguments)


def test_no_sequences_at_all() -> None:
    outputs, final = tt.unfold(tt.nn.LSTMCell(I, H), torch.zeros(4, 0, I), lengths=[])
    assert outputs.shape == (4, 0, H)
    assert final.h.shape == final.c.shape == (0, H)
