"""Tokens on disk: memory-mapped shards in a cache keyed by content.

A text's folder holds `meta.json`, `shard-00000.bin` ... (ids, little-endian uint16 or uint32) and
`documents.bin` (uint64: where each document's border stands). The ids are

    border document border document ... border

so that p(document) is the product over its tokens and the border that ends it, each given all before it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from throughtime.data.cache import cache_root
from throughtime.data.codecs import Ids
from throughtime.data.sources import Source
from throughtime.data.tokenizers import Tokenizer
from throughtime.errors import StorageError
from throughtime.storage import replacing_folder, storage_errors

SHARD_TOKENS = 1 << 26
"""Ids in a shard file."""
_VERSION = 1
_RESIDENT = 1 << 26
# Linux maps this much around each page that is asked for (bytes).
_FAULT_AROUND = 1 << 16
_FLUSH = 1 << 16

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all, about)."""


class ShardedTokens:
    """Ids in several memory-mapped files, read as one array: `len`, one id, or a slice without step."""

    def __init__(self, shards: list[np.memmap[Any, Any]]) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])
        self._read = 0
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, where: int | slice) -> Any:
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step != 1:
                raise IndexError("ShardedTokens: slices have no step")
            return self._slice(start, max(start, stop))
        index = range(len(self))[where]
        return int(self._slice(index, index + 1)[0])

    def _slice(self, start: int, stop: int) -> Ids:
        self._forget(stop - start)
        first = int(np.searchsorted(self._ends, start, side="right"))
        parts: list[Ids] = []
        while start < stop:
            offset = int(self._ends[first - 1]) if first else 0
            end = min(stop, int(self._ends[first]))
            parts.append(self._shards[first][start - offset : end - offset])
            start, first = end, first + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def _forget(self, count: int) -> None:
        """Give pages back to the system from time to time: else the whole text would count as this process's memory."""
        self._read += max(count * self.dtype.itemsize, _FAULT_AROUND)
        if self._read > _RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            self._read = 0
            for shard in self._shards:
                shard._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class TokenFile:
    """A prepared text, opened in an instant: nothing is read before it is asked for.

    Attributes:
        tokens: all ids, borders included; slices of it are arrays of uint16 or uint32.
        document_starts: (n_documents,) uint64, where each document's border stands.
        border_id: the id that opens every document and closes the stream.
        bytes, characters: of the text itself (UTF-8), for bits per byte and per character.
        n_documents: the number of documents.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text("ascii"))
            self.border_id: int = meta["border_id"]
            self.bytes: int = meta["bytes"]
            self.characters: int = meta["characters"]
            self.n_documents: int = meta["documents"]
            shards = [
                np.memmap(self.folder / _shard_name(index), meta["dtype"], mode="r", shape=(size,))
                for index, size in enumerate(meta["shards"])
            ]
            self.document_starts: npt.NDArray[np.uint64] = np.memmap(
                self.folder / "documents.bin", "<u8", mode="r", shape=(self.n_documents,)
            )
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{self.folder}: damaged prepared text ({error}); remove the folder, it is made again"
            ) from None
        self.tokens = ShardedTokens(shards)


def prepare(
    source: Source, tokenizer: Tokenizer, *, cache: Path | None = None, progress: Progress | None = None
) -> TokenFile:
    """The tokens of a text: from the cache where they are, else written there.

    They are keyed by the content of the text and of the vocabulary. They are written beside their place and renamed, so
    that a kill leaves nothing half-done; memory does not grow with the text. Processes that prepare the same text at
    the same time wait for the first of them.

    Raises:
        DataError: the text cannot be read.
        StorageError: the cache's disk is full or read-only.
    """
    root = (cache or cache_root()) / "tokens"
    key = f"{_VERSION}:{source.fingerprint()}:{tokenizer.digest}"
    folder = root / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    if not folder.is_dir():
        with _alone(folder):
            if not folder.is_dir():
                _write(source, tokenizer, folder, progress)
    return TokenFile(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, and clear what a killed process has left beside it."""
    from filelock import FileLock

    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    try:
        for left in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _write(source: Source, tokenizer: Tokenizer, folder: Path, progress: Progress | None) -> None:
    size = source.size
    with replacing_folder(folder) as fresh, _Writer(fresh, tokenizer) as writer:
        for document in source.documents():
            writer.open_document()
            for ids in tokenizer.encode_chunks(writer.counted(document.chunks())):
                writer.write(ids)
                if progress is not None:
                    progress(min(writer.bytes, size), size)
        writer.finish()
    if progress is not None:
        progress(size, size)


class _Writer:
    """Appends ids to shard after shard."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.bytes = 0
        self._folder = folder
        self._dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
        self._border = np.array([tokenizer.border_id], self._dtype)
        self._characters = 0
        self._sizes: list[int] = []
        self._documents = 0
        self._starts: list[int] = []
        self._shard: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        if self._shard is not None:
            self._shard.close()

    def open_document(self) -> None:
        self._starts.append(sum(self._sizes))
        self._documents += 1
        if len(self._starts) >= _FLUSH:
            self._flush_starts()
        self.write(self._border)

    def counted(self, chunks: Iterable[str]) -> Iterator[str]:
        for chunk in chunks:
            self._characters += len(chunk)
            self.bytes += len(chunk.encode("utf-8"))
            yield chunk

    def write(self, ids: Ids) -> None:
        while len(ids):
            if self._shard is None or self._sizes[-1] == SHARD_TOKENS:
                self._next_shard()
            assert self._shard is not None
            part = ids[: SHARD_TOKENS - self._sizes[-1]]
            self._shard.write(part.astype(self._dtype, copy=False).tobytes())
            self._sizes[-1] += len(part)
            ids = ids[len(part) :]

    def finish(self) -> None:
        self.write(self._border)
        self._flush_starts()
        assert self._shard is not None
        self._shard.close()
        meta = {
            "version": _VERSION,
            "dtype": self._dtype.str,
            "border_id": int(self._border[0]),
            "bytes": self.bytes,
            "characters": self._characters,
            "documents": self._documents,
            "shards": self._sizes,
        }
        (self._folder / "meta.json").write_text(json.dumps(meta), "ascii")

    def _next_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = open(self._folder / _shard_name(len(self._sizes)), "wb")  # noqa: SIM115  # open over many writes
        self._sizes.append(0)

    def _flush_starts(self) -> None:
        with open(self._folder / "documents.bin", "ab") as file:
            file.write(np.array(self._starts, "<u8").tobytes())
        self._starts.clear()


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.bin"
