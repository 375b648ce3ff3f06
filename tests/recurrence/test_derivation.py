"""The derivation by hand equals autograd and finite differences, step by step, and says what it cannot derive."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.layers import Readout
from throughtime.recurrence.derivation import LSTMStep, RNNStep, explain

I, H, O = 2, 3, 4  # noqa: E741
CELLS: dict[str, Any] = {"rnn": tt.nn.RNNCell, "lstm": tt.nn.LSTMCell}


class Case(NamedTuple):
    cell: Any
    readout: Any
    inputs: Tensor
    targets: Tensor
    state: Any
    lengths: Tensor

    def explained(self) -> Any:
        state = self.state if len(self.state) > 1 else self.state[0]
        return explain(self.cell, self.readout, self.inputs, self.targets, state, lengths=self.lengths)


def case(kind: str, steps: int, batch: int, *, lengths: Any = None, bias: bool = True, sizes: Any = (I, H, O)) -> Case:
    generator = torch.Generator().manual_seed(steps * 10 + batch)
    inputs, hidden, outputs = sizes
    cell = CELLS[kind](inputs, hidden, bias=bias, dtype=torch.float64)
    readout = Readout(hidden, outputs).double()
    for parameter in (*cell.parameters(), *readout.parameters()):
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    x = torch.randn(steps, batch, inputs, generator=generator, dtype=torch.float64)
    y = torch.randint(outputs, (steps, batch), generator=generator)
    lengths = torch.full((batch,), steps) if lengths is None else torch.tensor(lengths)
    behind = torch.arange(steps)[:, None] >= lengths
    x[behind], y[behind] = torch.nan, -100  # what stands in the padding is not looked at
    fields = [torch.randn(batch, hidden, generator=generator, dtype=torch.float64) for _ in cell.State._fields]
    return Case(cell, readout, x, y, cell.State(*(field.requires_grad_() for field in fields)), lengths)


def through_time(one: Case) -> tuple[Tensor, list[Any], list[Tensor]]:
    """L, the states at each step (leaves of nothing, graph kept), and the logits o(t), computed for autograd."""
    state, states, logits, total = one.state, [], [], torch.zeros((), dtype=torch.float64)
    for t, x in enumerate(one.inputs):
        inside = (t < one.lengths)[:, None]
        after = one.cell(torch.where(inside, x, 0), state if len(state) > 1 else state[0])
        after = (after,) if isinstance(after, Tensor) else after
        state = one.cell.State(*(torch.where(inside, new, old) for new, old in zip(after, state, strict=True)))
        states.append(state)
        logits.append(one.readout(state[0]))
        nats = functional.cross_entropy(logits[-1], one.targets[t].clamp(min=0), reduction="none")
        total = total + torch.where(inside[:, 0], nats, 0).sum()
    return total, states, logits


def parameters(one: Case) -> dict[str, Tensor]:
    return {**dict(one.cell.named_parameters()), **dict(one.readout.named_parameters())}


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def drawn(draw: Any) -> Case:
    steps, batch = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    sizes = tuple(draw(st.integers(1, 4)) for _ in range(3))
    kind = draw(st.sampled_from(sorted(CELLS)))
    return case(kind, steps, batch, lengths=lengths, bias=draw(st.booleans()), sizes=sizes)


@settings(max_examples=25)
@given(st.data())
def test_loss_and_sums_are_autograds(data: Any) -> None:
    one = drawn(data.draw)
    found = one.explained()
    total, _, _ = through_time(one)
    close(found.loss, total.detach())
    named = parameters(one)
    assert set(found.gradients) == set(named)
    leaves = [*named.values(), *one.state]
    expected = (
        torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        if total.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves]
    )
    close([*(found.gradients[name] for name in named), *found.nabla_start], list(expected))


@pytest.mark.parametrize("kind", CELLS)
def test_each_step_holds_the_gradient_of_its_own_outputs_and_states(kind: str) -> None:
    one = case(kind, 5, 3, lengths=[5, 2, 4])
    found = one.explained()
    total, states, logits = through_time(one)
    for t, step in enumerate(found.steps):
        assert step.t == t + 1
        inside = (t < one.lengths)[:, None]
        nabla_o, *nabla = torch.autograd.grad(
            total, [logits[t], *states[t]], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        close(step.nabla_o, nabla_o)
        # The graph of a sequence that has ended carries its state on; the derivation's is over.
        close(step.nabla_h, torch.where(inside, nabla[0], 0))
        close(step.h, torch.where(inside, states[t][0].detach(), 0))
        if kind == "lstm":
            # Autograd's is that through c(t+1) alone: within its step the cell has used c(t) for h(t) already.
            through_h = step.nabla_h * step.gates.o * (1 - torch.tanh(step.c) ** 2)
            close(step.dc - through_h, torch.where(inside, nabla[1], 0))


@pytest.mark.parametrize("kind", CELLS)
def test_a_step_contributes_the_gradient_of_its_own_copy_of_the_parameters(kind: str) -> None:
    """W(t) as in 10.25: one copy of each parameter for every step."""
    one = case(kind, 4, 2, lengths=[4, 3])
    found = one.explained()
    named = parameters(one)
    copies = [{name: p.detach().clone().requires_grad_() for name, p in named.items()} for _ in one.inputs]
    state, total = one.state, torch.zeros((), dtype=torch.float64)
    for t, own in enumerate(copies):
        inside = (t < one.lengths)[:, None]
        in_cell = {name: p for name, p in own.items() if not name.endswith("_ho")}
        args = (torch.where(inside, one.inputs[t], 0), state if len(state) > 1 else state[0])
        after = torch.func.functional_call(one.cell, in_cell, args)
        after = (after,) if isinstance(after, Tensor) else after
        state = one.cell.State(*(torch.where(inside, new, old) for new, old in zip(after, state, strict=True)))
        o = functional.linear(state[0], own["weight_ho"], own["bias_ho"])
        nats = functional.cross_entropy(o, one.targets[t].clamp(min=0), reduction="none")
        total = total + torch.where(inside[:, 0], nats, 0).sum()
    total.backward()
    letters = {"U": "weight_ih", "W": "weight_hh", "b": "bias_ih", "V": "weight_ho", "c": "bias_ho"}
    for step, own in zip(found.steps, copies, strict=True):
        for letter, name in letters.items():
            close(getattr(step.contributions, letter), own[name].grad)
    for index, total_of_letter in enumerate(found.sums):
        close(sum(step.contributions[index] for step in found.steps), total_of_letter)


@pytest.mark.parametrize("kind", CELLS)
def test_against_finite_differences(kind: str) -> None:
    one, width = case(kind, 3, 2), 1e-5
    found = one.explained()
    for name, parameter in parameters(one).items():
        for index in range(parameter.numel()):
            value = float(parameter.detach().view(-1)[index])
            losses = []
            for moved in (value + width, value - width):
                with torch.no_grad():
                    parameter.view(-1)[index] = moved
                losses.append(one.explained().loss)
            with torch.no_grad():
                parameter.view(-1)[index] = value
            slope = (losses[0] - losses[1]) / (2 * width)
            torch.testing.assert_close(found.gradients[name].reshape(-1)[index], slope, rtol=1e-6, atol=1e-8)


def test_the_gates_of_an_lstm() -> None:
    """di, df, dg, do against autograd, of gates that are leaves; the products f ⊙ dc link the steps."""
    one = case("lstm", 2, 2)
    found = one.explained()
    first, last = found.steps
    gates = [gate.clone().requires_grad_() for gate in last.gates]
    i, f, g, o = gates
    h = o * torch.tanh(f * first.c + i * g)
    functional.cross_entropy(one.readout(h), one.targets[-1], reduction="sum").backward()
    close([last.di, last.df, last.dg, last.do], [gate.grad for gate in gates])
    tanh_c = torch.tanh(first.c)
    close(first.dc, first.nabla_h * first.gates.o * (1 - tanh_c**2) + last.gates.f * last.dc)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_a_layer_of_one_cell_is_that_cell(kind: str) -> None:
    torch.manual_seed(1)
    layer = getattr(tt.nn, kind)(I, H, dtype=torch.float64)
    readout, x = Readout(H, O).double(), torch.randn(4, 2, I, dtype=torch.float64)
    y = torch.randint(O, (4, 2))
    found = explain(layer, readout, x, y)
    functional.cross_entropy(readout(layer(x)[0]).flatten(0, 1), y.flatten(), reduction="sum").backward()
    expected = {name.removesuffix("_l0"): p.grad for name, p in layer.named_parameters()}
    expected |= {name: p.grad for name, p in readout.named_parameters()}
    assert set(found.gradients) == set(expected)
    for name, gradient in expected.items():
        close(found.gradients[name], gradient)


@pytest.mark.parametrize("cell", CELLS)
def test_the_pieces_of_a_model_of_design_a(cell: str) -> None:
    torch.manual_seed(2)
    model = tt.models.HiddenRecurrent(input_size=I, output_size=O, cell=cell, hidden_size=H).double()
    x, y, lengths = torch.randn(4, 2, I, dtype=torch.float64), torch.randint(O, (4, 2)), torch.tensor([4, 1])
    found = explain(model.recurrent, model.readout, x, y, lengths=lengths)
    loss = model(x, targets=y, lengths=lengths).sum()
    loss.backward()
    close(found.loss, loss.detach())
    for name, parameter in model.named_parameters():
        close(found.gradients[name.split(".")[1].removesuffix("_l0")], parameter.grad)


def test_printed_it_is_a_table_from_the_last_step_to_the_first() -> None:
    one = case("rnn", 3, 2)
    found = one.explained()
    title, head, numbers, *rows = repr(found).splitlines()
    assert title == "tanh units, softmax outputs (design A): τ = 3, B = 2, I = 2, H = 3, O = 4; from τ to 1"
    assert head.split() == ["t", "L(t)", *(f"‖∇{n}(t)‖" for n in ("o", "h", "U", "W", "b", "V", "c"))]
    assert numbers.split() == ["10.13", "10.18", "10.19-21", "10.28", "10.26", "10.23", "10.24", "10.22"]
    assert [row.split()[0] for row in rows] == ["3", "2", "1", "sum"]
    assert rows[0].split()[1:4] == [
        f"{float(value):.3g}"
        for value in (found.steps[-1].loss.sum(), found.steps[-1].nabla_o.norm(), found.steps[-1].nabla_h.norm())
    ]
    assert rows[-1].split()[-1] == f"{float(found.sums.c.norm()):.3g}"
    assert all(len(line) <= 120 for line in repr(case("lstm", 60, 1).explained()).splitlines())
    assert [line.split()[0] for line in repr(case("lstm", 60, 1).explained()).splitlines()[13:17]] == [
        "50",
        "49",
        "…",
        "12",
    ]


def test_the_types_of_the_steps() -> None:
    assert isinstance(case("rnn", 1, 1).explained().steps[0], RNNStep)
    assert isinstance(case("lstm", 1, 1).explained().steps[0], LSTMStep)


def refused(cell: Any, readout: Any = None, x: Any = None, y: Any = None, **options: Any) -> None:
    explain(
        cell,
        Readout(H, O) if readout is None else readout,
        torch.zeros(3, 2, I) if x is None else x,
        torch.zeros(3, 2, dtype=torch.int64) if y is None else y,
        **options,
    )


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (
            lambda: refused(tt.nn.GRUCell(I, H)),
            UsageError,
            "explain: derived by hand are RNN and LSTM, got GRUCell; tt.bptt.step_gradients takes any cell apart",
        ),
        (
            lambda: refused(tt.nn.RNNCell(I, H, nonlinearity="relu")),
            UsageError,
            "explain: eqs. 10.19-10.28 are those of tanh, got RNNCell with relu",
        ),
        (
            lambda: refused(tt.nn.LSTMCell(I, H, peepholes=True)),
            UsageError,
            "explain: LSTMCell has peepholes, which the derivation has not",
        ),
        (
            lambda: refused(tt.nn.LSTMCell(I, H, proj_size=2)),
            UsageError,
            "explain: LSTMCell has a projection, which the derivation has not",
        ),
        (
            lambda: refused(tt.nn.RNN(I, H, num_layers=2)),
            UsageError,
            "explain: expected one layer in one direction, got RNN with 2 recurrences",
        ),
        (
            lambda: refused(tt.nn.RNN(I, H, weight_dropout=0.5)),
            UsageError,
            "explain: RNN has dropout or zoneout, which the derivation has not; set them to 0",
        ),
        (
            lambda: refused(tt.nn.RNN(I, H, batch_first=True)),
            UsageError,
            "explain: time comes first here, got RNN with batch_first=True; make it without",
        ),
        (lambda: refused(torch.nn.ReLU()), UsageError, "explain: expected a cell or a layer of tt.nn, got ReLU"),
        (
            lambda: refused(tt.nn.RNNCell(I, H), torch.nn.Linear(H, O)),
            UsageError,
            "explain: readout must have weight_ho and bias_ho, got Linear; use throughtime.layers.Readout",
        ),
        (
            lambda: refused(tt.nn.RNNCell(I, H), Readout(5, O)),
            ShapeError,
            "explain: readout's weight_ho must be (O, 3), got (4, 5)",
        ),
        (
            lambda: refused(tt.nn.RNNCell(I, H), y=torch.full((3, 2), O)),
            ShapeError,
            "explain: targets must lie in 0..3, the outputs of readout, got 4..4",
        ),
        (
            lambda: refused(tt.nn.RNNCell(I, H), lengths=[4, 1]),
            ShapeError,
            "explain: lengths must lie in 0..3, the time steps of the inputs, got 1..4",
        ),
    ],
)
def test_what_is_refused_and_how(act: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert str(caught.value) == message


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_target_for_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        refused(tt.nn.RNNCell(I, H), y=torch.zeros(4, 2, dtype=torch.int64))
    assert str(caught.value) == "explain: targets must be (3, 2), one for each step and sequence, got (4, 2)"
