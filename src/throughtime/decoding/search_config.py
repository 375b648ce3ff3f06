"""The section [generation] of the configuration of a task of pairs: how answers are searched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from throughtime.configuration import Section


class SearchConfig(Section):
    """How an answer is searched when a command does not say."""

    beam: int = Field(5, ge=1, description="beginnings kept at each step; 1: greedy")
    n_best: int = Field(1, ge=1, description="answers for each source; the beam is not widened for them")
    max_length: int = Field(200, ge=0, description="tokens of an answer, at most")
    minimum_length: int = Field(0, ge=0, description="tokens of an answer, at least")
    length_penalty: float = Field(
        0.0, ge=0, description="answers are ordered by log p / ((5 + length) / 6)^this (GNMT); 0: by log p"
    )
    coverage_penalty: float = Field(
        0.0, ge=0, description="weight of Σ_j log min(Σ_t α_j(t), 1), against leaving parts of the source out (GNMT)"
    )
    no_repeat_ngram: int = Field(0, ge=0, description="no run of this many tokens comes twice in an answer; 0: off")
    prefix: str = Field("", description="what every answer begins with")
    required: list[str] = Field(
        default=[], description="what every answer holds, in any order, as the tokens that each is split into"
    )
    banned: list[str] = Field(default=[], description="what no answer holds, as the tokens that each is split into")
    metrics: list[Literal["exact_match", "token_error_rate", "bleu", "chrf"]] = Field(
        default=["exact_match", "token_error_rate"],
        description="how answers are judged: the share that is right, Levenshtein distance per token, BLEU, chrF",
    )

    @model_validator(mode="after")
    def _ordered(self) -> SearchConfig:
        if self.minimum_length > self.max_length:
            raise ValueError(f"minimum_length must be at most max_length={self.max_length}, got {self.minimum_length}")
        return self
