"""The torch engine: what it refuses, what falls to another, and how it hides torch's noise."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import EngineError

T, B, I, H = 5, 3, 2, 4  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]


def made(name: str, engine: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(2)
    return getattr(tt.nn, name)(I, H, engine=engine, dtype=torch.float64, **options).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def refusal(layer: Any, x: Tensor, **arguments: Any) -> str:
    refused = dict(tt.kernels.explain(layer, x, engine="torch", **arguments).choices[0].refused)
    with pytest.raises(
        EngineError, match=r"engine='torch' cannot run this: PyTorch's fused kernels.*engine='auto' takes"
    ):
        type(layer).forward(_asking_for_torch(layer), x, **arguments)
    return refused["torch"]


def _asking_for_torch(layer: Any) -> Any:
    layer.engine = "torch"
    return layer


@pytest.mark.parametrize(
    ("name", "options", "arguments", "reason"),
    [
        ("LSTM", {"peepholes": True}, {}, "peepholes"),
        ("LSTM", {"layer_norm": True}, {}, "layer normalisation inside the cell"),
        ("RNN", {"layer_norm": True}, {}, "layer normalisation inside the cell"),
        ("GRU", {"layer_norm": True}, {}, "layer normalisation inside the cell"),
        ("GRU", {"reset_after": False}, {}, "reset gate before the product"),
        ("LSTM", {"recurrent_dropout": 0.5}, {}, "recurrent dropout"),
        ("GRU", {"zoneout": 0.5}, {}, "zoneout"),
        ("RNN", {}, {"return_states": "all"}, "every state and gate"),
    ],
)
def test_what_torch_cannot_do_is_refused_with_its_reason(name: str, options: Any, arguments: Any, reason: str) -> None:
    assert reason in refusal(made(name, "auto", **options), data(), **arguments)


@pytest.mark.parametrize("shape", [(0, 2, I), (3, 0, I)])
def test_nothing_to_do_is_left_to_others(shape: tuple[int, ...]) -> None:
    layer = made("LSTM", "auto")
    assert "at least one time step and one sequence" in refusal(made("LSTM", "auto"), torch.zeros(shape).double())
    outputs, (h, c) = layer(torch.zeros(shape, dtype=torch.float64))
    assert outputs.shape == (*shape[:2], H)
    assert h.shape == c.shape == (1, shape[1], H)


# torch builds its own forward derivatives with torch.jit.script when the first is asked for.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_func_finds_an_engine_by_itself(name: str) -> None:
    layer, x = made(name, "auto"), data()
    weights = dict(layer.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

    expected = torch.autograd.grad(layer(x)[0].square().sum(), list(weights.values()))
    for got, right in zip(torch.func.grad(loss)(weights, x).values(), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)
    # A gradient for each sequence: what vmap is for. Each is alone in its batch, or has no batch axis at all.
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x)
    for got, right in zip(per_sample.values(), expected, strict=True):
        torch.testing.assert_close(got.sum(0), right, rtol=1e-10, atol=1e-12)
    jacobian = torch.func.jacrev(lambda x: layer(x)[0][-1, 0])(x)
    assert jacobian.shape == (H, T, B, I)
    assert not jacobian[:, :, 1:].any()
    forward = torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(layer(dual)[0]).tangent
    torch.testing.assert_close(forward, tangent)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torch_func_and_the_torch_engine_do_not_go_together() -> None:
    layer = made("LSTM", "torch")
    with pytest.raises(EngineError, match=r"do not work under torch\.func transforms"):
        torch.func.grad(lambda x: layer(x)[0].sum())(data())
    with torch.autograd.forward_ad.dual_level(), pytest.raises(EngineError, match="no forward-mode derivative"):
        layer(data())


def test_no_noise_from_torch() -> None:
    # torch says it once in a process: so, in a fresh one.
    program = (
        "import warnings; warnings.simplefilter('error')\n"
        "import torch, throughtime as tt\n"
        "layer = tt.nn.LSTM(2, 4, proj_size=3, weight_dropout=0.5, engine='torch')\n"
        "layer(torch.zeros(3, 2, 2))[0].sum().backward()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
