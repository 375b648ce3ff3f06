"""`tt.nn.LayerStepper` against the layer itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import throughtime as tt
from throughtime.errors import EngineError, ShapeError
from throughtime.kernels.native import library

needs_native = pytest.mark.skipif(library.missing_reason() is not None, reason="no native engine here")

LAYERS = [
    ("RNN", (3, 5), {}),
    ("RNN", (3, 17, 2), {"nonlinearity": "relu"}),
    ("LSTM", (3, 5), {"bias": False}),
    ("LSTM", (20, 33, 3), {"residual": True, "zoneout": (0.1, 0.3)}),
    ("LSTM", (3, [5, 17], 2), {"peepholes": True, "dropout": 0.5, "recurrent_dropout": 0.5}),
    ("GRU", (3, 5), {"batch_first": True}),
    ("GRU", (3, [100, 1, 7], 3), {"zoneout": 0.2, "weight_dropout": 0.3}),
]


@needs_native
@pytest.mark.parametrize(("kind", "sizes", "options"), LAYERS)
def test_steps_are_those_of_the_layer(kind: str, sizes: tuple[Any, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = getattr(tt.nn, kind)(*sizes, **options)
    x = torch.randn(9, 4, sizes[0])
    stepper = tt.nn.LayerStepper(layer, rows=4)  # as in evaluation mode, whatever the mode
    steps = torch.stack([stepper.step(row) for row in x[:6]])
    layer.eval()
    batch_first = options.get("batch_first", False)
    outputs, state = layer(x[:6].transpose(0, 1).contiguous() if batch_first else x[:6])
    torch.testing.assert_close(steps, outputs.transpose(0, 1) if batch_first else outputs)
    torch.testing.assert_close(stepper.state(), state)
    stepper.begin(4)
    stepper.set_state(state)
    layer_goes_on, _ = layer(x[6:].transpose(0, 1) if batch_first else x[6:], state)
    goes_on = torch.stack([stepper.step(row) for row in x[6:]])
    torch.testing.assert_close(goes_on, layer_goes_on.transpose(0, 1) if batch_first else layer_goes_on)


@needs_native
def test_weights_are_those_of_the_moment_it_was_made() -> None:
    layer = tt.nn.LSTM(3, 5)
    x = torch.randn(1, 3)
    before, after = tt.nn.LayerStepper(layer), tt.nn.LayerStepper(layer)
    first = before.step(x)
    with torch.no_grad():
        layer.weight_ih_l0.mul_(2)
    assert torch.equal(after.step(x), first)
    assert not torch.equal(tt.nn.LayerStepper(layer).step(x), first)


@needs_native
def test_rows_go_on_in_another_order() -> None:
    layer = tt.nn.GRU(3, 5)
    x = torch.randn(2, 3, 3)
    stepper, other = tt.nn.LayerStepper(layer, rows=3), tt.nn.LayerStepper(layer, rows=3)
    stepper.step(x[0])
    other.step(x[0])
    stepper.reorder(torch.tensor([2, 0]))
    assert torch.equal(stepper.step(x[1, [2, 0]]), other.step(x[1])[[2, 0]])


@needs_native
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_narrow_weights_come_near(precision: str) -> None:
    torch.manual_seed(0)
    layer = tt.nn.LSTM(40, 60, 2)
    x = torch.randn(8, 1, 40)
    stepper = tt.nn.LayerStepper(layer, precision=precision)
    steps = torch.stack([stepper.step(row) for row in x])
    torch.testing.assert_close(steps, layer(x)[0], rtol=0, atol=5e-3)
    assert not torch.equal(steps, layer(x)[0])


@needs_native
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (tt.nn.LSTM(3, 5, bidirectional=True), "native steps are without a direction that reads from the end"),
        (tt.nn.LSTM(3, 5, proj_size=2), "native steps are without a projection"),
        (tt.nn.GRU(3, 5, layer_norm=True), "native steps are without layer normalisation inside the cell"),
        (tt.nn.GRU(3, 5, reset_after=False), "native steps are without a reset gate before the product"),
        (
            tt.nn.RNN(3, 5, dtype=torch.float64),
            "native steps are for float32 on the CPU, the weights are torch.float64",
        ),
        (tt.nn.RNN(3, 5, engine="reference"), "the layer was made with engine='reference'"),
        (type("Own", (tt.nn.RNN,), {})(3, 5), "Own is none of tt.nn.RNN, LSTM and GRU and may compute something else"),
    ],
)
def test_what_it_is_without_is_told(layer: tt.nn.RecurrentLayer, reason: str) -> None:
    with pytest.raises(EngineError, match=f"^LayerStepper: {reason}.*; call the layer itself with the state of the la"):
        tt.nn.LayerStepper(layer)


@needs_native
def test_errors() -> None:
    layer = tt.nn.LSTM(3, 5)
    with pytest.raises(EngineError, match="precision must be one of fp32, bf16, int8, got 'fp16'"):
        tt.nn.LayerStepper(layer, precision="fp16")
    with pytest.raises(
        ShapeError, match=r"inputs must be \(1, 3\) torch.float32, contiguous, on the CPU, got \(2, 3\)"
    ):
        tt.nn.LayerStepper(layer).step(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"LayerStepper: h_0 must be \(1, 1, 5\)"):
        tt.nn.LayerStepper(layer).set_state((torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))


def test_without_the_native_engine_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing_reason", lambda: "the native engine is not built")
    with pytest.raises(EngineError, match="LayerStepper: the native engine is not built; call the layer itself"):
        tt.nn.LayerStepper(tt.nn.LSTM(3, 5))
