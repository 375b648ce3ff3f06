"""Truncated BPTT, against its definition written out with autograd and detached states, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.recurrence import truncated

I, H = 2, 3  # noqa: E741


class Model(nn.Module):
    """A recurrence and a readout, both to be trained."""

    def __init__(self, recurrence: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.recurrence, self.readout = recurrence, nn.Linear(H, 1)
        self.double()
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1)

    def gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.parameters()]


def terms(model: Model, outputs: Tensor, steps: slice, running: Tensor) -> Tensor:
    """L(t) of each step of a time-major block, zero behind a length; every step has another target."""
    targets = torch.arange(100, dtype=torch.float64)[steps].sin()
    return (model.readout(outputs)[..., 0] - targets[:, None]).square() * running[steps]  # (k1, B)


def by_hand(model: Model, x: Tensor, lengths: Tensor, state: Any, k1: int, k2: int) -> tuple[Tensor, list[Tensor]]:
    """Each block's loss by autograd alone, from the state k2 - k1 steps before it, which is a constant."""
    cell, steps = model.recurrence, len(x)
    running = torch.arange(steps)[:, None] < lengths  # (T, B)
    wanted = [*model.parameters(), x, *state]
    total, gradients = torch.zeros((), dtype=torch.float64), [torch.zeros_like(w) for w in wanted]

    def after(t: int, old: Any) -> Any:
        new = cell(x[t], old)
        return tuple(torch.where(running[t][:, None], n, o) for n, o in zip(new, old, strict=True))

    for block in range(0, steps, k1):
        start, end = max(0, block - (k2 - k1)), min(block + k1, steps)
        now = tuple(state)
        for t in range(start):
            now = tuple(field.detach() for field in after(t, now))
        outputs = []
        for t in range(start, end):
            now = after(t, now)
            outputs.append(now[0])
        loss = terms(model, torch.stack(outputs[block - start :]), slice(block, end), running).sum()
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        gradients = [a + b for a, b in zip(gradients, found, strict=True)]
        total = total + loss.detach()
    return total, gradients


def problem(steps: int) -> tuple[Tensor, Any]:
    generator = torch.Generator().manual_seed(steps)
    x, h, c = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((steps, 3, I), (3, H), (3, H)))
    return x.requires_grad_(), (h.requires_grad_(), c.requires_grad_())


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 10), st.integers(0, 6), st.data())
def test_gradients_are_those_of_the_definition(steps: int, k1: int, more: int, data: Any) -> None:
    model = Model(tt.nn.LSTMCell(I, H))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, steps), min_size=3, max_size=3)))
    x, state = problem(steps)
    loss, gradients = by_hand(model, x, lengths, state, k1, k1 + more)
    running = torch.arange(steps)[:, None] < lengths
    found = truncated(
        model.recurrence, x, lambda h, t: terms(model, h, t, running).sum(), k1=k1, k2=k1 + more, state=state,
        lengths=lengths,
    )  # fmt: skip
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close([*model.gradients(), x.grad, *(field.grad for field in state)], gradients)
    _, final = tt.unfold(model.recurrence, x, state, lengths=lengths)
    torch.testing.assert_close(tuple(found.state), tuple(field.detach() for field in final))
    assert not any(field.requires_grad for field in found.state)


def everywhere(steps: int) -> Tensor:
    return torch.ones(steps, 3, dtype=torch.bool)


@pytest.mark.parametrize("batch_first", [False, True])
def test_over_all_steps_it_is_full_bptt_of_layers_too(batch_first: bool) -> None:
    model = Model(tt.nn.LSTM(I, H, num_layers=2, batch_first=batch_first))
    x, _ = problem(7)
    given_x = x.transpose(0, 1) if batch_first else x

    def loss(outputs: Tensor, steps: slice) -> Tensor:
        return terms(model, outputs.transpose(0, 1) if batch_first else outputs, steps, everywhere(7)).sum()

    full = loss(model.recurrence(given_x, lengths=[7, 2, 0])[0], slice(0, 7))
    gradients = torch.autograd.grad(full, [*model.parameters(), x])
    # The inputs come from another network here: their gradient is passed on once, at the end.
    found = truncated(model.recurrence, given_x, loss, k1=7, k2=7, lengths=[7, 2, 0])
    torch.testing.assert_close(found.loss, full.detach())
    torch.testing.assert_close([*model.gradients(), x.grad], list(gradients))
    model.zero_grad()
    in_windows = truncated(model.recurrence, given_x, loss, k1=2, k2=4, lengths=[7, 2, 0])
    torch.testing.assert_close(in_windows, found)
    assert not torch.allclose(model.recurrence.weight_hh_l0.grad, gradients[1])


@pytest.mark.parametrize("kind", ["rnn", "torch"])
def test_sequences_carried_on_are_one_where_blocks_are_windows(kind: str) -> None:
    model = Model({"rnn": tt.nn.RNN, "torch": nn.RNN}[kind](I, H))
    x, _ = problem(6)

    def run(begin: int, end: int, state: Any) -> Any:
        def loss(h: Tensor, t: slice) -> Tensor:
            return terms(model, h, slice(begin + t.start, begin + t.stop), everywhere(6)).sum()

        return truncated(model.recurrence, x[begin:end].detach(), loss, k1=2, k2=2, state=state)

    whole, expected = run(0, 6, None), model.gradients()
    model.zero_grad()
    first = run(0, 4, None)
    second = run(4, 6, first.state)
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(model.gradients(), expected)
    torch.testing.assert_close(second.state, whole.state)


class Counting(tt.nn.RNNCell):
    """How many steps have been run."""

    steps = 0

    def recurrence(self, inputs: Tensor, *arguments: Any, **options: Any) -> Any:
        self.steps += len(inputs)
        return super().recurrence(inputs, *arguments, **options)


@pytest.mark.parametrize(("k1", "k2", "steps"), [(3, 3, 10), (10, 10, 10), (2, 5, 2 + 4 + 5 + 5 + 5)])
def test_nothing_is_run_again_that_need_not_be(k1: int, k2: int, steps: int) -> None:
    cell = Counting(I, H)
    truncated(cell, torch.randn(10, 1, I), lambda h, _: h.sum(), k1=k1, k2=k2)
    assert cell.steps == steps


class Learnt(tt.nn.RNNCell):
    """A first state that is learnt."""

    def __init__(self) -> None:
        super().__init__(I, H)
        self.start = nn.Parameter(torch.full((1, H), 0.5))

    def initial_state(self, batch_size: int, **options: Any) -> Any:
        return self.State(self.start.expand(batch_size, H))


def test_a_learnt_first_state_gets_the_gradient_of_all_windows_that_reach_it() -> None:
    cell = Learnt()
    x = torch.randn(6, 2, I)
    tt.unfold(cell, x[:4])[0].sum().backward()
    expected, cell.start.grad = cell.start.grad, None
    truncated(cell, x, lambda h, _: h.sum(), k1=2, k2=4)
    torch.testing.assert_close(cell.start.grad, expected)


def test_no_steps_at_all() -> None:
    found = truncated(tt.nn.LSTM(I, H), torch.zeros(0, 2, I), lambda h, _: h.sum(), k1=1, k2=1)
    assert found.loss == 0
    assert found.state is None


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"k1": 4, "k2": 3}, UsageError, "truncated: k2 must be at least k1, got k1=4 and k2=3; a backward pass over"),
        ({"k1": 0}, UsageError, "truncated: k1 must be a whole number of steps of at least 1, got 0"),
        ({"k2": 2.0}, UsageError, "truncated: k2 must be a whole number of steps of at least 1, got 2.0"),
        ({"model": tt.nn.GRU(I, H, bidirectional=True)}, UsageError, "reads forward in time, got a bidirectional GRU"),
        ({"lengths": [9, 1]}, ShapeError, r"RNN: lengths must lie in 0..4, .*got 1..9"),
        ({"loss": lambda h, _: h}, UsageError, r"truncated: loss must return .*one number .*got shape \(2, 2, 3\)"),
        ({"loss": lambda h, _: h.sum().detach()}, UsageError, r"got shape \(\), which requires no gradient"),
        ({"loss": lambda h, _: h.sum().item()}, UsageError, "truncated: loss must return .*, got float"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse_is_told_in_one_line(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    usual = {"model": tt.nn.RNN(I, H), "inputs": torch.zeros(4, 2, I), "loss": lambda h, _: h.sum(), "k1": 2, "k2": 2}
    with pytest.raises(error, match=text):
        truncated(**usual | arguments)


@pytest.mark.usefixtures("unchecked_shapes")
def test_inputs_are_a_padded_tensor() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.zeros(2, I)])
    with pytest.raises(UsageError, match="truncated: inputs must be a padded tensor with lengths=, got PackedSequence"):
        truncated(tt.nn.RNN(I, H), packed, lambda h, _: h.sum(), k1=1, k2=1)
