"""Initialisations: the values they set, in every layer and direction, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.cells.initialisation import chrono_, identity_, orthogonal_, unit_forget_bias_
from throughtime.errors import UsageError

I, H = 3, 5  # noqa: E741

MODULES: dict[str, Any] = {
    "rnn": lambda: tt.nn.RNN(I, H, num_layers=2, bidirectional=True),
    "rnn cell": lambda: tt.nn.RNNCell(I, H),
    "lstm": lambda: tt.nn.LSTM(I, H, num_layers=2, bidirectional=True),
    "lstm cell": lambda: tt.nn.LSTMCell(I, H),
    "gru": lambda: tt.nn.GRU(I, H, num_layers=2, bidirectional=True),
    "gru cell": lambda: tt.nn.GRUCell(I, H),
    "uneven lstm": lambda: tt.nn.LSTM(I, [H, 4], num_layers=2),
}


def made(kind: str) -> Any:
    torch.manual_seed(4)
    return MODULES[kind]()


def values(module: Any, name: str) -> list[Tensor]:
    found = [parameter.detach() for own, parameter in module.named_parameters() if own.startswith(name)]
    assert found
    return found


def sums(module: Any) -> list[Tensor]:
    return [a + b for a, b in zip(values(module, "bias_ih"), values(module, "bias_hh"), strict=True)]


@pytest.mark.parametrize("kind", MODULES)
def test_every_gate_is_orthogonal_and_nothing_else_has_changed(kind: str) -> None:
    module, before = made(kind), made(kind).state_dict()
    orthogonal_(module, generator=torch.Generator().manual_seed(1))
    for weight in values(module, "weight_hh"):
        size = weight.shape[1]
        for block in weight.split(size):
            torch.testing.assert_close(block @ block.T, torch.eye(size), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items() if "weight_hh" not in k)
    blocks = [block for weight in values(module, "weight_hh") for block in weight.split(weight.shape[1])]
    assert not any(torch.equal(a, b) for n, a in enumerate(blocks) for b in blocks[:n])


def test_orthogonal_with_a_projection_has_orthonormal_columns() -> None:
    layer = tt.nn.LSTM(I, H, proj_size=2)
    orthogonal_(layer)
    for block in layer.weight_hh_l0.detach().split(H):  # (H, P)
        torch.testing.assert_close(block.T @ block, torch.eye(2), rtol=1e-5, atol=1e-5)


def test_the_same_generator_draws_the_same() -> None:
    for draw in (orthogonal_, lambda module, generator: chrono_(module, 50, generator=generator)):
        one, other, third = made("lstm"), made("lstm"), made("lstm")
        for module, seed in ((one, 7), (other, 7), (third, 8)):
            draw(module, generator=torch.Generator().manual_seed(seed))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["rnn", "rnn cell"])
def test_identity(kind: str) -> None:
    module, before = made(kind), made(kind).state_dict()
    identity_(module)
    assert all(torch.equal(weight, torch.eye(H)) for weight in values(module, "weight_hh"))
    assert not any(bias.any() for bias in sums(module))
    assert not any(bias.any() for bias in values(module, "bias_ih"))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items() if "weight_ih" in k)


def test_a_rectified_identity_network_keeps_its_state_and_its_gradient() -> None:
    layer = tt.nn.RNN(I, H, nonlinearity="relu", bias=False)
    identity_(layer)
    start = torch.rand(1, 2, H, requires_grad=True)
    outputs, final = layer(torch.zeros(40, 2, I), start)
    assert torch.equal(final, start)
    outputs[-1].sum().backward()
    assert torch.equal(start.grad, torch.ones(1, 2, H))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lstm", "lstm cell", "uneven lstm"])
def test_unit_forget_bias(kind: str) -> None:
    module, before = made(kind), made(kind)
    unit_forget_bias_(module)
    for bias, old in zip(sums(module), sums(before), strict=True):
        i, f, g, o = bias.chunk(4)
        old_i, _, old_g, old_o = old.chunk(4)
        assert torch.equal(f, torch.ones_like(f))
        assert torch.equal(torch.cat([i, g, o]), torch.cat([old_i, old_g, old_o]))
    assert not any(bias.chunk(4)[1].any() for bias in values(module, "bias_hh"))


@pytest.mark.parametrize("kind", ["lstm", "lstm cell", "uneven lstm"])
def test_chrono_of_an_lstm(kind: str) -> None:
    module, old = made(kind), made(kind)
    chrono_(module, 100)
    for bias, before in zip(sums(module), sums(old), strict=True):
        i, f, g, o = bias.chunk(4)
        assert torch.equal(i, -f)
        assert 0 <= f.min() < f.max() <= torch.tensor(99.0).log()
        assert torch.equal(torch.stack([g, o]), torch.stack(before.chunk(4)[2:]))


def test_chrono_of_a_gru_makes_the_update_gate_keep_the_old_state() -> None:
    layer = tt.nn.GRU(1, 4000, bias=True)
    chrono_(layer, 1000, generator=torch.Generator().manual_seed(0))
    z = sums(layer)[0].chunk(3)[1].sigmoid()
    time = 1 / (1 - z.double())  # steps for which a state lasts: 1 + u, u ~ U(1, 999)
    assert time.min() >= 2
    assert time.max() <= 1001
    assert 480 < time.mean() < 522  # the standard error of the mean 501 is 4.6
    assert 265 < time.std() < 312  # of U(1, 999): 288
    # The direction: a GRU with z near 1 keeps h.
    cell = tt.nn.GRUCell(1, H)
    chrono_(cell, 10**6)
    with torch.no_grad():
        cell.weight_ih.zero_()
        cell.weight_hh.zero_()
    h = torch.randn(1, H)
    expected = h * sums(cell)[0].chunk(3)[1].sigmoid()
    n = torch.tanh(cell.bias_ih[2 * H :] + 0.5 * cell.bias_hh[2 * H :])
    kept = cell(torch.zeros(1, 1), h) - expected
    assert kept.abs().max() <= n.abs().max()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: identity_(tt.nn.LSTM(I, H)),
            "identity_: expected an RNN or RNNCell, got LSTM, whose gates would not keep the state as it is; "
            "use unit_forget_bias_, chrono_ or orthogonal_",
        ),
        (
            lambda: unit_forget_bias_(tt.nn.GRUCell(I, H)),
            "unit_forget_bias_: expected an LSTM or LSTMCell, got GRUCell, which has no forget gate; "
            "for a GRU use chrono_",
        ),
        (
            lambda: unit_forget_bias_(tt.nn.LSTM(I, H, bias=False)),
            "unit_forget_bias_: LSTM has no biases; make it with bias=True",
        ),
        (
            lambda: chrono_(tt.nn.RNN(I, H), 10),
            "chrono_: expected an LSTM, a GRU or one of their cells, got RNN, which has no gate that keeps its "
            "state; use identity_ or orthogonal_",
        ),
        (lambda: chrono_(tt.nn.LSTM(I, H), 1), "chrono_: longest must be at least 2 time steps, got 1"),
        (
            lambda: orthogonal_(torch.nn.LSTM(I, H)),
            "orthogonal_: expected a layer or cell of tt.nn, got LSTM; hand in the recurrent layer itself, and see "
            "tt.nn.replace_torch_layers for those of torch.nn",
        ),
    ],
)
def test_what_is_refused_and_how(act: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        act()
    assert str(caught.value) == message
