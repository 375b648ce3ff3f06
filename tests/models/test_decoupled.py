"""All steps at once, in parts: the values and gradients of the plain operations, however the rows are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from throughtime.models import decoupled


def example(rows: int = 23) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((rows, 3), (5, 3), (5,), (4, 5), (4,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoupled, "_CACHED", 40)  # parts of eight rows


@pytest.mark.parametrize("rows", [0, 1, 8, 23])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_values_and_gradients_are_those_of_the_plain_operations(rows: int, used: tuple[bool, bool]) -> None:
    inputs = example(rows)
    weights = [torch.randn(rows, size, dtype=torch.float64) for size in (4, 5)]

    def loss(function: object) -> Tensor:
        found = function(*inputs)  # type: ignore[operator]
        return sum((y * w).sum() for y, w, use in zip(found, weights, used, strict=True) if use)  # type: ignore[return-value]

    ours, plain = loss(decoupled.tanh_and_readout), loss(decoupled._plain)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad(ours, inputs, allow_unused=True)
    expected = torch.autograd.grad(plain, inputs, allow_unused=True)
    for a, b, tensor in zip(found, expected, inputs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(tensor) if b is None else b)


def test_first_and_second_derivatives() -> None:
    inputs = example(11)
    assert torch.autograd.gradcheck(decoupled.tanh_and_readout, inputs)
    assert torch.autograd.gradgradcheck(decoupled.tanh_and_readout, inputs)
