"""Learning online: equal to backpropagation through time where theory says so, at every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.recurrence.online import OnlineState, RealTimeRecurrentLearning

I, H = 2, 4  # noqa: E741


class LeakyState(NamedTuple):
    h: Tensor


class LeakyCell(tt.Cell):
    """h of both products, with parameters that no built-in cell has."""

    State = LeakyState

    def __init__(self) -> None:
        super().__init__(I, H)
        self.U, self.W = nn.Linear(I, H), nn.Linear(H, H)
        self.rate = nn.Parameter(torch.full((H,), 0.3))

    def step(self, projected: Tensor, state: LeakyState) -> LeakyState:
        return LeakyState(torch.lerp(state.h, torch.tanh(self.U(projected) + self.W(state.h)), self.rate))


class PairState(NamedTuple):
    h: Tensor
    memory: Tensor


class MatrixMemoryCell(tt.Cell):
    """A field with an axis more, a hoisted projection, and an initial state that is learnt."""

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
    "own with a learnt start": MatrixMemoryCell,
    "rnn": lambda: tt.nn.RNNCell(I, H),
    "rectified rnn": lambda: tt.nn.RNNCell(I, H, nonlinearity="relu"),
    "lstm": lambda: tt.nn.LSTMCell(I, H),
    "projected lstm with peepholes": lambda: tt.nn.LSTMCell(I, H, proj_size=2, peepholes=True),
    "gru": lambda: tt.nn.GRUCell(I, H),
    "gru of 2014": lambda: tt.nn.GRUCell(I, H, reset_after=False, bias=False),
}


def made(kind: str) -> Any:
    torch.manual_seed(6)
    cell = CELLS[kind]().double()
    for name, parameter in cell.named_parameters():
        if name != "rate":
            nn.init.normal_(parameter, std=0.8)
    return cell


def loss(h: Tensor, t: int) -> Tensor:
    """L(t), another function at every step."""
    return (h - 0.1 * t).square().sum() + torch.sin(h * (t + 1)).sum()


def gradient_of_h(h: Tensor, t: int) -> Tensor:
    h = h.detach().requires_grad_()
    return torch.autograd.grad(loss(h, t), h)[0]


def through_time(cell: Any, inputs: Tensor, state: Any = None) -> list[Tensor]:
    """The gradient of Σ_t L(t), by backpropagation through the whole of `inputs`."""
    outputs, _ = tt.unfold(cell, inputs, state, engine="reference")
    total = torch.stack([loss(h, t) for t, h in enumerate(outputs)]).sum()
    return list(torch.autograd.grad(total, list(cell.parameters()), allow_unused=True, materialize_grads=True))


def grads(cell: Any) -> list[Tensor]:
    return [parameter.grad for parameter in cell.parameters()]


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(list(got), list(expected), rtol=1e-9, atol=1e-11)


def run(cell: Any, inputs: Tensor, **options: Any) -> list[Tensor]:
    """The gradient of Σ_t L(t), gathered online."""
    learning = RealTimeRecurrentLearning(cell, **options)
    cell.zero_grad()
    online = learning.begin(inputs.shape[1])
    for t, x in enumerate(inputs):
        online = learning.step(x, online)
        learning.accumulate(online, gradient_of_h(online.state[0], t))
    return grads(cell)


@pytest.mark.parametrize("kind", CELLS)
def test_at_every_prefix_it_is_backpropagation_through_time(kind: str) -> None:
    cell, inputs = made(kind), torch.randn(5, 2, I, dtype=torch.float64)
    learning = RealTimeRecurrentLearning(cell)
    online = learning.begin(2)
    for t, x in enumerate(inputs):
        online = learning.step(x, online)
        assert not any(field.requires_grad for field in online.state)
        learning.accumulate(online, gradient_of_h(online.state[0], t))
        close(grads(cell), through_time(cell, inputs[: t + 1]))
    _, final = tt.unfold(cell, inputs, engine="reference")
    close(online.state, final)


@settings(max_examples=15)
@given(st.data())
def test_from_any_state_for_any_sizes(data: Any) -> None:
    cell = made(data.draw(st.sampled_from(sorted(CELLS))))
    steps, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    inputs = torch.randn(steps, batch, I, generator=generator, dtype=torch.float64)
    shapes = [field.shape for field in cell.initial_state(batch)]
    state = cell.State(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))
    learning = RealTimeRecurrentLearning(cell)
    online = learning.begin(batch, state)
    for t, x in enumerate(inputs):
        online = learning.step(x, online)
        learning.accumulate(online, gradient_of_h(online.state[0], t))
    close(grads(cell), through_time(cell, inputs, state))


def test_the_influence_is_the_jacobian_of_the_state() -> None:
    cell, inputs = made("lstm"), torch.randn(4, 2, I, dtype=torch.float64)
    learning = RealTimeRecurrentLearning(cell)
    online = learning.begin(2)
    for x in inputs:
        online = learning.step(x, online)
    _, final = tt.unfold(cell, inputs, engine="reference")
    for row in range(2):
        for entry, value in enumerate(torch.cat(final, dim=-1)[row]):
            expected = torch.autograd.grad(value, list(cell.parameters()), retain_graph=True)
            close([online.influence[row, entry]], [torch.cat([g.flatten() for g in expected])])


@pytest.mark.parametrize("kind", CELLS)
def test_snap1_is_exact_after_one_step(kind: str) -> None:
    cell, inputs = made(kind), torch.randn(1, 3, I, dtype=torch.float64)
    close(run(cell, inputs, approximation="snap1"), through_time(cell, inputs))


def without_links_between_units(kind: str, *, diagonal: bool) -> Any:
    """A cell whose recurrent weights are diagonal in each gate, or zero."""
    cell = made(kind)
    weight = cell.W.weight if kind == "own" else cell.weight_hh
    eye = torch.eye(H, dtype=torch.float64).repeat(len(weight) // H, 1)
    with torch.no_grad():
        weight.mul_(eye if diagonal else 0 * eye)
    return cell


@pytest.mark.parametrize("kind", ["own", "rnn", "rectified rnn", "gru"])
def test_snap1_is_exact_where_units_do_not_meet(kind: str) -> None:
    cell = without_links_between_units(kind, diagonal=True)
    inputs = torch.randn(6, 3, I, dtype=torch.float64)
    close(run(cell, inputs, approximation="snap1"), through_time(cell, inputs))


def test_snap1_of_an_lstm_without_recurrent_weights_is_exact() -> None:
    cell, inputs = without_links_between_units("lstm", diagonal=False), torch.randn(6, 3, I, dtype=torch.float64)
    close(run(cell, inputs, approximation="snap1"), through_time(cell, inputs))


def test_snap1_of_an_lstm_with_diagonal_weights_leaves_out_what_the_output_gate_does_to_the_memory() -> None:
    """o enters h alone within one step; c sees it a step later, which SnAp-1 does not keep."""
    cell, inputs = without_links_between_units("lstm", diagonal=True), torch.randn(6, 3, I, dtype=torch.float64)
    got, expected = run(cell, inputs, approximation="snap1"), through_time(cell, inputs)
    close([g[: 3 * H] for g in got], [g[: 3 * H] for g in expected])
    assert all((a - b)[3 * H :].norm() > 1e-3 * b[3 * H :].norm() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("kind", ["own", "rnn", "rectified rnn", "lstm", "gru"])
def test_snap1_is_an_approximation_where_they_do(kind: str) -> None:
    cell, inputs = made(kind), torch.randn(6, 3, I, dtype=torch.float64)
    got, expected = run(cell, inputs, approximation="snap1"), through_time(cell, inputs)
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(got, expected, strict=True))


def test_snap1_is_the_exact_recursion_with_the_other_entries_set_to_zero() -> None:
    """The definition: P(t) = M ⊙ (D P(t-1) + J) with M = 1 where J can be other than zero."""
    cell, inputs = made("lstm"), torch.randn(4, 2, I, dtype=torch.float64)
    exact, snap = RealTimeRecurrentLearning(cell), RealTimeRecurrentLearning(cell, approximation="snap1")
    masked, online = exact.begin(2), snap.begin(2)
    kept = exact.step(inputs[0], exact.begin(2, [torch.randn(2, H).double() for _ in "hc"])).influence.ne(0).any(0)
    for t, x in enumerate(inputs):
        masked = exact.step(x, masked)
        masked = masked._replace(influence=masked.influence * kept)
        online = snap.step(x, online)
        of_h = gradient_of_h(online.state[0], t)
        close(snap.gradients(online, of_h).values(), exact.gradients(masked, of_h).values())


@pytest.mark.parametrize(
    ("kind", "entries", "reached"),
    [("rnn", H, 1), ("gru", H, 1), ("lstm", 2 * H, 2), ("own", H, 1), ("gru of 2014", H, H)],
)
def test_how_many_numbers_the_influence_takes(kind: str, entries: int, reached: int) -> None:
    """S · P where it is exact; K · P with SnAp-1. A reset gate before the product enters every unit at once."""
    cell = made(kind)
    parameters = sum(p.numel() for p in cell.parameters())
    assert RealTimeRecurrentLearning(cell).begin(3).influence.shape == (3, entries, parameters)
    learning = RealTimeRecurrentLearning(cell, approximation="snap1")
    online = learning.step(torch.zeros(3, I, dtype=torch.float64), learning.begin(3))
    assert online.influence.shape == (3, reached, parameters)


def test_frozen_parameters_have_no_influence_and_no_gradient() -> None:
    cell, inputs = made("rnn"), torch.randn(3, 2, I, dtype=torch.float64)
    expected = through_time(cell, inputs)
    cell.weight_ih.requires_grad_(False)
    got = run(cell, inputs)
    assert got[0] is None
    close(got[1:], expected[1:])


def test_a_state_and_its_influence_are_values_that_can_be_gone_back_to() -> None:
    cell, inputs = made("gru"), torch.randn(3, 2, I, dtype=torch.float64)
    learning = RealTimeRecurrentLearning(cell)
    first = learning.step(inputs[0], learning.begin(2))
    copy = OnlineState(first.state, first.influence.clone())
    twice = [learning.step(inputs[1], learning.step(inputs[2], first)) for _ in range(2)]
    assert torch.equal(first.influence, copy.influence)
    assert torch.equal(twice[0].influence, twice[1].influence)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (
            lambda: RealTimeRecurrentLearning(made("rnn"), approximation="uoro"),
            UsageError,
            "RealTimeRecurrentLearning: approximation must be None or 'snap1', got 'uoro'",
        ),
        (
            lambda: RealTimeRecurrentLearning(made("rnn").requires_grad_(False)),
            UsageError,
            "RealTimeRecurrentLearning: RNNCell has no parameters that require a gradient",
        ),
        (
            lambda: RealTimeRecurrentLearning(made("rnn")).begin(2, torch.zeros(3, H).double()),
            ShapeError,
            "RNNCell: state must be RNNState(h (2, 4)), got [(3, 4)]",
        ),
    ],
)
def test_what_is_refused_and_how(act: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert str(caught.value) == message


def test_inputs_and_gradients_of_another_shape_are_refused() -> None:
    learning = RealTimeRecurrentLearning(made("rnn"))
    online = learning.begin(2)
    with pytest.raises(ShapeError) as caught:
        learning.step(torch.zeros(3, I).double(), online)
    assert str(caught.value) == (
        "RealTimeRecurrentLearning: x must be (2, 2), one time step of the sequences begun, got (3, 2)"
    )
    with pytest.raises(ShapeError) as caught:
        learning.accumulate(online, torch.zeros(2, H + 1).double())
    assert str(caught.value) == "RealTimeRecurrentLearning: gradient_of_h must be (2, 4) as h is, got (2, 5)"
