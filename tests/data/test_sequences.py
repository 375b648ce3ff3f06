"""Batches of whole sequences: every sequence once in an epoch, the same at every asking, cut to what they hold."""

from __future__ import annotations

import pytest
import torch

from throughtime.data.sequences import GeneratedSource, Sequences, TensorSource
from throughtime.errors import ShapeError, UsageError


def numbered(count: int, **parts: torch.Tensor) -> Sequences:
    return Sequences(torch.arange(count).expand(5, count), **parts)


def test_an_epoch_holds_every_sequence_once_in_an_order_of_its_own() -> None:
    source = TensorSource(numbered(10), 4, seed=3)
    epochs = [torch.cat([source.batch(3 * epoch + i).targets[0] for i in range(3)]).tolist() for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert source.batches_per_epoch == 3


def test_a_batch_is_a_function_of_its_number() -> None:
    source, again = TensorSource(numbered(10), 4, seed=3), TensorSource(numbered(10), 4, seed=3)
    later = again.batch(7).targets
    assert torch.equal(source.batch(2).targets, again.batch(2).targets)
    assert torch.equal(source.batch(7).targets, later)
    assert not torch.equal(TensorSource(numbered(10), 4, seed=4).batch(7).targets, later)

    made = GeneratedSource(lambda n, g: Sequences(torch.rand(3, n, 1, generator=g)), 2, seed=1)
    assert torch.equal(made.batch(5).targets, made.batch(5).targets)
    assert not torch.equal(made.batch(5).targets, made.batch(6).targets)


def test_a_selection_is_cut_to_its_longest_sequence() -> None:
    whole = numbered(4, inputs=torch.zeros(5, 4, 2), lengths=torch.tensor([1, 5, 3, 0]))
    part = whole.select(torch.tensor([2, 0]))
    assert part.targets.tolist() == [[2, 0]] * 3
    assert part.inputs is not None
    assert part.inputs.shape == (3, 2, 2)
    assert part.predictions == 4
    assert whole.predictions == 9
    assert whole.select(torch.tensor([3])).targets.shape == (0, 1)


def test_one_target_for_a_whole_sequence() -> None:
    whole = Sequences(torch.arange(4), torch.zeros(5, 4, 2), lengths=torch.tensor([1, 5, 3, 0]), summary=True)
    assert whole.select(torch.tensor([2, 0])).targets.tolist() == [2, 0]
    assert whole.predictions == len(whole) == 4
    assert numbered(3).predictions == 15


def test_parts_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"expected as many sequences in every part, got \{'targets': 4, 'context': 3\}"
    ):
        Sequences(torch.zeros(5, 4), context=torch.zeros(3, 2))
    with pytest.raises(ShapeError, match=r"targets must be \(T, N\) or \(T, N, values\), got \(4,\); .* summary=True"):
        Sequences(torch.zeros(4))
    with pytest.raises(ShapeError, match=r"lengths must be a tensor \(N,\), got list"):
        Sequences(torch.zeros(5, 2), lengths=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="expected inputs or a context, got both; no design takes both"):
        Sequences(torch.zeros(5, 2), torch.zeros(5, 2, 1), torch.zeros(2, 1))
    with pytest.raises(UsageError, match="TensorSource: expected sequences, got none; give at least one"):
        TensorSource(numbered(0), 4)
    with pytest.raises(UsageError, match="TensorSource: batch_size must be at least 1 sequence, got 0"):
        TensorSource(numbered(3), 0)
