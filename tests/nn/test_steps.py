"""A layer's steps one at a time: the layer itself, its random masks drawn once for all steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import UsageError
from throughtime.nn import LayerSteps

TIGHT: dict[str, float] = {"rtol": 1e-11, "atol": 1e-12}
T, B, INPUTS, H = 6, 3, 4, 5
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"num_layers": 3, "residual": True},
    {"num_layers": 2, "zoneout": 0.3},
    {"num_layers": 2, "layer_norm": True},
    {"num_layers": 2, "dropout": 0.4, "variational_dropout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.1},
]


def made(kind: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return kind(INPUTS, H, dtype=torch.float64, **options)


def stepped(layer: Any, x: Tensor, states: Any) -> tuple[Tensor, Any]:
    steps, h = LayerSteps(layer, len(x), x[0]), []
    for t, x_t in enumerate(x):
        h_t, states = steps.advance(t, x_t, states)
        h.append(h_t)
    return torch.stack(h), states


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [tt.nn.RNN, tt.nn.LSTM, tt.nn.GRU])
def test_steps_are_the_layer(kind: Any, options: dict[str, Any]) -> None:
    layer = made(kind, **options).eval()
    layers, fields = layer.num_layers, len(layer.cell_type.State._fields)
    x = torch.randn(T, B, INPUTS, dtype=torch.float64, requires_grad=True)
    first = [torch.randn(layers, B, H, dtype=torch.float64, requires_grad=True) for _ in range(fields)]
    weight = torch.randn(T, B, H, dtype=torch.float64)
    wanted = [x, *first, *layer.parameters()]

    outputs, final = layer(x, first[0] if fields == 1 else tuple(first))
    last = [final] if fields == 1 else list(final)
    expected = torch.autograd.grad((outputs * weight).sum() + last[-1].square().sum(), wanted)

    states = [layer.cell_type.State(*(field[index] for field in first)) for index in range(layers)]
    found, after = stepped(layer, x, states)
    ends = [torch.stack([state[field] for state in after]) for field in range(fields)]
    got = torch.autograd.grad((found * weight).sum() + ends[-1].square().sum(), wanted)
    for one, other in zip([outputs, *last, *expected], [found, *ends, *got], strict=True):
        torch.testing.assert_close(other, one, **TIGHT)


def test_masks_are_drawn_once_in_training() -> None:
    """One mask of a layer's inputs for all steps, whose expectation is one; another for another walk."""
    layer = made(tt.nn.RNN, nonlinearity="relu", variational_dropout=0.5, bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(H, INPUTS))
        layer.weight_hh_l0.zero_()
    x = torch.ones(T, 64, INPUTS, dtype=torch.float64)
    seen = stepped(layer, x, layer.zero_states(64, x))[0][..., :INPUTS]  # the masked inputs themselves
    assert sorted(set(seen.flatten().tolist())) == [0.0, 2.0]
    assert torch.equal(seen, seen[:1].expand_as(seen))
    assert abs(float(seen.detach().mean()) - 1) < 0.2
    assert not torch.equal(stepped(layer, x, layer.zero_states(64, x))[0][..., :INPUTS], seen)


def test_recurrent_masks_are_drawn_once_in_training() -> None:
    """A unit that is dropped where h(t-1) enters is dropped at every step: h(t) = 1 there, and grows elsewhere."""
    layer = made(tt.nn.RNN, nonlinearity="relu", recurrent_dropout=0.5, bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1 / INPUTS)
        layer.weight_hh_l0.copy_(torch.eye(H))
    x = torch.ones(T, 64, INPUTS, dtype=torch.float64)
    h, _ = stepped(layer, x, layer.zero_states(64, x))
    dropped = h[1] == 1
    assert 0.3 < float(dropped.double().mean()) < 0.7
    assert torch.equal(h[-1] == 1, dropped)
    assert bool((h[2][~dropped] == 1 + 2 * 3).all())  # 1 + 2 h(1), h(1) = 1 + 2 h(0), h(0) = 1


def test_zoneout_is_drawn_anew_at_each_step_and_keeps_units_whole() -> None:
    layer = made(tt.nn.GRU, zoneout=0.5)
    x = torch.randn(T, 64, INPUTS, dtype=torch.float64)
    h, _ = stepped(layer, x, layer.zero_states(64, x))
    kept = torch.cat([torch.zeros(1, 64, H).double(), h])[:-1] == h  # (T, B, H)
    assert bool((abs(kept.double().mean((1, 2)) - 0.5) < 0.15).all())
    assert not torch.equal(kept[0], kept[1])


def test_dropout_between_layers_is_drawn_anew_at_each_step() -> None:
    layer = made(tt.nn.RNN, nonlinearity="relu", num_layers=2, dropout=0.5, bias=False)
    with torch.no_grad():
        for index in (0, 1):
            layer.get_parameter(f"weight_ih_l{index}").copy_(torch.eye(H, INPUTS if index == 0 else H))
            layer.get_parameter(f"weight_hh_l{index}").zero_()
    x = torch.ones(T, 64, INPUTS, dtype=torch.float64)
    seen = stepped(layer, x, layer.zero_states(64, x))[0][..., :INPUTS]
    assert sorted(set(seen.flatten().tolist())) == [0.0, 2.0]
    assert not torch.equal(seen[0], seen[1])


def test_the_same_seed_gives_the_same_steps() -> None:
    layer = made(tt.nn.LSTM, num_layers=2, dropout=0.3, variational_dropout=0.3, recurrent_dropout=0.3, zoneout=0.2,
                 weight_dropout=0.2)  # fmt: skip
    x, found = torch.randn(T, B, INPUTS, dtype=torch.float64), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(stepped(layer, x, layer.zero_states(B, x))[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_both_directions_are_refused() -> None:
    layer = made(tt.nn.GRU, bidirectional=True)
    with pytest.raises(UsageError, match="GRU: a bidirectional layer cannot be taken step by step; set bidirectional"):
        LayerSteps(layer, T, torch.zeros(B, INPUTS))
