"""The pairs of a configuration as tokens: read, split, tokenized, and what was left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from throughtime.configuration import validate
from throughtime.data.pair_batches import PairTokens
from throughtime.data.pair_config import PairsConfig
from throughtime.data.pairs import Pair, TextsSource, read_pairs, read_parallel, split_by_source
from throughtime.data.tokenizers import KINDS, Tokenizer
from throughtime.errors import DataError
from throughtime.tasks.runs import STANDARD_INPUT

_KINDS = tuple(kind for kind in KINDS if kind != "file")
# Which sources are held out must not hang on the seed of the training.
_SPLIT_SEED = 0
# Parts that are named of many.
_SHOWN = 5


@dataclass(frozen=True)
class PairTokenizers:
    """The tokenizers of both sides; one and the same where the vocabulary is shared."""

    source: Tokenizer
    target: Tokenizer


@dataclass(frozen=True)
class PairTexts:
    """Pairs to train on as tokens, and those held out as tokens and as they are."""

    tokenizers: PairTokenizers
    train: PairTokens
    valid: PairTokens
    held_out: list[Pair]

    def fingerprint(self) -> dict[str, str]:
        """A digest of each part."""
        parts = {"train": self.train, "valid": self.valid}
        return {name: _digest(tokens) for name, tokens in parts.items()}


def read_configured(config: PairsConfig) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and those held out.

    Raises:
        DataError: pairs that cannot be read, or too few to hold some out.
    """
    train = list(_pairs(config.paths, config.source, config.target, config))
    if config.valid or config.valid_source:
        return train, list(_pairs(config.valid, config.valid_source, config.valid_target, config))
    return split_by_source(train, config.valid_fraction, _SPLIT_SEED)


def given_pairs(config: PairsConfig, paths: Sequence[str], reading: Mapping[str, Any]) -> list[Pair]:
    """Pairs from other files, read as the configuration says but for the keys of it in `reading`.

    Raises:
        ConfigError: unknown keys or values out of range.
        DataError: pairs that cannot be read.
    """
    given = {"paths": list(paths), "source": None, "target": None, **reading}
    chosen = validate(PairsConfig, {**config.model_dump(), **given}, where="reading")
    return list(_pairs(chosen.paths, chosen.source, chosen.target, chosen))


def prepare_pairs(
    config: PairsConfig, tokenizers: PairTokenizers | None = None, *, max_target_length: int | None = None
) -> PairTexts:
    """Read, split and tokenize the pairs of a configuration, with given tokenizers or those that it asks for.

    max_target_length: the longest target, in tokens, that the model can write; None where it has no such limit.

    Raises:
        DataError: pairs that cannot be read, or all too long; a held-out target that the model cannot write.
    """
    train, held_out = read_configured(config)
    used = tokenizers or find_tokenizers(config, train)
    tokens = PairTokens(
        train, used.source, used.target, max_length=config.max_length, max_target_length=max_target_length
    )
    if not len(tokens):
        first = tokens.left_out[0]
        raise DataError(
            f"data: all of the {len(train)} pairs were left out, the first, {first.where}: {first.reason}; "
            f"raise data.max_length{'' if max_target_length is None else ' or model.max_length'}"
        )
    # What is held out is never left out for its length: results must be of all of it.
    valid = PairTokens(held_out, used.source, used.target)
    if not len(valid):
        raise DataError("data: no pair to hold out could be made into tokens; give other held-out pairs")
    refuse_longer_targets(held_out, valid, max_target_length)
    return PairTexts(used, tokens, valid, [held_out[index] for index in valid.kept])


def names(config: PairsConfig) -> list[str]:
    """All that a configuration names to read pairs from."""
    single = (config.source, config.target, config.valid_source, config.valid_target)
    return [*config.paths, *config.valid, *(name for name in single if name is not None)]


def refuse_longer_targets(pairs: Sequence[Pair], tokens: PairTokens, max_target_length: int | None) -> None:
    """Nothing, where the model can write all targets of `tokens`, which are those of `pairs`.

    Raises:
        DataError: it has no probability for one of them, whose loss would be infinite.
    """
    if max_target_length is not None and len(longer := np.flatnonzero(tokens.target.lengths > max_target_length)):
        first = longer[0]
        raise DataError(
            f"{pairs[tokens.kept[first]].where}: target of {tokens.target.lengths[first]} tokens, expected at most "
            f"{max_target_length}, which is all that a model of predicted lengths can write (model.max_length); "
            "train with a greater one, or take the pair out"
        )


def find_tokenizers(config: PairsConfig, pairs: list[Pair]) -> PairTokenizers:
    """The tokenizers that a configuration names, their vocabularies found in the pairs.

    Raises:
        DataError: one names neither a level nor a file.
    """
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    if config.shared_vocabulary:
        shared = _tokenizer(config.source_tokenizer, "source", sources + targets, config.source_vocabulary_size)
        return PairTokenizers(shared, shared)
    return PairTokenizers(
        _tokenizer(config.source_tokenizer, "source", sources, config.source_vocabulary_size),
        _tokenizer(config.target_tokenizer, "target", targets, config.target_vocabulary_size),
    )


def told_of_unknown(tokens: PairTokens, whose: str) -> list[str]:
    """What of the pairs is read as unknown: a line for each side that holds any, with its share and first place."""
    lines = []
    for side, parts in tokens.unknown._asdict().items():
        if parts:
            holding = tokens.unknown_texts[side]
            share = holding.count / len(tokens)
            shown = ", ".join(f"{text!r} ({number:,})" for text, number in parts.most_common(_SHOWN))
            more = f" and {len(parts) - _SHOWN:,} more" if len(parts) > _SHOWN else ""
            lines.append(
                f"{holding.count:,} of {len(tokens):,} {side}s {whose} "
                f"({f'{share:.1%}' if share >= 0.001 else 'below 0.1%'}) hold what is not in the vocabulary, "
                f"the first, {holding.first}: {shown}{more}; read as unknown"
            )
    return lines


def absolute(config: PairsConfig) -> PairsConfig:
    """The same pairs, named so that they are found from every working folder."""

    def place(path: str) -> str:
        return path if path == STANDARD_INPUT else str(Path(path).expanduser().absolute())

    update: dict[str, object] = {name: [place(path) for path in getattr(config, name)] for name in ("paths", "valid")}
    for name in ("source", "target", "valid_source", "valid_target"):
        if (path := getattr(config, name)) is not None:
            update[name] = place(path)
    for name in ("source_tokenizer", "target_tokenizer"):
        if getattr(config, name) not in _KINDS:
            update[name] = place(getattr(config, name))
    return config.model_copy(update=update)


def _pairs(paths: list[str], source: str | None, target: str | None, config: PairsConfig) -> Iterator[Pair]:
    if source is not None and target is not None:
        return read_parallel(source, target, errors=config.errors)
    return read_pairs(
        paths, source_column=config.source_column, target_column=config.target_column, errors=config.errors
    )


def _tokenizer(name: str, side: str, texts: list[str], limit: int) -> Tokenizer:
    if name in _KINDS:
        size = limit if name in ("words", "bpe") else None
        return Tokenizer.train(name, TextsSource(texts, f"the {side}s"), vocabulary_size=size)
    if not Path(name).is_file():
        raise DataError(
            f"data.{side}_tokenizer: expected one of {', '.join(_KINDS)}, or the path of a tokenizer.json, "
            f"got {name!r}, which is neither"
        )
    return Tokenizer.load(name)


def _digest(tokens: PairTokens) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for side in (tokens.source, tokens.target):
        digest.update(side.ids.tobytes())
        digest.update(side.lengths.tobytes())
    return digest.hexdigest()
