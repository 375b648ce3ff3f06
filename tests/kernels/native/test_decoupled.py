"""Decoupled steps in C++ against their equations, and the laws that they keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from throughtime.errors import EngineError
from throughtime.kernels.native import decoupled, library
from throughtime.kernels.native.decoupled import Rows
from throughtime.models.decoupled import tanh_and_readout

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

# N, X, H, O: around one vector, one panel and one block of rows; more inputs than a block of rows of the products; more
# of h than waits in a cache, in whole lines and not.
SIZES = [
    (1, 1, 1, 1),
    (5, 3, 17, 2),
    (113, 64, 33, 40),
    (300, 1, 64, 129),
    (500, 230, 40, 3),
    (4000, 9, 5, 1),
    (1500, 7, 208, 3),
    (1500, 7, 210, 3),
]


def some(rows: int, inputs: int, units: int, outputs: int) -> Rows:
    generator = torch.Generator().manual_seed(rows + inputs + units + outputs)
    shapes = ((rows, inputs), (units, inputs), (units,), (outputs, units), (outputs,))
    return Rows(*(torch.randn(shape, generator=generator, dtype=torch.float64) * 0.4 for shape in shapes))


def with_gradients(rows: Rows, engine: str, *, of_h: bool) -> list[Tensor]:
    """o, h and all gradients of a loss of o, and of h where that is wanted."""
    leaves = [tensor.clone().requires_grad_() for tensor in rows]
    o, h = tanh_and_readout(*leaves, engine=engine)
    loss = o.square().sum() / len(o)
    if of_h:
        loss = loss + h.sin().sum() / len(o)
    loss.backward()
    return [o.detach(), h.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("of_h", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_it_follows_the_equations(isa: str, sizes: tuple[int, int, int, int], of_h: bool) -> None:
    rows = some(*sizes)
    assert decoupled.refusal(rows) is None
    expected = with_gradients(rows, "torch", of_h=of_h)
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        found = with_gradients(Rows(*(tensor.to(dtype) for tensor in rows)), "native", of_h=of_h)
        assert len(found) == len(expected) == 7
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=close, atol=close)


def test_h_alone_has_gradients_too() -> None:
    rows = some(20, 3, 40, 2)
    found = []
    for engine in ("native", "torch"):
        leaves = [tensor.clone().requires_grad_() for tensor in rows]
        tanh_and_readout(*leaves, engine=engine)[1].square().sum().backward()
        found.append([leaves[1].grad, leaves[2].grad])
    torch.testing.assert_close(*found)


def test_threads_change_nothing(isa: str, threads: Callable[[int], None]) -> None:
    rows = Rows(*(tensor.float() for tensor in some(3000, 20, 70, 9)))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(with_gradients(rows, "native", of_h=True))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_what_it_does_not_take() -> None:
    rows = some(4, 3, 2, 1)
    for other in (rows._replace(x=rows.x.float()), Rows(*(tensor.bfloat16() for tensor in rows))):
        with pytest.raises(EngineError, match="engine='native': decoupled steps are native in float32 or float64"):
            tanh_and_readout(*other, engine="native")
    assert tanh_and_readout(*(tensor.bfloat16() for tensor in rows))[0].dtype == torch.bfloat16
    o, h = tanh_and_readout(*rows._replace(x=rows.x[:0]), engine="native")
    assert (o.shape, h.shape) == ((0, 1), (0, 2))


def test_the_gradient_is_differentiable_itself() -> None:
    leaves = [tensor.requires_grad_() for tensor in some(3, 2, 3, 2)]
    assert torch.autograd.gradgradcheck(lambda *given: tanh_and_readout(*given, engine="native")[0], leaves)
