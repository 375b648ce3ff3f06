"""What every cell has to pass on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.kernels.native import library

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def check_cell() -> Callable[..., None]:
    """Engines agree in float64, sequences can be cut, padding changes nothing, gradients are those of differences."""

    def check(cell: Any, *, engine: str = "native") -> None:
        cell = cell.double()
        x, state = _data(cell, steps=6, batch=3)
        expected = "reference" if library.missing_reason() else engine
        assert tt.kernels.explain(cell, x).engines == (expected,)
        resets = torch.zeros(6, 3, dtype=torch.bool)
        resets[2, 1] = True
        for options in ({}, {"lengths": [6, 0, 4]}, {"lengths": [1, 5, 6], "reverse": True}, {"resets": resets}):
            for got, right in zip(
                *(_results(cell, x, state, e, options) for e in (expected, "reference")), strict=True
            ):
                torch.testing.assert_close(got, right, **TIGHT)
        _cut_in_two(cell, x, state)
        _padding(cell, x, state)
        _gradients(cell)

    return check


def _data(cell: Any, steps: int, batch: int) -> tuple[Tensor, Any]:
    random = torch.Generator().manual_seed(steps)
    x = torch.randn(steps, batch, cell.input_size, generator=random, dtype=torch.float64)
    state = (torch.randn(batch, size, generator=random, dtype=torch.float64) for size in cell.state_sizes())
    return x, cell.State(*state)


def _results(cell: Any, x: Tensor, state: Any, engine: str, options: dict[str, Any]) -> list[Tensor]:
    """Outputs, final state, and the gradients of a loss in which every element counts otherwise."""
    x, state = x.clone().requires_grad_(), [field.clone().requires_grad_() for field in state]
    outputs, final = tt.unfold(cell, x, state, engine=engine, **options)
    random = torch.Generator().manual_seed(5)
    loss = torch.stack([(r * torch.randn(r.shape, generator=random, dtype=r.dtype)).sum() for r in (outputs, *final)])
    return [outputs, *final, *torch.autograd.grad(loss.sum(), [x, *state, *cell.parameters()])]


def _cut_in_two(cell: Any, x: Tensor, state: Any) -> None:
    whole, final = tt.unfold(cell, x, state)
    first, between = tt.unfold(cell, x[:2], state)
    second, end = tt.unfold(cell, x[2:], between)
    torch.testing.assert_close(torch.cat([first, second]), whole, **TIGHT)
    torch.testing.assert_close(tuple(end), tuple(final), **TIGHT)


def _padding(cell: Any, x: Tensor, state: Any) -> None:
    outputs, final = tt.unfold(cell, x, state, lengths=[6, 0, 3])
    alone, own = tt.unfold(cell, x[:3, 2:], [field[2:] for field in state])
    torch.testing.assert_close(outputs[:3, 2:], alone, **TIGHT)
    torch.testing.assert_close([field[2:] for field in final], list(own), **TIGHT)
    assert not outputs[:, 1].any()
    assert all(torch.equal(after[1], before[1]) for after, before in zip(final, state, strict=True))


def _gradients(cell: Any) -> None:
    names, parameters = zip(*cell.named_parameters(), strict=True)
    x, state = _data(cell, steps=3, batch=2)

    def outputs(x: Tensor, *values: Tensor) -> Any:
        unfolded = Unfolding(cell, names)
        return torch.func.functional_call(unfolded, dict(zip(unfolded.names, values, strict=True)), (x, state))

    leaves = [x, *(p.detach().clone() for p in parameters)]
    assert torch.autograd.gradcheck(outputs, [leaf.requires_grad_() for leaf in leaves], fast_mode=True)


class Unfolding(torch.nn.Module):
    """tt.unfold as a module, so that parameters can be handed in."""

    def __init__(self, cell: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.cell = cell
        self.names = [f"cell.{name}" for name in names]

    def forward(self, x: Tensor, state: Any) -> Tensor:
        return tt.unfold(self.cell, x, state, lengths=[3, 2], engine="reference")[0]
