"""Skip connections through time (section 10.9.1)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import UsageError

I, H = 3, 4  # noqa: E741


@pytest.mark.parametrize("delay", [2, 3, 5])
def test_it_is_a_cell_on_every_engine(delay: int, check_cell: Callable[..., None]) -> None:
    torch.manual_seed(1)
    check_cell(tt.nn.SkipCell(I, H, delay))


def test_a_delay_of_more_fields_than_the_native_engine_holds_runs_on_the_reference(
    check_cell: Callable[..., None],
) -> None:
    check_cell(tt.nn.SkipCell(1, 2, 20), engine="reference")


@pytest.mark.parametrize("delay", [2, 4])
def test_every_state_is_made_of_the_one_before_and_the_one_a_delay_ago(delay: int) -> None:
    torch.manual_seed(2)
    cell = tt.nn.SkipCell(I, H, delay).double()
    x = torch.randn(7, 2, I, dtype=torch.float64)
    zero = torch.zeros(2, H, dtype=torch.float64)
    h: dict[int, Tensor] = dict.fromkeys(range(-delay, 0), zero)
    for t in range(7):
        a = x[t] @ cell.weight_ih.mT + cell.bias_ih + h[t - 1] @ cell.weight_hh.mT + h[t - delay] @ cell.weight_skip.mT
        h[t] = torch.tanh(a)
    outputs, final = tt.unfold(cell, x)
    torch.testing.assert_close(outputs, torch.stack([h[t] for t in range(7)]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tuple(final), tuple(h[6 - k] for k in range(delay)), rtol=1e-12, atol=1e-12)
    assert final._fields == ("h", *(f"h_{k}" for k in range(1, delay)))


def test_by_the_skip_alone_a_gradient_passes_at_multiples_of_the_delay_only() -> None:
    torch.manual_seed(3)
    cell = tt.nn.SkipCell(I, H, 3).double()
    with torch.no_grad():
        cell.weight_hh.zero_()
    x = torch.randn(7, 1, I, dtype=torch.float64, requires_grad=True)
    tt.unfold(cell, x)[0][-1].sum().backward()
    assert x.grad is not None
    assert [bool(step.any()) for step in x.grad] == [True, False, False, True, False, False, True]


def test_it_can_be_copied_and_pickled() -> None:
    cell, x = tt.nn.SkipCell(I, H, 3), torch.randn(4, 2, I)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert torch.equal(tt.unfold(other, x)[0], tt.unfold(cell, x)[0])


def test_a_delay_of_one_step_is_the_plain_cell() -> None:
    with pytest.raises(UsageError, match=r"^SkipCell: delay must be at least 2 time steps, got 1; a delay of 1 is tt"):
        tt.nn.SkipCell(I, H, 1)
