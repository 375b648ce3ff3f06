"""Batches of pairs: every pair once in an epoch, nothing but zeros past a length, budgets kept, little padding."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import Tokenizer
from throughtime.data.pair_batches import PairBatch, PairSource, PairTokens
from throughtime.data.pairs import Pair, TextsSource, read_pairs
from throughtime.errors import UsageError

BYTES = Tokenizer.train("bytes")


def pairs_of(texts: list[tuple[str, str]]) -> list[Pair]:
    return [Pair(f"a:{line}", source, target) for line, (source, target) in enumerate(texts, start=1)]


def sized(lengths: list[tuple[int, int]]) -> PairTokens:
    """Pairs of these lengths, each with its own number in its source's last four bytes and its target's."""
    texts = [
        ("s" * (left - 4) + f"{number:04}", "t" * (right - 4) + f"{number:04}")
        for number, (left, right) in enumerate(lengths)
    ]
    return PairTokens(pairs_of(texts), BYTES, BYTES)


def word_like(count: int, seed: int = 0) -> PairTokens:
    draw = random.Random(seed)
    sources = [round(min(max(draw.gauss(9, 2.4), 4), 22)) for _ in range(count)]
    return sized([(source, max(4, round(source * 0.9 + draw.gauss(0, 1.1)))) for source in sources])


def members(batch: PairBatch) -> list[tuple[str, str]]:
    """The texts of a batch; what stands past a length must be zero."""
    columns = []
    for tokens, lengths in (batch.x, (batch.targets, batch.lengths)):
        assert len(tokens) == lengths.max()
        assert not tokens[torch.arange(len(tokens))[:, None] >= lengths].any()
        columns.append([BYTES.decode(ids[:length].numpy()) for ids, length in zip(tokens.T, lengths, strict=True)])
    return list(zip(*columns, strict=True))


def epoch_of(source: PairSource, epoch: int = 0) -> list[PairBatch]:
    count = source.batches_per_epoch
    return [source.batch(index) for index in range(epoch * count, (epoch + 1) * count)]


def texts_of(tokens: PairTokens) -> list[tuple[str, str]]:
    return [(BYTES.decode(tokens.source[row]), BYTES.decode(tokens.target[row])) for row in range(len(tokens))]


LENGTHS = st.lists(st.tuples(st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 9), st.sampled_from([0, 20, 100, 400]), st.integers(0, 3))
def test_every_pair_comes_once_in_an_epoch(
    lengths: list[tuple[int, int]], batch_size: int, batch_tokens: int, seed: int
) -> None:
    tokens = sized(lengths)
    source = PairSource(tokens, batch_size=batch_size, batch_tokens=batch_tokens, seed=seed)
    for epoch in range(3):
        batches = epoch_of(source, epoch)
        assert sorted(pair for batch in batches for pair in members(batch)) == sorted(texts_of(tokens))
        if batch_tokens:
            for batch in batches:
                assert len(batch) == 1 or len(batch) * (len(batch.source) + len(batch.targets) + 1) <= batch_tokens
        else:
            # All but one are full, so that no scheme has fewer.
            assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
            assert len(batches) == -(-len(tokens) // batch_size)


@given(LENGTHS, st.integers(1, 9), st.sampled_from([0, 100]))
def test_a_batch_is_a_function_of_its_number(lengths: list[tuple[int, int]], size: int, batch_tokens: int) -> None:
    tokens = sized(lengths)
    source, again = (PairSource(tokens, batch_size=size, batch_tokens=batch_tokens, seed=5) for _ in range(2))
    batches = [*epoch_of(source, 0), *epoch_of(source, 1)]
    for index in reversed(range(len(batches))):
        parts = zip(dataclasses.astuple(batches[index]), dataclasses.astuple(again.batch(index)), strict=True)
        assert all(torch.equal(left, right) for left, right in parts)


def test_epochs_and_seeds_differ() -> None:
    tokens = word_like(400)
    orders = [
        [pair for batch in epoch_of(PairSource(tokens, batch_size=16, seed=seed), epoch) for pair in members(batch)]
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len({tuple(order) for order in orders}) == 3
    # The members of batches change as well, not their order alone.
    first, second = (
        {frozenset(members(batch)) for batch in epoch_of(PairSource(tokens, batch_size=16), epoch)} for epoch in (0, 1)
    )
    assert len(first & second) < len(first) / 4


@pytest.mark.parametrize("sizes", [{"batch_size": 64}, {"batch_size": 256}, {"batch_size": 1, "batch_tokens": 4096}])
def test_little_of_word_like_data_is_padding(sizes: dict[str, int]) -> None:
    source = PairSource(word_like(8000), **sizes)  # type: ignore[arg-type]
    batches = epoch_of(source)
    positions = sum(batch.source.numel() + batch.targets.numel() for batch in batches)
    used = sum(int(batch.source_lengths.sum() + batch.lengths.sum()) for batch in batches)
    assert source.padding_share == pytest.approx(1 - used / positions)
    assert source.padding_share < 0.1
    in_order = [source.tokens.select(range(at, min(at + 64, 8000))) for at in range(0, 8000, 64)]
    positions = sum(batch.source.numel() + batch.targets.numel() for batch in in_order)
    assert 1 - used / positions > 0.3


def test_batches_hold_as_many_tokens_as_they_may() -> None:
    batches = epoch_of(PairSource(word_like(8000), batch_size=1, batch_tokens=1000))
    filled = [len(batch) * (len(batch.source) + len(batch.targets) + 1) for batch in batches]
    assert max(filled) <= 1000
    assert sum(filled) / len(filled) > 900


def test_neighbours_that_fill_no_batch_share_one() -> None:
    source = PairSource(sized([(4 + 3 * number, 40 - number) for number in range(12)]), batch_size=4)
    assert [len(batch) for batch in epoch_of(source)] == [4, 4, 4]


def test_a_pair_beyond_the_budget_is_a_batch() -> None:
    source = PairSource(sized([(30, 30), (4, 4), (4, 4), (40, 4)]), batch_size=1, batch_tokens=20)
    assert sorted(members(batch)[0][0][-4:] for batch in epoch_of(source) if len(batch) == 1) == ["0000", "0003"]
    assert sorted(len(batch) for batch in epoch_of(source)) == [1, 1, 2]


def test_a_batch_counts_and_moves() -> None:
    batch = sized([(4, 6), (7, 5)]).select([1, 0])
    assert [tuple(part.shape) for part in dataclasses.astuple(batch)] == [(7, 2), (2,), (6, 2), (2,)]
    assert {part.dtype for part in dataclasses.astuple(batch)} == {torch.int64}
    assert batch.source_lengths.tolist() == batch.x.lengths.tolist() == [7, 4]
    assert batch.lengths.tolist() == [5, 6]
    assert batch.x.tokens is batch.source
    assert len(batch) == 2
    assert batch.predictions == 5 + 6 + 2
    assert members(batch) == [("sss0001", "t0001"), ("0000", "tt0000")]
    assert {part.device.type for part in dataclasses.astuple(batch.to("meta"))} == {"meta"}


@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe"])
def test_ids_are_those_of_the_tokenizer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("the cat", "le chat 😀"), ("a dog", "un chien"), ("the dogs " * 600, "les chiens")]
    sides = [[pair[side] for pair in texts] for side in (0, 1)]
    source, target = (Tokenizer.train(kind, TextsSource(side, "texts"), vocabulary_size=None) for side in sides)
    monkeypatch.setattr("throughtime.data.pair_batches._BLOCK", 2)
    tokens = PairTokens(pairs_of(texts), source, target)
    assert not tokens.left_out
    assert tokens.kept.tolist() == [0, 1, 2]
    for row, (left, right) in enumerate(texts):
        assert tokens.source[row].tolist() == source.encode(left).tolist()
        assert tokens.target[row].tolist() == target.encode(right).tolist()
    assert tokens.source.ids.dtype == np.min_scalar_type(source.vocabulary_size - 1)
    assert not (tokens.source.ids == source.border_id).any()
    with pytest.raises(IndexError, match="Ragged: expected a row from 0 to 2, got 3"):
        tokens.source[3]


def test_a_vocabulary_made_elsewhere(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2, "?": 3}, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    foreign = Tokenizer.load(tmp_path / "tokenizer.json")
    assert foreign.kind == "file"
    texts = [("a b", "b"), ("a </s> b", "b"), ("b z", "</s>"), ("z z q", "a")]
    tokens = PairTokens(pairs_of(texts), foreign, foreign)
    reason = "spells out </s>, which is the border of its vocabulary"
    assert tokens.left_out == [("a:2", "a </s> b", f"source {reason}"), ("a:3", "b z", f"target {reason}")]
    assert tokens.kept.tolist() == [0, 3]
    assert [tokens.source[row].tolist() for row in range(2)] == [[0, 1], [3, 3, 3]]
    assert tokens.unknown.source == Counter({"z": 1, "q": 1})
    assert tokens.unknown.target == Counter()


def test_what_is_left_out_is_listed() -> None:
    texts = [("aaaa", "b"), ("aaa", "b"), ("a", "bbbbb"), ("aaaaa", "bbbb"), (" ", "b"), ("a", "b")]
    words = Tokenizer.train("words", TextsSource(["a"], "texts"))
    tokens = PairTokens(iter(pairs_of(texts)), BYTES, BYTES, max_length=3)
    assert [(entry.where, entry.source, entry.reason) for entry in tokens.left_out] == [
        ("a:1", "aaaa", "source of 4 tokens, at most 3"),
        ("a:3", "a", "target of 5 tokens, at most 3"),
        ("a:4", "aaaaa", "source of 5 tokens, at most 3"),
    ]
    assert tokens.kept.tolist() == [1, 4, 5]
    assert texts_of(tokens) == [texts[row] for row in (1, 4, 5)]
    assert PairTokens(pairs_of(texts), words, BYTES).left_out == [("a:5", " ", "source of no tokens")]


def test_what_a_vocabulary_lacks_is_counted() -> None:
    source, target = (Tokenizer.train(kind, TextsSource(["ab x", "a b"], "texts")) for kind in ("chars", "words"))
    tokens = PairTokens(pairs_of([("aéé", "ab c"), ("é!", "b d c d"), ("é" * 9, "f")]), source, target, max_length=8)
    assert tokens.unknown.source == Counter({"é": 2, "!": 1})
    assert tokens.unknown.target == Counter({"c": 2, "d": 1})
    assert tokens.source[0].tolist().count(source.unknown_id) == 2


def test_what_cannot_be_batched() -> None:
    with pytest.raises(
        UsageError, match=r"^PairSource: expected pairs, got none \(1 were left out\); give more, or raise max_length$"
    ):
        PairSource(PairTokens(pairs_of([("aaa", "b")]), BYTES, BYTES, max_length=2), batch_size=2)
    with pytest.raises(UsageError, match=r"^PairSource: batch_size must be at least 1 pair, got 0$"):
        PairSource(sized([(4, 4)]), batch_size=0)
    with pytest.raises(UsageError, match=r"^PairSource: batch_tokens must be 0 \(off\) or more, got -1$"):
        PairSource(sized([(4, 4)]), batch_size=1, batch_tokens=-1)
    with pytest.raises(UsageError, match=r"^PairTokens: max_length must be at least 1 token, got 0$"):
        PairTokens([], BYTES, BYTES, max_length=0)
    assert len(PairTokens([], BYTES, BYTES)) == 0


def test_the_pronouncing_dictionary(shared_data: Path) -> None:
    pairs = list(read_pairs([shared_data / "cmudict_g2p" / "g014b2b.train"]))
    assert len(pairs) == 113_438
    phones = Tokenizer.train("words", TextsSource([pair.target for pair in pairs], "targets"))
    tokens = PairTokens(pairs, BYTES, phones, max_length=200)
    assert len(tokens) == 113_438
    assert not tokens.unknown.target
    source = PairSource(tokens, batch_size=256)
    assert source.batches_per_epoch == 444
    assert source.padding_share < 0.1
