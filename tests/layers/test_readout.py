"""Readout and loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from throughtime.errors import ShapeError
from throughtime.layers import IGNORED, Readout, SequenceLoss


def test_a_readout_is_an_affine_map_of_the_last_axis() -> None:
    readout = Readout(3, 5)
    h = torch.randn(4, 2, 3)
    torch.testing.assert_close(readout(h), h @ readout.weight_ho.T + readout.bias_ho)
    assert not readout.bias_ho.any()
    assert 0 < readout.weight_ho.abs().max() <= 3**-0.5


def test_a_tied_readout_shares_the_embeddings_weights() -> None:
    embedding = nn.Embedding(5, 3)
    readout = Readout(3, 5, tied_weight=embedding.weight)
    assert readout.weight_ho is embedding.weight
    readout(torch.randn(2, 3)).sum().backward()
    assert embedding.weight.grad.any()


def test_a_tied_weight_that_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"tied weight must be \(5, 3\), got \(5, 4\); the embedding size must equal"):
        Readout(3, 5, tied_weight=nn.Embedding(5, 4).weight)


def test_the_loss_is_the_sum_of_what_each_step_costs() -> None:
    logits = torch.randn(4, 2, 5, dtype=torch.float64)
    targets = torch.randint(5, (4, 2))
    targets[3, 1] = IGNORED
    by_hand = -sum(
        math.log(float(logits[t, b].softmax(0)[targets[t, b]])) for t in range(4) for b in range(2) if (t, b) != (3, 1)
    )
    loss = SequenceLoss()(logits, targets)
    assert loss.count == 7
    assert float(loss.total) == pytest.approx(by_hand, rel=1e-12)
    assert SequenceLoss()(logits, targets, count=3).count == 3


def test_equal_logits_cost_log_of_the_vocabulary_each() -> None:
    loss = SequenceLoss()(torch.zeros(3, 2, 7), torch.zeros(3, 2, dtype=torch.int64))
    assert float(loss.total) == pytest.approx(6 * math.log(7))


def test_the_loss_of_half_precision_logits_is_summed_in_single_precision() -> None:
    loss = SequenceLoss()(torch.zeros(300, 2, 7, dtype=torch.bfloat16), torch.zeros(300, 2, dtype=torch.int64))
    assert loss.total.dtype == torch.float32
    assert float(loss.total) == pytest.approx(600 * math.log(7), rel=1e-5)


def test_nothing_to_predict_costs_nothing() -> None:
    loss = SequenceLoss()(torch.zeros(2, 1, 3), torch.full((2, 1), IGNORED))
    assert (float(loss.total), loss.count) == (0.0, 0)
