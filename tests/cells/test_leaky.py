"""Leaky units (section 10.9.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import throughtime as tt
from throughtime.cells import spread_alphas
from throughtime.errors import ShapeError, UsageError

I, H = 3, 4  # noqa: E741


@pytest.mark.parametrize(
    "make",
    [
        lambda: tt.nn.LeakyCell(I, H),
        lambda: tt.nn.LeakyCell(I, H, [0.0, 0.2, 0.9, 0.999]),
        lambda: tt.nn.LeakyCell(I, H, spread_alphas(H), learned=True),
    ],
)
def test_it_is_a_cell_on_every_engine(make: Any, check_cell: Callable[..., None]) -> None:
    torch.manual_seed(1)
    check_cell(make())


def test_a_step_is_the_equation() -> None:
    torch.manual_seed(2)
    cell = tt.nn.LeakyCell(I, H, [0.1, 0.5, 0.7, 0.9], learned=True).double()
    x, h = torch.randn(2, I, dtype=torch.float64), torch.randn(2, H, dtype=torch.float64)
    after = cell(x, h).h
    for row in range(2):
        for unit in range(H):
            a = cell.bias_ih[unit] + cell.weight_hh[unit] @ h[row] + cell.weight_ih[unit] @ x[row]
            alpha = [0.1, 0.5, 0.7, 0.9][unit]
            expected = alpha * h[row, unit] + (1 - alpha) * torch.tanh(a)
            assert after[row, unit].item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_leak_it_is_the_plain_cell() -> None:
    torch.manual_seed(3)
    leaky, plain = tt.nn.LeakyCell(I, H, 0.0), tt.nn.RNNCell(I, H)
    plain.load_state_dict({**{k: v for k, v in leaky.state_dict().items() if k in plain.state_dict()},
                           "bias_hh": torch.zeros(H)})  # fmt: skip
    x = torch.randn(5, 2, I)
    torch.testing.assert_close(tt.unfold(leaky, x)[0], tt.unfold(plain, x)[0])
    assert not leaky.time_constants.any()


def test_after_its_time_constant_a_unit_remembers_one_part_in_e() -> None:
    cell = tt.nn.LeakyCell(I, H, math.exp(-1 / 20)).double()
    torch.testing.assert_close(cell.time_constants, torch.full((H,), 20.0, dtype=torch.float64), rtol=1e-5, atol=0)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    start = torch.ones(1, H, dtype=torch.float64)
    _, final = tt.unfold(cell, torch.zeros(20, 1, I, dtype=torch.float64), (start,))
    torch.testing.assert_close(final.h, start / math.e, rtol=1e-5, atol=0)


def test_the_spread_reaches_from_the_shortest_to_the_longest() -> None:
    constants = tt.nn.LeakyCell(I, 5, spread_alphas(5, 1.0, 16.0)).time_constants
    torch.testing.assert_close(constants, torch.tensor([1.0, 2, 4, 8, 16]), rtol=1e-4, atol=0)


def test_a_learned_alpha_learns_and_stays_between_zero_and_one() -> None:
    torch.manual_seed(4)
    cell = tt.nn.LeakyCell(I, H, 0.5, learned=True)
    torch.testing.assert_close(cell.alpha, torch.full((H,), 0.5))
    tt.unfold(cell, torch.randn(5, 2, I))[0].sum().backward()
    assert cell.logit_alpha.grad is not None
    assert cell.logit_alpha.grad.ne(0).all()
    with torch.no_grad():
        cell.logit_alpha += 100 * cell.logit_alpha.grad
    assert ((cell.alpha >= 0) & (cell.alpha <= 1)).all()


def test_a_fixed_alpha_is_saved_and_is_no_parameter() -> None:
    cell, other = tt.nn.LeakyCell(I, H, 0.3), tt.nn.LeakyCell(I, H, 0.8)
    assert {name for name, _ in cell.named_parameters()} == {"weight_ih", "weight_hh", "bias_ih"}
    other.load_state_dict(cell.state_dict())
    assert torch.equal(other.alpha, cell.alpha)
    assert "time constants 0.831..0.831 steps" in repr(cell)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tt.nn.LeakyCell(I, H, [0.1, 0.2]), ShapeError,
         r"LeakyCell: alpha must be one number, or one for each of 4 units, got shape \(2,\)"),
        (lambda: tt.nn.LeakyCell(I, H, 1.0), UsageError, r"LeakyCell: alpha must lie in \[0, 1\), got 1..1"),
        (lambda: tt.nn.LeakyCell(I, H, 0.0, learned=True), UsageError,
         r"LeakyCell: alpha must lie in \(0, 1\) where it is learned, got 0..0"),
        (lambda: spread_alphas(3, 5.0, 2.0), UsageError,
         "spread_alphas: expected 0 < shortest <= longest, got 5.0 and 2.0"),
        (lambda: tt.unfold(tt.nn.LeakyCell(I, H), torch.zeros(2, 1, I).double()), ShapeError,
         "LeakyCell: inputs must be torch.float32 as the weights are, got torch.float64; use .*"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_answered_by_one_line(
    make: Any, error: type[Exception], message: str, unchecked_shapes: None
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make()
