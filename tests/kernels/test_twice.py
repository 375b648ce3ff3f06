"""Derivatives of fused kernels, of any order, and graphs that are kept, freed, changed and checkpointed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.kernels.native import library

T, B, I, H = 5, 3, 2, 4  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
MISSING = library.missing_reason()
ENGINES = [pytest.param("native", marks=pytest.mark.skipif(MISSING is not None, reason=str(MISSING))), "torch"]
every_engine = pytest.mark.parametrize("engine", ENGINES)


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


@every_engine
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}])
@pytest.mark.parametrize("lengths", [None, [2, 0, 5]])
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_the_references(
    name: str, lengths: Any, options: Any, training: bool, engine: str
) -> None:
    fast, right = (made(name, one, **options).train(training) for one in (engine, "reference"))
    for a, b in zip(
        second_order(fast, data(), lengths=lengths), second_order(right, data(), lengths=lengths), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@every_engine
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_in_single_precision_where_onednn_runs(training: bool, engine: str) -> None:
    fast, right = made("LSTM", engine, torch.float32).train(training), made("LSTM", "reference").train(training)
    got = second_order(fast, data().float())
    expected = second_order(right, data())
    for a, b in zip(got, expected, strict=True):
        # A few roundings for each of T steps, relative to the size of the whole tensor.
        assert (a.double() - b).abs().max() <= 50 * torch.finfo(torch.float32).eps * b.abs().max()


@every_engine
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", ["stacked on itself", "state carried on", "resets"])
def test_a_path_that_comes_back_to_the_same_weights_counts_once(name: str, how: str, engine: str) -> None:
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

    for a, b in zip(gradients(engine), gradients("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_engine
@pytest.mark.parametrize("name", LAYERS)
def test_a_kept_graph_gives_the_same_gradients_again(name: str, engine: str) -> None:
    layer, x = made(name, engine, torch.float32), data(torch.float32).requires_grad_()
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


@every_engine
@pytest.mark.parametrize("name", LAYERS)
def test_a_freed_graph_says_so(name: str, engine: str) -> None:
    layer = made(name, engine, torch.float32)
    loss = layer(data(torch.float32))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@every_engine
def test_backward_frees_what_forward_kept(engine: str) -> None:
    layer = made("LSTM", engine, torch.float32)
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


@every_engine
def test_a_change_in_place_is_noticed(engine: str) -> None:
    layer, x = made("LSTM", engine, torch.float32), data(torch.float32).requires_grad_() * 1.0
    outputs, _ = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@every_engine
def test_only_some_gradients_wanted(engine: str) -> None:
    layer, right = made("LSTM", engine), made("LSTM", "reference")
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


@every_engine
def test_no_gradient_to_hand_on(engine: str) -> None:
    layer = made("LSTM", engine)
    NoGradient.apply(layer(data())[0]).sum().backward()
    assert layer.weight_hh_l0.grad is None


@every_engine
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_within_activation_checkpointing(use_reentrant: bool, engine: str) -> None:
    layer, x = made("LSTM", engine), data().requires_grad_()
    expected = torch.autograd.grad(layer(x)[0].square().sum(), x)[0]
    outputs = torch.utils.checkpoint.checkpoint(lambda y: layer(y)[0], x, use_reentrant=use_reentrant)
    outputs.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("engine", [*ENGINES, "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_under_autocast(name: str, engine: str) -> None:
    right = second_order(made(name, "reference"), data())
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


@every_engine
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_penalty_trains(name: str, training: bool, engine: str) -> None:
    layer = made(name, engine, torch.float32).train(training)
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
