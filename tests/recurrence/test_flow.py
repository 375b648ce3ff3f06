"""The flow of gradients against autograd, one loss and one step at a time."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.nn import CellStack
from throughtime.recurrence.flow import Flow, flow
from throughtime.recurrence.jacobians import links, singular_values

T, B, INPUT, H = 7, 3, 4, 5


class LeakyState(NamedTuple):
    h: Tensor


class LeakyCell(tt.Cell):
    """A cell of one's own, with a linear path past its nonlinearity."""

    State = LeakyState

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.U = torch.nn.Linear(input_size, hidden_size)
        self.W = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def step(self, projected: Tensor, state: Any) -> LeakyState:
        return LeakyState(0.7 * state.h + 0.3 * torch.tanh(self.U(projected) + self.W(state.h)))


def double(module: Any) -> Any:
    """In float64, with weights large enough for gradients to change on their way."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return module.double().eval()


def make(kind: str) -> Any:
    torch.manual_seed(3)
    made = {
        "rnn": lambda: tt.nn.RNN(INPUT, H, 2),
        "relu": lambda: tt.nn.RNN(INPUT, H, nonlinearity="relu"),
        "lstm": lambda: tt.nn.LSTM(INPUT, H, 2),
        "gru": lambda: tt.nn.GRU(INPUT, H, 3, residual=True),
        "projected": lambda: tt.nn.LSTM(INPUT, H, proj_size=3),
        "normalised": lambda: tt.nn.LSTM(INPUT, H, layer_norm=True),
        "zoneout": lambda: tt.nn.LSTM(INPUT, H, 2, zoneout=(0.3, 0.1)),
        "cell": lambda: tt.nn.GRUCell(INPUT, H),
        "own": lambda: LeakyCell(INPUT, H),
        "mixed": lambda: CellStack([tt.nn.LSTMCell(INPUT, H), LeakyCell(H, H), tt.nn.GRUCell(H, H)], residual=True),
    }
    return double(made[kind]())


KINDS = ("rnn", "relu", "lstm", "gru", "projected", "normalised", "zoneout", "cell", "own", "mixed")


def by_hand(layer: Any, inputs: Tensor, resets: Tensor | None = None) -> tuple[Tensor, list[list[tuple[Tensor, ...]]]]:
    """Outputs and every state as nodes of one graph: nodes[layer][t], written out step by step."""
    calls = [call for _, call in layer.recurrences(inputs)]
    x, nodes = list(inputs), []
    for index, call in enumerate(calls):
        state, own = call.state, []
        for t in range(len(x)):
            if resets is not None:
                state = type(state)(*(field * ~resets[t][:, None] for field in state))
            after, _ = call.cell.advance(call.cell.project_inputs(x[t]), state, None)
            if call.zoneout is not None:
                after = [z[t] * a + (1 - z[t]) * b for z, a, b in zip(call.zoneout, state, after, strict=True)]
            state = type(call.state)(*(field + 0 for field in after))  # nodes that do not depend on each other
            own.append(tuple(state))
        nodes.append(own)
        residual = getattr(layer, "residual", False) and index > 0
        x = [state[0] + below if residual else state[0] for state, below in zip(own, x, strict=True)]
    return torch.stack(x), nodes


def targets_loss(outputs: Tensor) -> Tensor:
    """Some loss of each h(t) alone."""
    return (outputs.sin() ** 2).sum(-1)


def test_layers_of_half_precision_are_measured() -> None:
    torch.manual_seed(0)
    layer, inputs = tt.nn.LSTM(INPUT, H), torch.randn(T, B, INPUT).bfloat16().float()
    state = {name: tensor.bfloat16() for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state)
    expected = tt.bptt.flow(layer, inputs, jacobians=1).layers[0].median_singular_values
    found = tt.bptt.flow(layer.bfloat16(), inputs.bfloat16(), jacobians=1).layers[0].median_singular_values
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_those_of_autograd(kind: str) -> None:
    layer = make(kind)
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    found = flow(layer, inputs, targets_loss, at=[2, 4, 6])
    outputs, nodes = by_hand(layer, inputs)
    losses = targets_loss(outputs)
    assert found.at.tolist() == [2, 4, 6]
    assert len(found.layers) == len(nodes)
    for here, own in zip(found.layers, nodes, strict=True):
        for row, t in enumerate(found.at.tolist()):
            for lag in range(T):
                for index, name in enumerate(here.norms):
                    norms = here.norms[name][row, :, lag]
                    if lag > t:
                        assert norms.isnan().all()
                        continue
                    (gradient,) = torch.autograd.grad(
                        losses[t].sum(),
                        own[t - lag][index],
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                    torch.testing.assert_close(norms, gradient.norm(dim=-1), rtol=1e-9, atol=1e-12)


def full_jacobian(layer: Any, inputs: Tensor, number: int, row: int, t: int, lag: int, block: str) -> Tensor:
    """∂s(t)/∂s(t-k) of one layer and sequence as a matrix, the layer's inputs held."""
    link = links(layer, inputs)[number]
    first = tuple(field[t - lag][row : row + 1] for field in link.states)

    def go(*fields: Tensor) -> tuple[Tensor, ...]:
        state = type(link.call.state)(*fields)
        for s in range(t - lag + 1, t + 1):
            state, _ = link.call.cell.advance(link.projected[s, row : row + 1], state, None)
        return tuple(state)

    blocks = torch.autograd.functional.jacobian(go, first)
    sizes = [field.shape[-1] for field in first]
    matrix = torch.cat(
        [
            torch.cat([part.reshape(a, b) for part, b in zip(line, sizes, strict=True)], 1)
            for line, a in zip(blocks, sizes, strict=True)
        ]
    )
    return {"h": matrix[: sizes[0], : sizes[0]], "c": matrix[sizes[0] :, sizes[0] :], "state": matrix}[block]


@pytest.mark.parametrize(
    ("kind", "block"),
    [("rnn", "h"), ("lstm", "h"), ("lstm", "c"), ("lstm", "state"), ("gru", "h"), ("projected", "state"), ("own", "h")],
)
def test_singular_values_are_those_of_the_full_jacobian(kind: str, block: str) -> None:
    layer = make(kind)
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    for number, link in enumerate(links(layer, inputs)):
        generator = torch.Generator().manual_seed(1)
        lags = [1, 2, 5]
        found = singular_values(link, torch.tensor([1, 6]), lags, 3, block=block, generator=generator)
        for index, lag in enumerate(lags):
            for position, t in enumerate([1, 6]):
                for row in range(B):
                    values = found[index, position, row]
                    if lag > t:
                        assert values.isnan().all()
                        continue
                    matrix = full_jacobian(layer, inputs, number, row, t, lag, block)
                    expected = torch.linalg.svdvals(matrix)[:3]
                    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-9)


def test_the_iteration_finds_a_few_of_many_singular_values() -> None:
    torch.manual_seed(0)
    layer = double(tt.nn.LSTM(3, 60))
    inputs = torch.randn(20, 2, 3, dtype=torch.float64)
    (link,) = links(layer, inputs)
    found = singular_values(link, torch.tensor([18]), [1, 15], 4, generator=torch.Generator().manual_seed(0))
    for index, lag in enumerate([1, 15]):
        for row in range(2):
            expected = torch.linalg.svdvals(full_jacobian(layer, inputs, 0, row, 18, lag, "h"))[:4]
            torch.testing.assert_close(found[index, 0, row], expected, rtol=2e-2, atol=0)
            torch.testing.assert_close(found[index, 0, row, 0], expected[0], rtol=2e-3, atol=0)


@pytest.mark.parametrize("kind", ["lstm", "mixed"])
def test_resets_and_lengths_end_the_way_back(kind: str) -> None:
    layer = make(kind)
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3, 1] = True
    found = flow(layer, inputs, targets_loss, at=[2, 5], resets=resets)
    outputs, nodes = by_hand(layer, inputs, resets)
    losses = targets_loss(outputs)
    for lag in range(6):
        norms = found.layers[0].norms["h"][1, :, lag]
        (gradient,) = torch.autograd.grad(losses[5].sum(), nodes[0][5 - lag][0], retain_graph=True)
        assert norms[1].isnan() == (lag > 2)
        torch.testing.assert_close(norms[[0, 2]], gradient.norm(dim=-1)[[0, 2]], rtol=1e-9, atol=1e-12)
        if lag <= 2:
            torch.testing.assert_close(norms[1], gradient[1].norm(), rtol=1e-9, atol=1e-12)
    short = flow(layer, inputs, targets_loss, at=[2, 5], lengths=[7, 5, 6])
    alone = flow(layer, inputs[:6, 2:], targets_loss, at=[2, 5])
    torch.testing.assert_close(short.layers[0].norms["h"][:, 2:], alone.layers[0].norms["h"], equal_nan=True)
    assert short.layers[0].norms["h"][1, 1].isnan().all()
    assert not short.layers[0].norms["h"][0, 1, :3].isnan().any()


def test_hundreds_of_steps_do_not_leave_the_range_of_float32() -> None:
    """A linear network with W = a·1 multiplies by a at every step, however far that leads."""
    for a in (0.5, 2.0):
        layer = tt.nn.RNN(1, 4, nonlinearity="relu", bias=False).eval()
        with torch.no_grad():
            layer.weight_hh_l0.copy_(a * torch.eye(4))
            layer.weight_ih_l0.fill_(1e-30)
        inputs = torch.zeros(201, 1, 1)
        inputs[0 if a > 1 else slice(None)] = 1
        found = flow(layer, inputs, at=[200], jacobians=1, seed=2)
        expected = a ** torch.arange(201, dtype=torch.float64)
        torch.testing.assert_close(found.by_lag, expected, rtol=1e-5, atol=0)
        sigma = found.layers[0].singular_values[:, 0, 0]
        torch.testing.assert_close(sigma, expected[list(found.jacobian_lags)], rtol=1e-5, atol=0)


def test_saturation_counts_steps_of_sequences_alone() -> None:
    layer = make("lstm")
    inputs = 3 * torch.randn(T, B, INPUT, dtype=torch.float64)
    lengths = [7, 2, 4]
    found = flow(layer, inputs, at=[1], lengths=lengths)
    _, _, states = layer(inputs, lengths=lengths, return_states="all")
    for number, own in enumerate(found.layers):
        assert set(own.saturation) == {"i", "f", "o", "g"}
        for name, share in own.saturation.items():
            gate = getattr(states[number][0].gates, name)
            steps = torch.cat([gate[:length, row] for row, length in enumerate(lengths)])
            low = steps < (-0.9 if name == "g" else 0.1)
            torch.testing.assert_close(share.low.double(), low.double().mean(0))
            torch.testing.assert_close(share.high.double(), (steps > 0.9).double().mean(0))
    assert set(flow(make("gru"), inputs, at=[1]).layers[0].saturation) == {"r", "z", "n"}
    assert set(flow(make("rnn"), inputs, at=[1]).layers[0].saturation) == {"h"}
    assert not flow(make("relu"), inputs, at=[1]).layers[0].saturation
    assert not flow(make("own"), inputs, at=[1]).layers[0].saturation


def test_what_is_measured_is_averaged_printed_and_written() -> None:
    layer = make("lstm")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    found = flow(layer, inputs, targets_loss, at=3, jacobians=2)
    assert found.at.tolist() == [1, 3, 6]
    assert found.jacobian_lags == (1, 2, 4, 6)
    top = found.layers[-1]
    norms = top.norms["h"]
    torch.testing.assert_close(found.by_lag[3], norms[1:, :, 3].mean())
    torch.testing.assert_close(found.by_step[2], norms[2].mean(0))
    torch.testing.assert_close(top.median[6], norms[2, :, 6].median())
    text = str(found)
    assert "LSTM layer 1: ‖∂L(t)/∂h(t−k)‖ by lag k" in text
    assert "f saturated: " in text
    assert f"{float(found.by_lag[2]):.2e}" in text
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["layers"][1]["by_lag"] == found.by_lag.tolist()
    assert written["layers"][1]["by_step"][0][5] is None
    assert list(written["layers"][0]["singular_values"]) == ["1", "2", "4", "6"]
    summary = found.summary()
    assert summary["layer_1.lag_4"] == float(found.by_lag[4])
    assert summary["layer_0.f_high"] == float(found.layers[0].saturation["f"].high.mean())


def test_without_a_loss_a_direction_of_length_one_is_drawn() -> None:
    layer = make("gru")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    found = flow(layer, inputs, seed=4)
    torch.testing.assert_close(found.by_lag[0], torch.ones((), dtype=torch.float64))
    assert torch.equal(found.by_lag, flow(layer, inputs, seed=4).by_lag)
    assert not torch.equal(found.by_lag, flow(layer, inputs, seed=5).by_lag)


def test_batch_first_layers_and_states_are_taken_as_the_layer_takes_them() -> None:
    layer = make("lstm")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    torch.manual_seed(3)
    other = double(tt.nn.LSTM(INPUT, H, 2, batch_first=True))
    torch.testing.assert_close(flow(layer, inputs).by_lag, flow(other, inputs.transpose(0, 1)).by_lag)
    _, state = layer(inputs[:3])
    whole, part = flow(layer, inputs, targets_loss, at=[6]), flow(layer, inputs[3:], targets_loss, at=[3], state=state)
    torch.testing.assert_close(part.by_lag, whole.by_lag[:4])


def test_measuring_changes_nothing() -> None:
    layer = make("lstm")
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    before = torch.random.get_rng_state()
    found: Flow = flow(layer, inputs, targets_loss, jacobians=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert inputs.grad is None
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert not found.by_lag.requires_grad


def test_what_cannot_be_measured_is_said() -> None:
    inputs = torch.randn(T, B, INPUT, dtype=torch.float64)
    layer = make("lstm")
    with pytest.raises(UsageError, match=r"expected a tt.nn layer or a tt.Cell, got LSTM; tt.nn.replace_torch_layers"):
        flow(torch.nn.LSTM(INPUT, H), inputs)
    with pytest.raises(UsageError, match="a lag goes one way in time, LSTM is bidirectional; measure a layer of one"):
        flow(tt.nn.LSTM(INPUT, H, bidirectional=True).double(), inputs)
    with pytest.raises(ShapeError, match=r"loss must give L\(t\) of shape \(T, B\) = \(7, 3\), got \(3,\); do not sum"):
        flow(layer, inputs, lambda outputs: outputs.sum((0, 2)))
    with pytest.raises(UsageError, match=r"at must be how many losses, 1 or more, or steps t within 0..6, got \[7\]"):
        flow(layer, inputs, at=[7])
    with pytest.raises(UsageError, match=r"1 or more, or steps t within 0..6, got 0"):
        flow(layer, inputs, at=0)
    with pytest.raises(UsageError, match=r"longest lag \(max_lag, --lags\) must lie in 0..4, the last t .*, got 5"):
        flow(layer, inputs, at=[4], max_lag=5)
    with pytest.raises(UsageError, match=r"\(jacobians, --jacobians\) must lie in 0..5, the units of .* layer, got 6"):
        flow(layer, inputs, at=[4], jacobians=6)
    (link, _) = links(layer, inputs)
    with pytest.raises(UsageError, match=r"block must be one of \('h', 'c', 'state'\), got 'x'"):
        singular_values(link, torch.tensor([3]), [1], 1, block="x", generator=torch.Generator())
    with pytest.raises(UsageError, match=r"lags must be 1 or more and count within 1..5, got \[1\] and 6"):
        singular_values(link, torch.tensor([3]), [1], 6, generator=torch.Generator())
