"""Pairs of texts as token ids, and batches of pairs of similar lengths, so that little of a batch is padding.

Pairs are ordered by their lengths along a line that turns at its ends, as a plough does: by target length, and
within one target length by source length, rising and falling in turn, so that neighbours are always alike. Buckets
are runs of that line of n·k pairs, each as long as no more than 8 % of it would be padding, and never less than one
whole batch. In every epoch pairs of equal lengths change places along the line, each bucket is shuffled and cut into
k batches of n, and the batches of all buckets come in a new order. Only the very last run may leave a batch that is
not full; and as the line of lengths is the same in every epoch, so are the buckets and their number of batches.

Source: Khomenko et al. 2016, Accelerating recurrent neural network training using sequence bucketing and multi-GPU
data parallelization; batches by a number of tokens: Ott et al. 2019, fairseq.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

from throughtime.data.codecs import Codec, Ids
from throughtime.data.pairs import Pair
from throughtime.data.tokenizers import Tokenizer
from throughtime.errors import UsageError

PADDING = 0.08
"""A bucket grows while at most this part of it would be padding, were each of its pairs as long as the longest."""

_BLOCK = 1 << 14
# Target lengths count as equal within such a factor: with few pairs of each length, a batch is short on one side
# and wide on the other unless several lengths share a furrow. Which factor pads least is tried.
_FACTORS = (1.0, 1.1, 1.2, 1.4)

Numbers = npt.NDArray[np.int64]


class LeftOut(NamedTuple):
    """A pair that is no part of the tokens, and why."""

    where: str
    source: str
    reason: str


class Unknown(NamedTuple):
    """What the vocabularies lack, each part with the number of texts that hold it."""

    source: Counter[str]
    target: Counter[str]


@dataclass
class UnknownTexts:
    """How many texts hold what their vocabulary lacks, and where the first of them stands."""

    count: int = 0
    first: str = ""


class SourceTokens(NamedTuple):
    """The sources of a batch: ids (S, B), zero padded, and how many of them are each source's own (B,)."""

    tokens: Int64[Tensor, "S B"]
    lengths: Int64[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class PairBatch:
    """B pairs as int64 ids, zero past each length, time first: source (S, B) and targets (T, B), without borders."""

    source: Int64[Tensor, "S B"]
    source_lengths: Int64[Tensor, " B"]
    targets: Int64[Tensor, "T B"]
    lengths: Int64[Tensor, " B"]

    def __len__(self) -> int:
        """The number of pairs."""
        return self.lengths.shape[0]

    @property
    def x(self) -> SourceTokens:
        """What a model is conditioned on."""
        return SourceTokens(self.source, self.source_lengths)

    @property
    def predictions(self) -> int:
        """The number of targets, and one end for each sequence."""
        return int(self.lengths.sum()) + len(self)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same on a device."""
        parts = (self.source, self.source_lengths, self.targets, self.lengths)
        return PairBatch(*(part.to(device) for part in parts))


class Ragged:
    """N sequences of ids, one after the other: `ids`, the `lengths` (N,) and the `offsets` (N + 1) of each in them."""

    def __init__(self, ids: Ids, lengths: Numbers) -> None:
        self.ids = ids
        self.lengths = lengths
        self.offsets: Numbers = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        """N, the number of sequences."""
        return len(self.lengths)

    def __getitem__(self, row: int) -> Ids:
        """The ids of one sequence."""
        if not 0 <= row < len(self):
            raise IndexError(f"Ragged: expected a row from 0 to {len(self) - 1}, got {row}")
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def select(self, rows: Numbers) -> Ragged:
        """The sequences of some rows."""
        lengths = self.lengths[rows]
        shifts = self.offsets[rows] - (np.cumsum(lengths) - lengths)
        return Ragged(self.ids[np.repeat(shifts, lengths) + np.arange(lengths.sum())], lengths)

    def rows_with(self, token: int) -> Numbers:
        """The rows that hold a token."""
        return np.unique(np.repeat(np.arange(len(self)), self.lengths)[self.ids == token])

    def padded(self, rows: Numbers) -> tuple[Int64[Tensor, "T B"], Int64[Tensor, " B"]]:
        """(ids (T, B), zero past each length; lengths (B,)) of some rows; T is the longest of them."""
        lengths = self.lengths[rows]  # (B,)
        steps = np.arange(lengths.max(initial=0))[:, None]  # (T, 1)
        inside = steps < lengths  # (T, B)
        tokens = np.zeros(inside.shape, np.int64)
        tokens[inside] = self.ids[(self.offsets[rows] + steps)[inside]]
        return torch.from_numpy(tokens), torch.from_numpy(lengths)


class PairTokens:
    """The ids of pairs, and what became of those that are not among them.

    source, target: the ids of either side, in the smallest type that holds its vocabulary.
    kept: the number, from 0, among the pairs given of each that was kept.
    left_out: the pairs with more than `max_length` tokens on a side, or a target of more than `max_target_length`, or
        none, or with the border's own id in them.
    unknown: what the vocabularies lack, of the pairs that were kept; it has become the unknown id.
    unknown_texts: the texts that hold it, of the side "source" and of "target".

    Raises:
        UsageError: a greatest length is below one token.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        source: Tokenizer,
        target: Tokenizer,
        *,
        max_length: int | None = None,
        max_target_length: int | None = None,
    ) -> None:
        for name, length in (("max_length", max_length), ("max_target_length", max_target_length)):
            if length is not None and length < 1:
                raise UsageError(f"PairTokens: {name} must be at least 1 token, got {length}")
        of_target = min((length for length in (max_length, max_target_length) if length is not None), default=None)
        self.left_out: list[LeftOut] = []
        self.unknown = Unknown(Counter(), Counter())
        self.unknown_texts = {"source": UnknownTexts(), "target": UnknownTexts()}
        sides = (_Side("source", source, max_length), _Side("target", target, of_target))
        parts: list[tuple[Numbers, Ragged, Ragged]] = []
        remaining, start = iter(pairs), 0
        while block := list(islice(remaining, _BLOCK)):
            texts = [pair.source for pair in block], [pair.target for pair in block]
            encoded = [_encode(side.tokenizer.codec, side_texts) for side, side_texts in zip(sides, texts, strict=True)]
            # Of a pair with faults on both sides the source's is told.
            faults = sides[1].faults(encoded[1]) | sides[0].faults(encoded[0])
            self.left_out += [LeftOut(block[row].where, block[row].source, faults[row]) for row in sorted(faults)]
            rows = np.array([row for row in range(len(block)) if row not in faults], np.int64)
            kept = [ids.select(rows) for ids in encoded]
            for side, ids, side_texts, unknown in zip(sides, kept, texts, self.unknown, strict=True):
                holding = self.unknown_texts[side.name]
                for row in rows[side.unknown_rows(ids)]:
                    unknown.update(side.tokenizer.codec.unknown(side_texts[row]))
                    holding.count += 1
                    holding.first = holding.first or block[row].where
            parts.append((start + rows, kept[0], kept[1]))
            start += len(block)
        numbers, sources, targets = zip(*parts, strict=True) if parts else ((), (), ())
        self.kept: Numbers = _joined(numbers, np.int64)
        self.source = _join(sources, source)
        self.target = _join(targets, target)

    def __len__(self) -> int:
        """The number of pairs that were kept."""
        return len(self.source)

    def select(self, rows: Sequence[int] | Numbers) -> PairBatch:
        """The pairs of some rows as one batch."""
        numbers = np.asarray(rows, np.int64)
        return PairBatch(*self.source.padded(numbers), *self.target.padded(numbers))


class _Side(NamedTuple):
    name: str
    tokenizer: Tokenizer
    max_length: int | None

    def faults(self, encoded: Ragged) -> dict[int, str]:
        """Why some rows cannot be taken."""
        border = self.tokenizer.token(self.tokenizer.border_id)
        spelt = f"{self.name} spells out {border}, which is the border of its vocabulary"
        faults = dict.fromkeys(encoded.rows_with(self.tokenizer.border_id).tolist(), spelt)
        faults |= dict.fromkeys(np.flatnonzero(encoded.lengths == 0).tolist(), f"{self.name} of no tokens")
        if self.max_length is not None:
            for row in np.flatnonzero(encoded.lengths > self.max_length).tolist():
                faults[row] = f"{self.name} of {encoded.lengths[row]} tokens, at most {self.max_length}"
        return faults

    def unknown_rows(self, encoded: Ragged) -> Numbers:
        unknown = self.tokenizer.unknown_id
        return np.empty(0, np.int64) if unknown is None else encoded.rows_with(unknown)


class PairSource:
    """Batches of pairs of similar lengths, every pair once in an epoch, in a new order in each.

    batch_size: pairs in a batch, where `batch_tokens` is 0.
    batch_tokens: else as many pairs as keep pairs · (longest source + longest target + 1) of their bucket within it,
        the one being the target's end; at least one pair.

    Raises:
        UsageError: there is no pair, or a size below what it may be.
    """

    def __init__(self, tokens: PairTokens, *, batch_size: int, batch_tokens: int = 0, seed: int = 0) -> None:
        if batch_size < 1:
            raise UsageError(f"PairSource: batch_size must be at least 1 pair, got {batch_size}")
        if batch_tokens < 0:
            raise UsageError(f"PairSource: batch_tokens must be 0 (off) or more, got {batch_tokens}")
        if not len(tokens):
            raise UsageError(
                f"PairSource: expected pairs, got none ({len(tokens.left_out)} were left out); "
                "give more, or raise max_length"
            )
        self.tokens = tokens
        self.seed = seed
        self._ranks, self._buckets = _plan(tokens.source.lengths, tokens.target.lengths, batch_size, batch_tokens)
        self.batches_per_epoch = sum(bucket.batches for bucket in self._buckets)
        self._epoch = -1
        self._rows: list[Numbers] = []

    def batch(self, index: int) -> PairBatch:
        """Batch `index` from the beginning of training: a pure function of it."""
        epoch, place = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._batches(epoch)
        return self.tokens.select(self._rows[place])

    @cached_property
    def padding_share(self) -> float:
        """Padded positions / all positions of both sides, in the first epoch; in others it is nearly the same."""
        batches = self._batches(0)
        order, starts = np.concatenate(batches), _starts(batches)
        sides = self.tokens.source.lengths[order], self.tokens.target.lengths[order]
        return _padding(*sides, starts)

    def _batches(self, epoch: int) -> list[Numbers]:
        """The rows of each batch of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = len(self._ranks)
        ties, places = torch.rand(2, count, generator=generator, dtype=torch.float64).numpy()
        line = np.lexsort((ties, self._ranks))
        bucket_of = np.repeat(np.arange(len(self._buckets)), [stop - start for start, stop, _ in self._buckets])
        line = line[np.lexsort((places, bucket_of))]
        batches = [
            line[at : min(at + size, stop)] for start, stop, size in self._buckets for at in range(start, stop, size)
        ]
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


class _Bucket(NamedTuple):
    """A run of the line, cut into batches of `size` pairs."""

    start: int
    stop: int
    size: int

    @property
    def batches(self) -> int:
        return -(-(self.stop - self.start) // self.size)


def _plan(source: Numbers, target: Numbers, batch_size: int, batch_tokens: int) -> tuple[Numbers, list[_Bucket]]:
    """The rank of each pair on the line, and the buckets along it; (N,) lengths of both sides are given."""
    best, ranks = float("inf"), np.empty(0, np.int64)
    for factor in _FACTORS:
        found = _ranks(source, target, factor)
        line = np.argsort(found, kind="stable")
        sides = source[line], target[line]
        starts = [
            at
            for bucket in _buckets(*sides, batch_size, batch_tokens, padding=0.0)
            for at in range(bucket.start, bucket.stop, bucket.size)
        ]
        share = _padding(*sides, np.array(starts))
        if share < best:
            best, ranks = share, found
    line = np.argsort(ranks, kind="stable")
    return ranks, list(_buckets(source[line], target[line], batch_size, batch_tokens, padding=PADDING))


def _ranks(source: Numbers, target: Numbers, factor: float) -> Numbers:
    """The place of each pair on the line; pairs of equal lengths share one."""
    classes = target if factor == 1.0 else np.floor(np.log(target) / np.log(factor)).astype(np.int64)
    furrow = np.unique(classes, return_inverse=True)[1]
    turned = np.where(furrow % 2 == 0, source, -source)
    order = np.lexsort((target, turned, furrow))
    keys = np.stack([furrow, turned, target])[:, order]  # (3, N)
    changes = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.concatenate([[0], np.cumsum(changes)])
    return ranks


def _buckets(
    source: Numbers, target: Numbers, batch_size: int, batch_tokens: int, *, padding: float
) -> Iterator[_Bucket]:
    """Runs of whole batches along the line, whose lengths are given, each as long as `padding` allows."""
    count = len(source)
    used = np.concatenate([[0], np.cumsum(source + target)])
    start = 0
    while start < count:
        size = _fitting(source[start:], target[start:], batch_tokens) if batch_tokens else batch_size
        stop = min(start + size, count)
        width, height = source[start:stop].max(), target[start:stop].max()
        while stop < count:
            later = min(stop + size, count)
            width, height = max(width, source[stop:later].max()), max(height, target[stop:later].max())
            too_many = batch_tokens and size * (width + height + 1) > batch_tokens
            if too_many or used[later] - used[start] < (1 - padding) * (later - start) * (width + height):
                break
            stop = later
        yield _Bucket(start, stop, size)
        start = stop


def _fitting(source: Numbers, target: Numbers, batch_tokens: int) -> int:
    """How many pairs from the first one on make a batch within the number of tokens; at least one."""
    most = max(1, batch_tokens // int(source[0] + target[0] + 1))
    longest = np.maximum.accumulate(source[:most]) + np.maximum.accumulate(target[:most]) + 1
    return max(1, int(np.count_nonzero(np.arange(1, len(longest) + 1) * longest <= batch_tokens)))


def _padding(source: Numbers, target: Numbers, starts: Numbers) -> float:
    """Padded / all positions of batches that begin at `starts`, given the lengths of pairs in their order."""
    sizes = np.diff(starts, append=len(source))
    longest = np.maximum.reduceat(source, starts) + np.maximum.reduceat(target, starts)
    return 1 - float((source + target).sum() / (sizes * longest).sum())


def _starts(batches: Sequence[Numbers]) -> Numbers:
    sizes = np.array([len(batch) for batch in batches])
    starts: Numbers = np.cumsum(sizes) - sizes
    return starts


def _encode(codec: Codec, texts: list[str]) -> Ragged:
    if codec.kind in ("bpe", "file"):
        # What `codec.encode` gives for each, on all cores.
        encodings = codec.model.encode_batch_fast(texts, add_special_tokens=False)
        sequences = [np.array(encoding.ids, codec.dtype) for encoding in encodings]
    else:
        sequences = [codec.encode(text) for text in texts]
    return Ragged(_joined(sequences, codec.dtype), np.fromiter(map(len, sequences), np.int64, len(sequences)))


def _join(parts: Sequence[Ragged], tokenizer: Tokenizer) -> Ragged:
    smallest = np.min_scalar_type(tokenizer.vocabulary_size - 1)
    ids = _joined([part.ids for part in parts], smallest)
    return Ragged(ids, _joined([part.lengths for part in parts], np.int64))


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
