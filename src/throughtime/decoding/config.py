"""The section [generation] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from throughtime.configuration import Section


class GenerationConfig(Section):
    """How text is written: how much of it, and how freely the tokens are chosen."""

    length: int = Field(500, ge=0, description="tokens to write after the prompt, at most")
    temperature: float = Field(
        1.0, ge=0, description="divides the logits: below 1 safer, above 1 bolder, 0 always the likeliest token"
    )
    top_k: int = Field(0, ge=0, description="choose among the k likeliest tokens only; 0: off")
    top_p: float = Field(
        1.0, ge=0, le=1, description="choose among the likeliest tokens that together have this probability; 1: off"
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="choose among tokens at least this fraction as likely as the likeliest; 0: off"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1, makes tokens less likely that are in the text already; 1: off"
    )
    beam: int = Field(
        0, ge=0, description="beam search with so many beginnings: the likeliest text, nothing is drawn; 0: draw it"
    )
    seed: int | None = Field(None, ge=0, description="seed of the draws; without one, a new text each time")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="strings that end a text; they are not part of it"
    )
    samples: int = Field(1, ge=1, description="texts to write at once")
    precision: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="how the native engine stores the weights: bf16 and int8 are faster and less exact"
    )
    engine: Literal["auto", "native", "model"] = Field(
        "auto",
        description="what makes the steps: the native engine, or the model itself as in training; auto: the faster",
    )

    @model_validator(mode="after")
    def _searched_or_drawn(self) -> GenerationConfig:
        if not self.beam:
            return self
        changed = [name for name in DRAWING if getattr(self, name) != GenerationConfig.model_fields[name].default]
        if changed:
            raise ValueError(f"a beam search draws nothing, so {' and '.join(changed)} must be left out; or set beam=0")
        return self


DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "precision", "engine")
"""The keys that a beam search does without."""
