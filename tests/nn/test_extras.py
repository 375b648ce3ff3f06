"""What tt.nn does beyond torch.nn: each extra's gradients, and the statistics of each of its masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt

T, B, I, H = 3, 2, 2, 3  # noqa: E741

EXTRAS: dict[str, tuple[str, dict[str, Any]]] = {
    "recurrent dropout": ("LSTM", {"recurrent_dropout": 0.5}),
    "recurrent dropout of a GRU": ("GRU", {"recurrent_dropout": 0.5}),
    "recurrent dropout before": ("GRU", {"recurrent_dropout": 0.5, "reset_after": False}),
    "recurrent dropout with a projection": ("LSTM", {"recurrent_dropout": 0.5, "proj_size": 2}),
    "variational dropout": ("LSTM", {"variational_dropout": 0.4, "num_layers": 2}),
    "zoneout": ("LSTM", {"zoneout": (0.3, 0.5)}),
    "zoneout of an RNN": ("RNN", {"zoneout": 0.3}),
    "layer norm": ("LSTM", {"layer_norm": True, "num_layers": 2}),
    "weight dropout": ("GRU", {"weight_dropout": 0.5, "bidirectional": True}),
    "residual": ("RNN", {"residual": True, "num_layers": 3}),
    "peepholes": ("LSTM", {"peepholes": True, "bidirectional": True}),
    "unequal sizes": ("LSTM", {"hidden_size": [4, 2], "num_layers": 2, "bidirectional": True}),
    "together": (
        "LSTM",
        {
            "num_layers": 2,
            "recurrent_dropout": 0.3,
            "variational_dropout": 0.3,
            "zoneout": 0.2,
            "layer_norm": True,
            "weight_dropout": 0.3,
            "residual": True,
            "peepholes": True,
            "dropout": 0.2,
        },
    ),
}


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(2)
    options = {"hidden_size": H, "dtype": torch.float64, **options}
    return getattr(tt.nn, name)(I, **options)


@pytest.mark.parametrize("extra", EXTRAS)
def test_gradients_against_finite_differences_with_the_masks_held_still(extra: str) -> None:
    name, options = EXTRAS[extra]
    layer = made(name, **options)
    names = [n for n, _ in layer.named_parameters()]
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        arguments, keys = (x,), {"lengths": [T, 2]}
        outputs, _ = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), arguments, keys)
        return (outputs,)

    assert torch.autograd.gradcheck(run, [x, *weights], fast_mode=True, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(run, [x, *weights], fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("extra", EXTRAS)
def test_evaluation_is_the_same_every_time_and_training_is_not(extra: str) -> None:
    name, options = EXTRAS[extra]
    layer = made(name, **options)
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(1)
    first = layer(x)[0]
    second = layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first), "the seed does not decide"
    assert torch.equal(first, second) == (not any("drop" in key or key == "zoneout" for key in options))
    state = torch.get_rng_state()
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(torch.get_rng_state(), state), "evaluation uses random numbers up"


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_state_dict_begins_with_torchs(extra: str) -> None:
    name, options = EXTRAS[extra]
    ours = made(name, **options)
    beyond = ("weight_peephole", "gain", "shift")
    names = {n for n in ours.state_dict() if not n.startswith(beyond)}
    shape = {k: v for k, v in options.items() if k in ("num_layers", "bidirectional", "proj_size")}
    theirs = getattr(torch.nn, name)(I, H, **shape)
    assert names == set(theirs.state_dict())


def calls(layer: Any, x: Tensor, **arguments: Any) -> Any:
    return [call for _, call in layer.recurrences(x, **arguments)]


def test_recurrent_dropout_one_mask_for_a_sequence_of_each_row_and_direction() -> None:
    layer = made("LSTM", hidden_size=400, recurrent_dropout=0.3, num_layers=2, bidirectional=True)
    x = torch.zeros(T, 5, I, dtype=torch.float64)
    masks = [call.recurrent_mask for call in calls(layer, x)]
    assert [mask.shape for mask in masks] == [(5, 400)] * 4
    for mask in masks:
        # Five standard deviations of the share of 2000 draws.
        assert abs(float((mask == 0).double().mean()) - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5
        torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / 0.7))
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(calls(layer, x)[0].recurrent_mask, masks[0]), "not drawn anew for a call"
    assert calls(layer.eval(), x)[0].recurrent_mask is None


def test_recurrent_dropout_touches_the_product_and_not_the_carried_state() -> None:
    layer = made("GRU", recurrent_dropout=0.5)
    call = calls(layer, torch.zeros(1, B, I, dtype=torch.float64), state=torch.ones(1, B, H, dtype=torch.float64))[0]
    after, gates = call.cell.advance(call.cell.project_inputs(call.inputs)[0], call.state, call.recurrent_mask)
    torch.testing.assert_close(after.h, (1 - gates.z) * gates.n + gates.z * call.state.h)


def test_variational_dropout_is_locked_in_time() -> None:
    layer = made("RNN", hidden_size=300, variational_dropout=0.4, num_layers=2)
    x = torch.ones(T, 7, I, dtype=torch.float64)
    first, _ = calls(layer, x)
    assert all(torch.equal(step, first.inputs[0]) for step in first.inputs)
    torch.manual_seed(8)
    wide = tt.nn.RNN(2000, 3, variational_dropout=0.4)
    dropped = calls(wide, torch.ones(2, 3, 2000))[0].inputs
    assert abs(float((dropped == 0).double().mean()) - 0.4) < 5 * (0.4 * 0.6 / 6000) ** 0.5
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / 0.6))
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert torch.equal(calls(wide.eval(), torch.ones(2, 3, 2000))[0].inputs, torch.ones(2, 3, 2000))


def test_zoneout_keeps_the_expected_share_and_in_evaluation_its_mean() -> None:
    layer = made("LSTM", hidden_size=200, zoneout=(0.2, 0.6))
    x = torch.zeros(10, 3, I, dtype=torch.float64)
    shares = calls(layer, x)[0].zoneout
    for share, p in zip(shares, (0.2, 0.6), strict=True):
        assert share.shape == (10, 3, 200)
        assert set(share.unique().tolist()) == {0.0, 1.0}
        assert abs(float(share.mean()) - p) < 5 * (p * (1 - p) / share.numel()) ** 0.5
        assert not torch.equal(share[0], share[1]), "zoneout is drawn for every step"
    for share, p in zip(calls(layer.eval(), x)[0].zoneout, (0.2, 0.6), strict=True):
        assert (share == p).all()
    assert calls(made("LSTM", zoneout=(0.0, 0.5)), x)[0].zoneout[0] is None


@pytest.mark.parametrize("training", [True, False])
def test_zoneout_is_a_mixture_of_old_and_new(training: bool) -> None:
    layer = made("LSTM", zoneout=(0.3, 0.5)).train(training)
    plain = made("LSTM", engine="reference")
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(3)
    z_h, z_c = calls(layer, x)[0].zoneout
    torch.manual_seed(3)
    outputs, (h_n, c_n) = layer(x)
    h = c = torch.zeros(1, B, H, dtype=torch.float64)
    for t in range(T):
        _, (new_h, new_c) = plain(x[t : t + 1], (h, c))
        h, c = z_h[t] * h + (1 - z_h[t]) * new_h, z_c[t] * c + (1 - z_c[t]) * new_c
        torch.testing.assert_close(outputs[t], h[0])
    torch.testing.assert_close((h_n, c_n), (h, c))


def test_weight_dropout_drops_entries_of_the_recurrent_weights_for_a_whole_call() -> None:
    layer = made("LSTM", hidden_size=50, weight_dropout=0.3)
    x = torch.zeros(T, B, I, dtype=torch.float64)
    used = calls(layer, x)[0].cell.weights
    kept = used.weight_hh != 0
    assert abs(float((~kept).double().mean()) - 0.3) < 5 * (0.3 * 0.7 / kept.numel()) ** 0.5
    torch.testing.assert_close(used.weight_hh[kept], layer.weight_hh_l0[kept] / 0.7)
    assert used.weight_ih is layer.weight_ih_l0
    assert not torch.equal(calls(layer, x)[0].cell.weights.weight_hh, used.weight_hh)
    assert calls(layer.eval(), x)[0].cell.weights.weight_hh is layer.weight_hh_l0
    # It costs no engine: each takes the thinned weights.
    plain = tt.kernels.explain(layer.eval(), x)
    assert tt.kernels.explain(layer.train(), x) == plain
    assert tt.kernels.explain(layer.train(), x, engine="torch").engines == ("torch",)


def test_weight_dropout_of_a_layer_is_the_plain_layer_with_those_weights() -> None:
    layer, plain = made("LSTM", weight_dropout=0.5), made("LSTM")
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(4)
    thinned = calls(layer, x)[0].cell.weights.weight_hh
    torch.manual_seed(4)
    outputs, _ = layer(x)
    expected, _ = torch.func.functional_call(plain, {"weight_hh_l0": thinned}, (x,))
    torch.testing.assert_close(outputs, expected)
    outputs.sum().backward()
    assert not layer.weight_hh_l0.grad[thinned == 0].any()
    assert layer.weight_hh_l0.grad[thinned != 0].any()


def test_residual_adds_inputs_to_outputs_from_the_second_layer_on() -> None:
    layer = made("GRU", num_layers=3, residual=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, finals = x, []
    for k in range(3):
        one = tt.nn.GRU(y.shape[-1], H, dtype=torch.float64)
        one.load_state_dict({f"{n[:-1]}0": w for n, w in layer.state_dict().items() if n.endswith(f"_l{k}")})
        outputs, final = one(y)
        y = outputs if k == 0 else y + outputs
        finals.append(final)
    outputs, final = layer(x)
    torch.testing.assert_close(outputs, y)
    torch.testing.assert_close(final, torch.cat(finals))


def test_residual_in_both_directions_and_behind_lengths() -> None:
    layer = made("LSTM", num_layers=2, residual=True, bidirectional=True)
    outputs, _ = layer(torch.randn(T, B, I, dtype=torch.float64), lengths=[1, 3])
    assert outputs.shape == (T, B, 2 * H)
    assert not outputs[1:, 0].any()


@pytest.mark.parametrize("batched", [True, False])
def test_unequal_sizes_hand_their_states_in_and_out_as_one_tensor_a_layer(batched: bool) -> None:
    layer = made("LSTM", hidden_size=[4, 2], num_layers=2, bidirectional=True)
    rows = (B,) if batched else ()
    x = torch.randn(5, *rows, I, dtype=torch.float64)
    outputs, (h_n, c_n) = layer(x)
    assert outputs.shape == (5, *rows, 4)
    assert [h.shape for h in h_n] == [c.shape for c in c_n] == [(2, *rows, 4), (2, *rows, 2)]
    # Carried on, forwards only (a bidirectional layer cannot be cut).
    layer = made("LSTM", hidden_size=(4, 2), num_layers=2)
    first, state = layer(x[:2])
    second, state = layer(x[2:], state)
    whole, final = layer(x)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, final)
    assert layer.hidden_size == (4, 2)


def test_unequal_sizes_initialise_each_layer_by_its_own_size() -> None:
    layer = tt.nn.LSTM(I, [400, 4], num_layers=2)
    assert layer.weight_hh_l0.abs().max() <= 400**-0.5
    assert 400**-0.5 < layer.weight_hh_l1.abs().max() <= 4**-0.5


def test_the_representation_shows_what_is_not_usual() -> None:
    assert repr(tt.nn.LSTM(I, H)) == "LSTM(2, 3)"
    shown = repr(tt.nn.LSTM(I, H, 2, peepholes=True, zoneout=0.1, proj_size=2, recurrent_dropout=0.2))
    assert shown == "LSTM(2, 3, num_layers=2, recurrent_dropout=0.2, proj_size=2, peepholes=True, zoneout=(0.1, 0.1))"
    assert repr(tt.nn.GRU(I, H, reset_after=False)) == "GRU(2, 3, reset_after=False)"
    assert repr(tt.nn.RNN(I, H, nonlinearity="relu")) == "RNN(2, 3, nonlinearity='relu')"
