"""Readout and loss in one, by whichever engine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from throughtime.errors import EngineError, ShapeError
from throughtime.kernels.native import library
from throughtime.layers import IGNORED, linear_cross_entropy

native = pytest.mark.skipif(not library.available_isas(), reason="the native engine is not built here")
engines = pytest.mark.parametrize("engine", ["auto", pytest.param("native", marks=native), "torch"])


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h (4, 2, 3), weight (5, 3), bias (5,), targets (4, 2), of which one does not count."""
    generator = torch.Generator().manual_seed(0)
    h, weight, bias = (torch.randn(shape, generator=generator) for shape in ((4, 2, 3), (5, 3), (5,)))
    targets = torch.randint(5, (4, 2), generator=generator)
    targets[3, 1] = IGNORED
    return h, weight, bias, targets


@engines
def test_each_target_costs_minus_its_log_probability(engine: str) -> None:
    h, weight, bias, targets = tensors()
    nats = linear_cross_entropy(h, weight, bias, targets, engine=engine)
    assert nats.shape == (4, 2)
    for t in range(4):
        for b in range(2):
            p = (weight @ h[t, b] + bias).softmax(0)
            expected = -math.log(float(p[targets[t, b]])) if (t, b) != (3, 1) else 0.0
            assert float(nats[t, b]) == pytest.approx(expected, rel=1e-5)


@engines
def test_without_a_bias_equal_logits_cost_log_of_the_vocabulary_each(engine: str) -> None:
    nats = linear_cross_entropy(torch.zeros(3, 2), torch.ones(7, 2), None, torch.arange(3), engine=engine)
    torch.testing.assert_close(nats, torch.full((3,), math.log(7)))


@engines
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3, 4)], ids=str)
def test_positions_in_any_shape(engine: str, shape: tuple[int, ...]) -> None:
    h = torch.randn(*shape, 3, requires_grad=True)
    nats = linear_cross_entropy(h, torch.randn(5, 3), None, torch.ones(shape, dtype=torch.int64), engine=engine)
    assert nats.shape == shape
    nats.sum().backward()
    assert h.grad.shape == h.shape


@engines
def test_half_precision_logits_are_summed_in_single_precision(engine: str) -> None:
    h, weight = torch.zeros(300, 4, dtype=torch.bfloat16), torch.zeros(7, 4, dtype=torch.bfloat16)
    nats = linear_cross_entropy(h, weight, None, torch.zeros(300, dtype=torch.int64), engine=engine)
    assert nats.dtype == torch.float32
    assert float(nats.sum()) == pytest.approx(300 * math.log(7), rel=1e-5)


# torch builds its own forward derivatives with torch.jit.script when the first is asked for.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_transforms_of_functions_take_the_plain_path() -> None:
    h, weight, bias, targets = tensors()

    def total(weight: Tensor) -> Tensor:
        return linear_cross_entropy(h, weight, bias, targets).sum()

    leaf = weight.clone().requires_grad_()
    torch.autograd.backward(total(leaf))
    torch.testing.assert_close(torch.func.grad(total)(weight), leaf.grad)
    each = torch.func.vmap(lambda h, targets: linear_cross_entropy(h, weight, bias, targets))(h, targets)
    torch.testing.assert_close(each, linear_cross_entropy(h, weight, bias, targets))
    _, tangent = torch.func.jvp(total, (weight,), (torch.ones_like(weight),))
    torch.testing.assert_close(tangent, leaf.grad.sum())


@engines
def test_a_target_out_of_bounds(engine: str) -> None:
    h, weight, bias, targets = tensors()
    targets[0, 0] = 5
    with pytest.raises(IndexError, match=r"5"):
        linear_cross_entropy(h, weight, bias, targets, engine=engine)


def test_an_engine_asked_for_by_name_runs_or_raises() -> None:
    h, weight, bias, targets = tensors()
    with pytest.raises(EngineError, match="engine must be one of auto, native, torch, got 'fast'"):
        linear_cross_entropy(h, weight, bias, targets, engine="fast")
    with pytest.raises(EngineError, match=r"engine='native' cannot run this: .*; engine='auto' can"):
        linear_cross_entropy(h, weight, bias, targets.int(), engine="native")
    with pytest.raises(RuntimeError):  # PyTorch's own word on int32 targets
        linear_cross_entropy(h, weight, bias, targets.int())


@pytest.mark.usefixtures("unchecked_shapes")
def test_sizes_that_do_not_fit() -> None:
    h, weight, bias, targets = tensors()
    fault = r"h must be \(..., H\), weight \(V, H\) and targets \(...\), got "
    with pytest.raises(ShapeError, match=fault + r"\(4, 2, 3\), \(5, 2\) and \(4, 2\)"):
        linear_cross_entropy(h, weight[:, :2], bias, targets)
    with pytest.raises(ShapeError, match=fault + r"\(4, 2, 3\), \(5, 3\) and \(3, 2\)"):
        linear_cross_entropy(h, weight, bias, targets[:3])
    with pytest.raises(ShapeError, match=r"bias must be \(5,\), got \(4,\)"):
        linear_cross_entropy(h, weight, bias[:4], targets)


@engines
def test_it_is_cross_entropy_of_linear(engine: str) -> None:
    h, weight, bias, targets = tensors()
    expected = functional.cross_entropy(
        functional.linear(h, weight, bias).flatten(0, 1), targets.flatten(), reduction="none"
    )
    torch.testing.assert_close(linear_cross_entropy(h, weight, bias, targets, engine=engine).flatten(), expected)
