"""Gradients that vanish become zero, not denormal numbers, with which processors are a hundred times slower."""

from __future__ import annotations

import pytest
import torch

import throughtime as tt
from throughtime.kernels.native import library

pytestmark = pytest.mark.skipif(library.missing_reason() is not None, reason="the native engine is missing")
SMALLEST = torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("threads", [1, 2])
def test_a_vanishing_gradient_ends_in_zeros(threads: int) -> None:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer = tt.nn.RNN(64, 64, engine="native")
        torch.nn.init.eye_(layer.weight_hh_l0)
        layer.weight_hh_l0.data *= 0.05
        inputs = torch.randn(60, 32, 64, requires_grad=True)
        layer(inputs)[0][-1].sum().backward()
    finally:
        torch.set_num_threads(before)
    sizes = inputs.grad.abs().amax((1, 2))  # (T,)
    assert sizes[-1] > 0.01
    assert sizes[0] == 0
    assert not ((inputs.grad != 0) & (inputs.grad.abs() < SMALLEST)).any()


def test_the_caller_keeps_denormal_numbers() -> None:
    tt.nn.LSTM(8, 8, engine="native")(torch.randn(3, 2, 8))
    tiny = torch.tensor(SMALLEST) * torch.tensor(0.25)
    assert 0 < tiny < SMALLEST
    assert 0 < (torch.full((100_000,), SMALLEST) * 0.25).min() < SMALLEST
