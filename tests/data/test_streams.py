"""Streams: every token once, rows contiguous over batches, the same rows whatever the number of processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from throughtime.data import EvaluationStreams, TextSource, TokenFile, Tokenizer, TokenStreams, prepare
from throughtime.errors import DataError
from throughtime.layers import IGNORED

BORDER = 256


@dataclass(frozen=True)
class InMemory:
    """What the streams read of a `TokenFile`."""

    tokens: npt.NDArray[np.uint16]
    border_id: int = BORDER


def prepared(lengths: list[int]) -> TokenFile:
    """Documents of these lengths, in which every token tells its place as far as bytes can."""
    count = iter(range(10**6))
    documents = [[next(count) % 251 for _ in range(length)] for length in lengths]
    ids = [BORDER, *(index for document in documents for index in (*document, BORDER))]
    return cast(TokenFile, InMemory(np.array(ids, np.uint16)))


LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=8)
SIZES = {"batch_size": st.integers(1, 4), "window": st.integers(1, 9), "world_size": st.integers(1, 3)}


@given(lengths=LENGTHS, **SIZES)
def test_training_rows_go_on_from_batch_to_batch(
    lengths: list[int], batch_size: int, window: int, world_size: int
) -> None:
    tokens = prepared(lengths)
    everything = tokens.tokens[:].tolist()
    rows = batch_size * world_size
    assume((len(everything) - 1) // rows >= window)
    seen: list[int] = []
    for rank in range(world_size):
        streams = TokenStreams(tokens, batch_size, window, rank=rank, world_size=world_size)
        batches = [streams.batch(index) for index in range(streams.batches_per_epoch)]
        assert all(batch.inputs.shape == batch.targets.shape for batch in batches)
        assert all(batch.inputs.shape[0] == window for batch in batches[:-1])
        assert sum(batch.count for batch in batches) * world_size == streams.tokens_per_epoch
        inputs = torch.cat([batch.inputs for batch in batches])  # (steps, B)
        targets = torch.cat([batch.targets for batch in batches])  # (steps, B)
        assert torch.equal(inputs[1:], targets[:-1])
        for row in range(batch_size):
            start = (rank * batch_size + row) * ((len(everything) - 1) // rows)
            assert targets[:, row].tolist() == everything[start + 1 : start + 1 + streams.steps]
            seen += range(start, start + streams.steps)
    assert len(seen) == len(set(seen)) == len(everything) - 1 - streams.left_out
    # What is left out: less than a token for each row, and a last window of one step.
    assert streams.left_out < 2 * rows


@given(lengths=LENGTHS, **SIZES)
def test_the_state_is_forgotten_where_a_document_or_an_epoch_begins(
    lengths: list[int], batch_size: int, window: int, world_size: int
) -> None:
    tokens = prepared(lengths)
    assume((len(tokens.tokens) - 1) // (batch_size * world_size) >= window)
    streams = TokenStreams(tokens, batch_size, window, world_size=world_size)
    for index in range(2 * streams.batches_per_epoch):
        batch = streams.batch(index)
        expected = batch.inputs == BORDER
        if index % streams.batches_per_epoch == 0:
            expected[0] = True
        if batch.resets is None:
            assert not expected.any()
        else:
            assert torch.equal(batch.resets, expected)


def test_a_position_is_one_number() -> None:
    streams = TokenStreams(prepared([300]), 2, 7)
    for index in (0, 3, streams.batches_per_epoch - 1):
        first, later = streams.batch(index), streams.batch(index + 5 * streams.batches_per_epoch)
        assert torch.equal(first.inputs, later.inputs)
        assert torch.equal(first.targets, later.targets)


def test_more_processes_read_the_same_rows() -> None:
    tokens = prepared([100, 50, 80])
    whole = TokenStreams(tokens, 4, 5)
    halves = [TokenStreams(tokens, 2, 5, rank=rank, world_size=2) for rank in range(2)]
    for index in range(whole.batches_per_epoch):
        together = torch.cat([half.batch(index).inputs for half in halves], dim=1)  # (T, 4)
        assert torch.equal(whole.batch(index).inputs, together)


def test_types_and_the_last_short_window() -> None:
    streams = TokenStreams(prepared([20]), 1, 8)
    assert (streams.steps, streams.batches_per_epoch, streams.left_out) == (21, 3, 0)
    assert [tuple(streams.batch(index).inputs.shape) for index in range(3)] == [(8, 1), (8, 1), (5, 1)]
    batch = streams.batch(0)
    assert (batch.inputs.dtype, batch.targets.dtype, batch.count) == (torch.int64, torch.int64, 8)
    assert batch.inputs[0, 0] == BORDER
    streams = TokenStreams(prepared([16]), 1, 8)
    assert (streams.steps, streams.batches_per_epoch, streams.left_out) == (16, 2, 1)


def test_a_text_too_short() -> None:
    expected = (
        "data: the text is too short: 8 rows of one window need 161 tokens, got 102; "
        "lower training.batch_size (4) or training.window (20), or give more text"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        TokenStreams(prepared([100]), 4, 20, world_size=2)
    assert TokenStreams(prepared([159]), 4, 20, world_size=2).batches_per_epoch == 1


@given(lengths=LENGTHS, context=st.integers(0, 3), **SIZES)
def test_evaluation_predicts_every_token_once(
    lengths: list[int],
    context: int,
    batch_size: int,
    window: int,
    world_size: int,
) -> None:
    tokens = prepared(lengths)
    everything = tokens.tokens[:].tolist()
    found: list[int] = []
    number_of_batches = set()
    for rank in range(world_size):
        streams = EvaluationStreams(
            tokens, batch_size, window, context_windows=context, rank=rank, world_size=world_size
        )
        batches = list(streams)
        number_of_batches.add(len(batches))
        assert len(batches) == len(streams)
        assert all(batch.count == int((batch.targets != IGNORED).sum()) for batch in batches)
        inputs = torch.cat([batch.inputs for batch in batches])  # (steps, B)
        targets = torch.cat([batch.targets for batch in batches])  # (steps, B)
        assert batches[0].resets is not None
        assert batches[0].resets[0].all()
        for row in range(batch_size):
            found += [target for target in targets[:, row].tolist() if target != IGNORED]
            counted = (targets[:, row] != IGNORED).nonzero().flatten().tolist()
            # Within the counted part, a step's input is the target before it.
            assert all(inputs[step, row] == targets[step - 1, row] for step in counted[1:])
    assert found == everything[1:]
    assert len(number_of_batches) == 1


@given(lengths=LENGTHS, context=st.integers(0, 3), **SIZES)
def test_evaluation_warms_up_on_the_tokens_before(
    lengths: list[int],
    context: int,
    batch_size: int,
    window: int,
    world_size: int,
) -> None:
    tokens = prepared(lengths)
    everything = tokens.tokens[:].tolist()
    rows = batch_size * world_size
    streams = EvaluationStreams(tokens, batch_size, window, context_windows=context, world_size=world_size)
    inputs = torch.cat([batch.inputs for batch in streams])  # (steps, B)
    share = -(-(len(everything) - 1) // rows)
    warm = context * window if rows > 1 else 0
    for row in range(batch_size):
        first = row * share
        before = everything[max(0, first - warm) : first] if first < len(everything) - 1 else []
        read = inputs[:warm, row].tolist()
        assert read[len(read) - len(before) :] == before or first >= len(everything) - 1


def test_evaluation_with_one_row_is_exact() -> None:
    streams = EvaluationStreams(prepared([30]), 1, 8, context_windows=2)
    batches = list(streams)
    assert [batch.count for batch in batches] == [8, 8, 8, 7]
    assert all((batch.targets != IGNORED).all() for batch in batches)


def test_streams_over_a_prepared_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    tokens = prepare(TextSource([tmp_path / "a.txt"]), Tokenizer.train("bytes"), cache=tmp_path)
    batch = TokenStreams(tokens, 3, 10).batch(1)
    assert bytes(batch.inputs[:, 0].tolist()) == b"jabcdefghi"
    assert bytes(batch.targets[:, 0].tolist()) == b"abcdefghij"
    assert batch.resets is None
