"""The information-flow regulariser against a loop over its steps, and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.nn import CellStack
from throughtime.recurrence.jacobians import links
from throughtime.recurrence.regulariser import hidden_gradients, information_flow, penalty

T, B, INPUT, H = 6, 3, 4, 5


class OwnState(NamedTuple):
    h: Tensor


class OwnCell(tt.Cell):
    State = OwnState

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.U = torch.nn.Linear(input_size, hidden_size)
        self.W = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def step(self, projected: Tensor, state: Any) -> OwnState:
        return OwnState(0.6 * state.h + 0.4 * torch.tanh(self.U(projected) + self.W(state.h)))


def make(kind: str) -> Any:
    torch.manual_seed(2)
    made = {
        "rnn": lambda: tt.nn.RNNCell(INPUT, H),
        "lstm": lambda: tt.nn.LSTMCell(INPUT, H),
        "gru": lambda: tt.nn.GRUCell(INPUT, H),
        "own": lambda: OwnCell(INPUT, H),
        "layers": lambda: tt.nn.LSTM(INPUT, H, 2, residual=True),
        "mixed": lambda: CellStack([tt.nn.GRUCell(INPUT, H), OwnCell(H, H)]),
    }
    return made[kind]().double()


KINDS = ("rnn", "lstm", "gru", "own", "layers", "mixed")


def run(layer: Any, inputs: Tensor, **options: Any) -> Tensor:
    """The outputs, with their graph."""
    outputs: Tensor = (tt.unfold(layer, inputs, **options) if isinstance(layer, tt.Cell) else layer(inputs, **options))[
        0
    ]
    return outputs


def some_loss(outputs: Tensor) -> Tensor:
    return (outputs[2:].sin() ** 2).sum()


def by_hand(layer: Any, inputs: Tensor, gradients: Any, lengths: list[int]) -> Tensor:
    """Eq. 10.52 as it stands: layer by layer, sequence by sequence, step by step, each Jacobian written out."""
    total = torch.zeros(B, dtype=torch.float64)
    for link, gradient in zip(links(layer, inputs, lengths=lengths), gradients, strict=True):
        for b in range(B):
            for t in range(1, lengths[b]):
                fixed = [field[t - 1, b : b + 1].detach() for field in link.states]

                def step(h: Tensor, t: int = t, b: int = b, fixed: Any = fixed, link: Any = link) -> Tensor:
                    projected = link.call.cell.project_inputs(link.call.inputs[t, b : b + 1])
                    after, _ = link.call.cell.advance(projected, type(link.call.state)(h, *fixed[1:]), None)
                    return after[0][0]

                jacobian = torch.autograd.functional.jacobian(step, fixed[0], create_graph=True)[:, 0]  # (H, H)
                row = gradient[t, b].detach()
                if row.norm() > 0:
                    total[b] = total[b] + ((row @ jacobian).norm() / row.norm() - 1) ** 2
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_equation_10_52(kind: str) -> None:
    layer = make(kind)
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    lengths = [6, 1, 4]
    outputs = run(layer, inputs, lengths=lengths)
    (d_outputs,) = torch.autograd.grad(some_loss(outputs), outputs)
    residual = getattr(layer, "residual", False)
    gradients = hidden_gradients(links(layer, inputs, lengths=lengths), d_outputs, residual=residual)
    parameters = list(layer.parameters())
    ours = information_flow(layer, inputs, d_outputs, lengths=lengths)
    theirs = by_hand(layer, inputs, gradients, lengths)
    assert ours[1] == 0
    assert ours[0] > 0
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours @ torch.tensor([1.0, 2.0, 3.0]).double(), parameters, materialize_grads=True),
        torch.autograd.grad(theirs @ torch.tensor([1.0, 2.0, 3.0]).double(), parameters, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_its_gradient_is_that_of_finite_differences(kind: str) -> None:
    cell = make(kind)
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    gradients = torch.randn(T, B, H, dtype=torch.float64)
    (link,) = links(cell, inputs)  # the states stay as they are while the weights move
    weights = [parameter.detach().clone().requires_grad_() for parameter in cell.parameters()]
    names = [name for name, _ in cell.named_parameters()]

    def omega(*moved: Tensor) -> Tensor:
        own = cell.weights()._replace(**dict(zip(names, moved, strict=True)))
        return penalty(replace(link, call=replace(link.call, cell=cell.equations(own))), gradients)

    assert torch.autograd.gradcheck(omega, weights, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_gradients_are_those_of_autograd(kind: str) -> None:
    """Changing h(t) by a little in the graph written out changes the loss by the gradient times it."""
    layer = make(kind)
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3, 1] = True
    calls = [call for _, call in layer.recurrences(inputs)]
    x, nodes = list(inputs), []
    for index, call in enumerate(calls):
        state, own = call.state, []
        for t in range(T):
            state = type(state)(*(field * ~resets[t][:, None] for field in state))
            after, _ = call.cell.advance(call.cell.project_inputs(x[t]), state, None)
            state = type(call.state)(*(field + 0 for field in after))
            own.append(state[0])
        nodes.append(own)
        residual = getattr(layer, "residual", False) and index > 0
        x = [h + below if residual else h for h, below in zip(own, x, strict=True)]
    outputs = torch.stack(x)
    (d_outputs,) = torch.autograd.grad(some_loss(outputs), outputs, retain_graph=True)
    residual = getattr(layer, "residual", False)
    found = hidden_gradients(links(layer, inputs, resets=resets), d_outputs, residual=residual)
    for here, own in zip(found, nodes, strict=True):
        expected = torch.autograd.grad(some_loss(outputs), own, retain_graph=True)
        torch.testing.assert_close(here, torch.stack(expected))


def test_an_orthogonal_linear_network_has_no_penalty() -> None:
    """Its Jacobians keep every length; twice the matrix doubles it, and Ω counts (2 - 1)² for each step."""
    cell = tt.nn.RNNCell(INPUT, H, nonlinearity="relu", bias=False).double()
    with torch.no_grad():
        cell.weight_ih.fill_(1)
        cell.weight_hh.copy_(torch.roll(torch.eye(H), 1, 0))
    inputs = torch.ones(T, B, INPUT, dtype=torch.float64)
    d_outputs = torch.randn(T, B, H, dtype=torch.float64)
    assert information_flow(cell, inputs, d_outputs).abs().max() < 1e-24
    with torch.no_grad():
        cell.weight_hh.mul_(2)
    torch.testing.assert_close(information_flow(cell, inputs, d_outputs), torch.full((B,), T - 1.0).double())
    torch.testing.assert_close(information_flow(cell, inputs, 1e-3 * d_outputs), torch.full((B,), T - 1.0).double())


def test_steps_that_no_loss_reaches_do_not_count() -> None:
    cell = make("rnn")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    d_outputs = torch.randn(T, B, H, dtype=torch.float64)
    d_outputs[4:] = 0
    torch.testing.assert_close(
        information_flow(cell, inputs, d_outputs), information_flow(cell, inputs[:4], d_outputs[:4])
    )


def test_it_pulls_gradients_towards_equal_lengths() -> None:
    torch.manual_seed(0)
    cell = tt.nn.RNNCell(2, 16)
    inputs = torch.randn(20, 4, 2)
    d_outputs = torch.randn(20, 4, 16)
    optimizer = torch.optim.Adam(cell.parameters(), 0.01)
    found = []
    for _ in range(40):
        optimizer.zero_grad()
        omega = information_flow(cell, inputs, d_outputs).mean()
        omega.backward()
        optimizer.step()
        found.append(float(omega.detach()))
    assert found[-1] < found[0] / 3


def test_states_are_carried_and_random_numbers_left_alone() -> None:
    cell = make("lstm")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    d_outputs = torch.randn(T, B, H, dtype=torch.float64)
    _, state = tt.unfold(cell, inputs[:2])
    before = torch.random.get_rng_state()
    fresh = information_flow(cell, inputs[2:], d_outputs[2:])
    carried = information_flow(cell, inputs[2:], d_outputs[2:], state=state)
    (link,) = links(cell, inputs)
    (gradients,) = hidden_gradients([link], d_outputs)
    early = gradients.clone()
    early[3:] = 0
    torch.testing.assert_close(penalty(link, early) + carried, penalty(link, gradients))
    assert not torch.allclose(fresh, carried)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_that_are_made_of_others_are_learnt() -> None:
    layer = make("layers")
    plain = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l1")
    inputs, d_outputs = torch.randn(T, B, INPUT, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
    information_flow(layer, inputs, d_outputs).sum().backward()
    usual = make("layers")
    usual.load_state_dict(plain)
    information_flow(usual, inputs, d_outputs).sum().backward()
    # Each row of W is g v / ||v||.
    rows = torch.nn.functional.normalize(plain["weight_hh_l1"], dim=1)
    expected = (usual.weight_hh_l1.grad * rows).sum(1, keepdim=True)
    torch.testing.assert_close(layer.parametrizations.weight_hh_l1.original0.grad, expected)
    torch.testing.assert_close(layer.weight_hh_l0.grad, usual.weight_hh_l0.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_padding_does_not_matter(kind: str) -> None:
    inputs, d_outputs = torch.randn(T, B, INPUT, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
    found = []
    for padding in (0.0, torch.nan):
        layer = make(kind)
        inputs[4:, 1], inputs[:, 2] = padding, padding
        omega = information_flow(layer, inputs, d_outputs, lengths=[T, 4, 0])
        omega.sum().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        found.append([omega.detach(), *grads])
    assert all(torch.equal(zero, nan) for zero, nan in zip(*found, strict=True))
    assert found[0][0].bool().tolist() == [True, True, False]


def test_masks_between_the_layers_are_said() -> None:
    inputs, d_outputs = torch.randn(T, B, INPUT), torch.randn(T, B, H)
    for name in ("dropout", "variational_dropout"):
        layer = tt.nn.GRU(INPUT, H, 2, **{name: 0.5})
        match = f"information_flow: GRU draws {name} between its layers while training; call layer.eval"
        with pytest.raises(UsageError, match=match):
            information_flow(layer, inputs, d_outputs)
        assert information_flow(layer.eval(), inputs, d_outputs).isfinite().all()


def test_what_does_not_fit_is_said() -> None:
    cell = make("gru")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    wrong = torch.randn(T, B, H + 1, dtype=torch.float64)
    with pytest.raises(
        ShapeError, match=r"information_flow: d_outputs must be \(T, B, H\) = \(6, 3, 5\), got \(6, 3, 6\)"
    ):
        information_flow(cell, inputs, wrong)
    with pytest.raises(UsageError, match="a lag goes one way in time, GRU is bidirectional"):
        information_flow(tt.nn.GRU(INPUT, H, bidirectional=True).double(), inputs, wrong)
