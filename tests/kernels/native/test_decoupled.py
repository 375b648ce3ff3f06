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


def plain_losses(rows: Rows, targets: Tensor, inside: Tensor, batch: int) -> Tensor:
    """The same losses by their equations."""
    x, U, b, V, c = rows
    fed = torch.nn.functional.one_hot(targets, len(c)).to(x) if targets.dtype == torch.int64 else targets
    fed = torch.cat([torch.zeros_like(fed[:batch]), fed[:-batch]])
    o = torch.tanh(torch.cat([x, fed], -1) @ U.mT + b) @ V.mT + c
    if targets.dtype == torch.int64:
        nats = torch.nn.functional.cross_entropy(o, targets, reduction="none")
    else:
        nats = -torch.distributions.Normal(o, 1).log_prob(targets).sum(-1)
    return torch.where(inside, nats, 0)


def taught(
    sizes: tuple[int, int, int, int], *, kind: str, ragged: bool, batch: int
) -> tuple[Rows, Tensor, Tensor | None]:
    """Rows, whose U reads targets too, the targets, and which rows count."""
    count, _, _, outputs = sizes
    rows = some(count, sizes[1] + outputs, *sizes[2:])
    rows = rows._replace(x=rows.x[:, : sizes[1]].contiguous())
    generator = torch.Generator().manual_seed(count + batch)
    categories = torch.randint(outputs, (count,), generator=generator)
    numbers = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    inside = torch.rand(count, generator=generator) < 0.7
    return rows, categories if kind == "categories" else numbers, inside if ragged else None


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", ["categories", "numbers"])
@pytest.mark.parametrize("sizes", SIZES)
def test_losses_follow_the_equations(isa: str, sizes: tuple[int, int, int, int], kind: str, ragged: bool) -> None:
    for batch in {1, min(4, sizes[0])}:
        rows, targets, inside = taught(sizes, kind=kind, ragged=ragged, batch=batch)
        leaves = Rows(*(tensor.clone().requires_grad_() for tensor in rows))
        counted = torch.ones(sizes[0], dtype=torch.bool) if inside is None else inside
        expected = plain_losses(leaves, targets, counted, batch)
        gradients = torch.autograd.grad(expected.sum(), leaves[1:])
        for dtype, close in ((torch.float64, 1e-12), (torch.float32, 4e-5)):
            given = Rows(*(tensor.to(dtype) for tensor in rows))
            of_type = targets if kind == "categories" else targets.to(dtype)
            nats, found = decoupled.losses(given, of_type, inside, batch=batch, with_gradients=True)
            torch.testing.assert_close(nats.double(), expected, rtol=close, atol=close)
            for one, other in zip(found, gradients, strict=True):
                largest = max(1.0, float(other.abs().max()))
                torch.testing.assert_close(one.double(), other, rtol=close, atol=close * largest)
            alone, nothing = decoupled.losses(given, of_type, inside, batch=batch, with_gradients=False)
            assert torch.equal(alone, nats)
            assert nothing == ()


def test_losses_do_not_depend_on_threads(isa: str, threads: Callable[[int], None]) -> None:
    rows, targets, inside = taught((3000, 20, 70, 9), kind="categories", ragged=True, batch=30)
    given = Rows(*(tensor.float() for tensor in rows))
    results = []
    for count in (1, 2, 3):
        threads(count)
        nats, found = decoupled.losses(given, targets, inside, batch=30, with_gradients=True)
        results.append([nats, *found])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_no_row_counts(isa: str) -> None:
    rows, targets, _ = taught((5, 3, 17, 2), kind="categories", ragged=False, batch=1)
    none = torch.zeros(5, dtype=torch.bool)
    nats, found = decoupled.losses(rows, targets, none, batch=1, with_gradients=True)
    assert not nats.any()
    assert not any(gradient.any() for gradient in found)


def test_outputs_that_are_no_numbers_have_losses_that_are_none() -> None:
    rows, targets, _ = taught((5, 3, 17, 4), kind="categories", ragged=False, batch=1)
    rows.readout[2, 3] = float("nan")
    assert decoupled.losses(rows, targets, None, batch=1, with_gradients=False)[0].isnan().all()
