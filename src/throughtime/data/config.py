"""The section [data] of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from throughtime.configuration import Section


class DataConfig(Section):
    """What is read, how it is split, and how it becomes tokens."""

    paths: list[str] = Field(
        default=["stdlib:"],
        min_length=1,
        description='files, folders, globs, "-" (standard input), or "stdlib:" (the source of Python\'s own library)',
    )
    valid: list[str] = Field(default=[], description="held-out files; empty: a part of `paths` is held out")
    valid_fraction: float = Field(
        0.05, gt=0, lt=1, description="part of `paths` that is held out where `valid` is empty"
    )
    column: str | None = Field(None, description='column with the text in .jsonl, .csv and .parquet; default "text"')
    errors: Literal["strict", "replace"] = Field(
        "strict", description="bytes that are not UTF-8: stop and say where, or replace them by U+FFFD"
    )
    tokenizer: str = Field(
        "bytes", description='"bytes", "chars", "words", "bpe", or the path of an existing tokenizer.json'
    )
    vocabulary_size: int = Field(
        10_000, ge=2, description='largest vocabulary of "words" and "bpe", in tokens; the others have their own'
    )
