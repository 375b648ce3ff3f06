"""The section [data] of the configuration of a task of pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from throughtime.configuration import Section

_LEVELS = '"chars", "words", "bpe", "bytes", or the path of an existing tokenizer.json'


class PairsConfig(Section):
    """Which pairs are read, how they are split, and how each side becomes tokens."""

    paths: list[str] = Field(
        default=[], description="files of pairs: tab-separated, .csv, .jsonl or .parquet, also .gz; globs"
    )
    source: str | None = Field(None, description="in place of `paths`: the sources, one a line ...")
    target: str | None = Field(None, description="... and the targets, line by line, in another file")
    valid: list[str] = Field(default=[], description="held-out files of pairs; empty: a part is held out")
    valid_source: str | None = Field(None, description="in place of `valid`: the held-out sources, one a line ...")
    valid_target: str | None = Field(None, description="... and their targets")
    valid_fraction: float = Field(
        0.05, gt=0, lt=1, description="part of the sources that is held out where nothing held out is given"
    )
    source_column: str | None = Field(
        None, description='column of the sources; default "source", and the first field of a tab-separated line'
    )
    target_column: str | None = Field(
        None, description='column of the targets; default "target", and the second field of a tab-separated line'
    )
    errors: Literal["strict", "replace"] = Field(
        "strict", description="bytes that are not UTF-8: stop and say where, or replace them by U+FFFD"
    )
    source_tokenizer: str = Field("chars", description=f"level of the sources: {_LEVELS}")
    target_tokenizer: str = Field("chars", description=f"level of the targets: {_LEVELS}")
    shared_vocabulary: bool = Field(
        False, description="one vocabulary, found in both sides; needs two tokenizers of one level"
    )
    source_vocabulary_size: int = Field(10_000, ge=2, description='largest vocabulary of "words" and "bpe", in tokens')
    target_vocabulary_size: int = Field(10_000, ge=2, description="the same of the targets")
    max_length: int = Field(
        200,
        ge=1,
        description="tokens of a source or target; longer pairs are left out of training, counted and listed, and "
        "longer sources are cut when they are predicted from",
    )
    batch_tokens: int = Field(
        0, ge=0, description="tokens of both sides in a batch, padding included; 0: training.batch_size pairs"
    )

    @model_validator(mode="after")
    def _one_way(self) -> PairsConfig:
        for paths, source, target, prefix in (
            (self.paths, self.source, self.target, ""),
            (self.valid, self.valid_source, self.valid_target, "valid_"),
        ):
            if (source is None) != (target is None):
                missing = "target" if target is None else "source"
                raise ValueError(f"two parallel files need both, got no {prefix}{missing}")
            if paths and source is not None:
                raise ValueError(f"give {prefix or 'path'}s of pairs or two parallel files, not both".replace("_s", ""))
        if self.shared_vocabulary and self.source_tokenizer != self.target_tokenizer:
            raise ValueError(
                "a shared vocabulary needs two tokenizers of one level, got "
                f"{self.source_tokenizer!r} and {self.target_tokenizer!r}"
            )
        return self
