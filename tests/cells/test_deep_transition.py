"""Deep transitions (section 10.5), and cells by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.cells import CELL_KINDS, cell_kind
from throughtime.errors import UsageError

I, H = 3, 4  # noqa: E741


@pytest.mark.parametrize(("depth", "skip", "input_depth"), [(2, False, 0), (2, True, 1), (4, True, 0), (3, False, 2)])
def test_it_is_a_cell_on_every_engine(
    depth: int, skip: bool, input_depth: int, check_cell: Callable[..., None]
) -> None:
    torch.manual_seed(1)
    check_cell(tt.nn.DeepTransitionCell(I, H, depth, skip=skip, input_depth=input_depth))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("input_depth", [0, 2])
def test_a_step_is_the_network_of_the_figure(skip: bool, input_depth: int) -> None:
    torch.manual_seed(2)
    cell = tt.nn.DeepTransitionCell(I, H, 3, skip=skip, input_depth=input_depth).double()
    x, h = torch.randn(2, I, dtype=torch.float64), torch.randn(2, H, dtype=torch.float64)
    seen: Tensor = x
    for layer in cell.input_layers[::2]:
        seen = torch.tanh(seen @ layer.weight.mT + layer.bias)
    z_1 = torch.tanh(cell.bias_ih + h @ cell.weight_hh.mT + seen @ cell.weight_ih.mT)
    z_2 = torch.tanh(cell.bias_deep[0] + z_1 @ cell.weight_deep[0].mT)
    a_3 = cell.bias_deep[1] + z_2 @ cell.weight_deep[1].mT
    expected = torch.tanh(a_3 + h @ cell.weight_skip.mT if cell.weight_skip is not None else a_3)
    torch.testing.assert_close(cell(x, (h,)).h, expected, rtol=1e-12, atol=1e-12)
    assert len(cell.input_layers) == 2 * input_depth


def test_with_the_transition_cut_the_skip_still_carries_the_gradient() -> None:
    gradients = []
    for skip in (True, False):
        torch.manual_seed(3)
        cell = tt.nn.DeepTransitionCell(I, H, skip=skip)
        with torch.no_grad():
            cell.weight_deep.zero_()
        start = torch.randn(1, H, requires_grad=True)
        tt.unfold(cell, torch.randn(4, 1, I), (start,))[0][-1].sum().backward()
        assert start.grad is not None
        gradients.append(bool(start.grad.any()))
    assert gradients == [True, False]


def test_the_layers_before_the_state_are_computed_for_all_steps_at_once() -> None:
    cell, shapes = tt.nn.DeepTransitionCell(I, H, input_depth=1), []
    cell.input_layers.register_forward_hook(lambda module, inputs, outputs: shapes.append(tuple(outputs.shape)))
    tt.unfold(cell, torch.zeros(7, 2, I), engine="reference")
    assert shapes == [(7, 2, H)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tt.nn.DeepTransitionCell(I, H, 1),
         "DeepTransitionCell: depth must be at least 2, got 1; one layer is tt.nn.RNNCell"),
        (lambda: tt.nn.DeepTransitionCell(I, H, input_depth=-1),
         r"DeepTransitionCell: input_depth must be 0 \(none\) or more, got -1"),
        (lambda: cell_kind("lstn"),
         "cell_kind: cell must be one of rnn, lstm, gru, leaky, skip, deep_transition, got 'lstn'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_answered_by_one_line(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize("name", CELL_KINDS)
def test_a_cell_by_name_learns(name: str) -> None:
    torch.manual_seed(4)
    cell = cell_kind(name)(I, H)
    assert (cell.input_size, cell.hidden_size) == (I, H)
    assert type(cell).__name__.lower().removesuffix("cell") == name.replace("_", "")
    tt.unfold(cell, torch.randn(9, 2, I))[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in cell.parameters())
