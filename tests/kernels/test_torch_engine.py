"""The torch engine: what it refuses, second derivatives, kept graphs, memory, and how it hides torch's noise."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import EngineError

T, B, I, H = 5, 3, 2, 4  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]


def made(name: str, engine: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(2)
    return getattr(tt.nn, name)(I, H, engine=engine, dtype=torch.float64, **options).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def second_order(layer: Any, x: Tensor, **arguments: Any) -> list[Tensor]:
    """The gradients of the gradients' norm: second derivatives of every kind."""
    x = x.clone().requires_grad_()
    outputs, final = layer(x, **arguments)
    fields = [final] if isinstance(final, Tensor) else list(final)
    loss = outputs.square().sum() + sum(field.sin().sum() for field in fields)
    first = torch.autograd.grad(loss, [x, *layer.parameters()], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, *layer.parameters()])
    return [*first, *second]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}])
@pytest.mark.parametrize("lengths", [None, [2, 0, 5]])
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_the_references(name: str, lengths: Any, options: Any, training: bool) -> None:
    fast, right = (made(name, engine, **options).train(training) for engine in ("torch", "reference"))
    for a, b in zip(
        second_order(fast, data(), lengths=lengths), second_order(right, data(), lengths=lengths), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_in_single_precision_where_onednn_runs(training: bool) -> None:
    fast, right = made("LSTM", "torch", torch.float32).train(training), made("LSTM", "reference").train(training)
    got = second_order(fast, data().float())
    expected = second_order(right, data())
    for a, b in zip(got, expected, strict=True):
        # A few roundings for each of T steps, relative to the size of the whole tensor.
        assert (a.double() - b).abs().max() <= 50 * torch.finfo(torch.float32).eps * b.abs().max()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", ["stacked on itself", "state carried on", "resets"])
def test_a_path_that_comes_back_to_the_same_weights_counts_once(name: str, how: str) -> None:
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = True

    def gradients(engine: str) -> tuple[Tensor, ...]:
        torch.manual_seed(2)
        layer = getattr(tt.nn, name)(H, H, engine=engine, dtype=torch.float64)
        x = torch.randn(T, B, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        outputs, state = layer(x, resets=resets if how == "resets" else None)
        if how == "stacked on itself":
            outputs, _ = layer(outputs)
        elif how == "state carried on":
            outputs, _ = layer(x, state)
        return torch.autograd.grad(outputs.square().sum(), list(layer.parameters()), create_graph=True)

    for a, b in zip(gradients("torch"), gradients("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_kept_graph_gives_the_same_gradients_again(name: str) -> None:
    layer, x = made(name, "torch", torch.float32), data(torch.float32).requires_grad_()
    loss = layer(x)[0].square().sum()
    wanted = [x, *layer.parameters()]
    plain = torch.autograd.grad(loss, wanted, retain_graph=True)
    differentiable = torch.autograd.grad(loss, wanted, create_graph=True)
    again = torch.autograd.grad(loss, wanted, retain_graph=True)
    last = torch.autograd.grad(loss, wanted)
    for one, two, three, four in zip(plain, differentiable, again, last, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
        assert torch.equal(three, one)
        assert torch.equal(four, one)


@pytest.mark.parametrize("name", LAYERS)
def test_a_freed_graph_says_so(name: str) -> None:
    layer = made(name, "torch", torch.float32)
    loss = layer(data(torch.float32))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_backward_frees_what_forward_kept() -> None:
    layer = made("LSTM", "torch", torch.float32)
    x = (data(torch.float32).requires_grad_() * 1.0).clone()
    seen = weakref.ref(x)
    outputs, _ = layer(x)
    loss = outputs.sum()
    del x, outputs
    gc.collect()
    assert seen() is not None
    loss.backward()
    gc.collect()
    assert seen() is None, "inputs are kept although the graph was freed"


def test_a_change_in_place_is_noticed() -> None:
    layer, x = made("LSTM", "torch", torch.float32), data(torch.float32).requires_grad_() * 1.0
    outputs, _ = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_only_some_gradients_wanted() -> None:
    layer, right = made("LSTM", "torch"), made("LSTM", "reference")
    for one in (layer, right):
        one.weight_hh_l0.requires_grad_(False)
    for create_graph in (False, True):
        got, expected = (
            torch.autograd.grad(one(data())[1][1].sum(), [one.weight_ih_l0, one.bias_hh_l0], create_graph=create_graph)
            for one in (layer, right)
        )
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class NoGradient(torch.autograd.Function):
    """Hands no gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


def test_no_gradient_to_hand_on() -> None:
    layer = made("LSTM", "torch")
    NoGradient.apply(layer(data())[0]).sum().backward()
    assert layer.weight_hh_l0.grad is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_within_activation_checkpointing(use_reentrant: bool) -> None:
    layer, x = made("LSTM", "torch"), data().requires_grad_()
    expected = torch.autograd.grad(layer(x)[0].square().sum(), x)[0]
    outputs = torch.utils.checkpoint.checkpoint(lambda y: layer(y)[0], x, use_reentrant=use_reentrant)
    outputs.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_under_autocast(name: str) -> None:
    right = second_order(made(name, "reference"), data())
    for engine in ("torch", "reference"):
        layer = made(name, engine, torch.float32)
        x = data(torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs, final = layer(x)
            fields = [final] if isinstance(final, Tensor) else list(final)
            loss = outputs.float().square().sum() + sum(field.float().sin().sum() for field in fields)
        first = torch.autograd.grad(loss, [x, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, *layer.parameters()])
        for a, b in zip([*first, *second], right, strict=True):
            # bfloat16 keeps 8 bits: some hundredths after two passes back through five steps.
            assert (a.double() - b).norm() <= 0.1 * b.norm()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_penalty_trains(name: str, training: bool) -> None:
    layer = made(name, "auto", torch.float32).train(training)
    readout = nn.Linear(H, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=0.05)
    penalties = []
    for _ in range(15):
        x = data(torch.float32).requires_grad_()
        slopes = torch.autograd.grad(readout(layer(x)[0]).sum(), x, create_graph=True)[0]
        penalty = (slopes.norm(dim=-1) - 1).square().mean()
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.8 * penalties[0]


def refusal(layer: Any, x: Tensor, **arguments: Any) -> str:
    refused = dict(tt.kernels.explain(layer, x, **arguments).choices[0].refused)
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
def test_nothing_to_do_is_left_to_the_reference(shape: tuple[int, ...]) -> None:
    layer = made("LSTM", "auto")
    assert "at least one time step and one sequence" in refusal(made("LSTM", "auto"), torch.zeros(shape).double())
    outputs, (h, c) = layer(torch.zeros(shape, dtype=torch.float64))
    assert outputs.shape == (*shape[:2], H)
    assert h.shape == c.shape == (1, shape[1], H)


# torch builds its own forward derivatives with torch.jit.script when the first is asked for.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_func_finds_the_reference_by_itself(name: str) -> None:
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
