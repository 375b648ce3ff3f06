"""The text of a configuration as tokens: read, split, tokenized once, opened by every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from throughtime.data.cache import cache_root
from throughtime.data.config import DataConfig
from throughtime.data.sources import Split, TextSource
from throughtime.data.tokenizers import KINDS, Tokenizer
from throughtime.data.tokens import TokenFile, prepare
from throughtime.errors import DataError, StorageError
from throughtime.tasks.runs import STANDARD_INPUT, reading
from throughtime.training.distributed import Distribution

_KINDS = tuple(kind for kind in KINDS if kind != "file")
_LIBRARY = "stdlib:"
Made = TypeVar("Made")


@dataclass(frozen=True)
class Texts:
    """The tokens to train on and those held out, with the tokenizer that made both."""

    tokenizer: Tokenizer
    train: TokenFile
    valid: TokenFile


def prepare_texts(data: DataConfig, distribution: Distribution, *, tokenizer: Tokenizer | None = None) -> Texts:
    """Read, split and tokenize the text of a configuration; the main process prepares, the others open its work.

    tokenizer: that of a run which has begun; without one it is made as the configuration says.

    Raises:
        DataError: a text that cannot be read, or that is both trained on and held out.
        StorageError: the cache cannot be written.
    """

    def open_texts() -> Texts:
        train, valid = _sources(data)
        used = tokenizer or _tokenizer(data, train)
        return Texts(used, prepared(train, used), prepared(valid, used))

    made: list[Texts] = []
    with reading((*data.paths, *data.valid), again=tokenizer is not None, processes=distribution.world_size):
        distribution.on_main(lambda: made.append(open_texts()))
        # What the main process has prepared lies in the cache.
        return made[0] if made else open_texts()


def absolute(data: DataConfig) -> DataConfig:
    """The same text, named so that it is found from every working folder."""

    def places(paths: Sequence[str]) -> list[str]:
        return [
            path if path in (STANDARD_INPUT, _LIBRARY) else str(Path(path).expanduser().absolute()) for path in paths
        ]

    update: dict[str, object] = {"paths": places(data.paths), "valid": places(data.valid)}
    if data.tokenizer not in _KINDS:
        update["tokenizer"] = str(Path(data.tokenizer).expanduser().absolute())
    return data.model_copy(update=update)


def prepared(source: TextSource, tokenizer: Tokenizer) -> TokenFile:
    """The tokens of a text, from the cache.

    Raises:
        StorageError: the cache cannot be written; how to move it.
    """
    return _in_cache(lambda: prepare(source, tokenizer))


def held_out(data: DataConfig, tokenizer: Tokenizer) -> TokenFile:
    """The held-out text of a configuration as tokens.

    Raises:
        DataError: a text that cannot be read, or that is both trained on and held out.
        StorageError: the cache cannot be written.
    """
    return prepared(_sources(data)[1], tokenizer)


def _in_cache(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except StorageError as error:
        raise StorageError(f"{error}; it is the cache of prepared texts: THROUGHTIME_CACHE may name another") from error


def _sources(data: DataConfig) -> tuple[TextSource, TextSource]:
    """The text to train on, and the one held out.

    Raises:
        DataError: a file stands in both.
    """

    def source(paths: Sequence[str], split: Split) -> TextSource:
        return TextSource(
            paths, column=data.column, errors=data.errors, split=split, valid_fraction=data.valid_fraction
        )

    if not data.valid:
        return source(data.paths, "train"), source(data.paths, "valid")
    train, valid = source(data.paths, "all"), source(data.valid, "all")
    held_out = {file.path.resolve() for file in valid.files}
    both = [file.name for file in train.files if file.path.resolve() in held_out]
    if both:
        raise DataError(
            f"data: {both[0]} is both trained on and held out{f', and {len(both) - 1} more' if both[1:] else ''}; "
            "take it out of --data or of --valid"
        )
    return train, valid


def _tokenizer(data: DataConfig, source: TextSource) -> Tokenizer:
    """The tokenizer that a configuration names; a vocabulary found in the text is kept in the cache.

    Raises:
        DataError: it names neither a kind nor a file.
    """
    if data.tokenizer not in _KINDS:
        path = Path(data.tokenizer)
        if not path.is_file():
            raise DataError(
                f"data.tokenizer: expected one of {', '.join(_KINDS)}, or the path of a tokenizer.json, "
                f"got {data.tokenizer!r}, which is neither"
            )
        return Tokenizer.load(path)
    limit = data.vocabulary_size if data.tokenizer in ("words", "bpe") else None
    key = f"1:{data.tokenizer}:{limit}:{source.fingerprint()}"
    kept = cache_root() / "tokenizers" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"
    if not kept.exists():
        found = Tokenizer.train(data.tokenizer, source, vocabulary_size=limit)
        _in_cache(lambda: found.save(kept))
    return Tokenizer.load(kept)
