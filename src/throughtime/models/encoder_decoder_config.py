"""The configuration of an encoder-decoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from throughtime.configuration import Section


class EncoderDecoderShape(Section):
    """The [model] section of a configuration: all of an encoder-decoder but its vocabularies."""

    cell: Literal["rnn", "lstm", "gru"] = Field("lstm", description='recurrent cell: "rnn", "lstm" or "gru"')
    hidden_size: int = Field(
        256, ge=1, description="units of each layer; of the encoder's, both directions together where there are two"
    )
    num_layers: int = Field(1, ge=1, description="recurrent layers of the encoder, and of the decoder")
    bidirectional: bool = Field(True, description="whether the encoder reads in both directions")
    embedding_size: int = Field(128, ge=1, description="size of a token's embedding, on both sides")
    bridge: Literal["copy", "linear", "zeros"] = Field(
        "copy",
        description="the decoder's initial state: the encoder's final one; tanh of a linear map of it; or zeros",
    )
    attention: Literal["additive", "dot", "general", "concat", "none"] = Field(
        "general", description="score of the attention; none: the fixed context, all that the decoder knows of x"
    )
    coverage: bool = Field(False, description="attention sees how much it has looked at each position already")
    coverage_loss: float = Field(
        0.0, ge=0, description="coverage: weight in training of Σ_j min(α_j(t), coverage_j), against looking twice"
    )
    input_feeding: bool = Field(
        False,
        description="the decoder also reads h̃(t-1), so that training goes step by step, which is slower: least so with "
        "attention general or dot, no coverage, zoneout or layer_norm, and fp32",
    )
    tied: Literal["none", "target", "all"] = Field(
        "none",
        description="shared weights: of the decoder's embedding and the readout; or these and the encoder's embedding "
        "(needs embedding_size = hidden_size, and for all, one vocabulary)",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability: dropout of embeddings, between layers, and of h̃, anew each step"
    )
    variational_dropout: float = Field(0.0, ge=0, lt=1, description="the same with one mask for a whole sequence")
    recurrent_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability: units of h(t-1) dropped in the recurrent product for a sequence"
    )
    zoneout: float = Field(0.0, ge=0, lt=1, description="probability that a unit keeps its state for a step")
    weight_dropout: float = Field(0.0, ge=0, lt=1, description="probability: recurrent weights dropped for a batch")
    layer_norm: bool = Field(False, description="layer normalisation inside the cell")
    residual: bool = Field(False, description="add each layer's inputs to its outputs, from the second layer on")
    stop: Literal["end_symbol", "bernoulli_halt", "predicted_length"] = Field(
        "end_symbol", description="what ends a target: a symbol, a decision before each, or a length drawn first"
    )
    max_length: int = Field(100, ge=1, description="predicted_length: the greatest length")
    engine: str = Field("auto", description='engine of the recurrence: "auto" or the name of one')

    @model_validator(mode="after")
    def _consistent(self) -> EncoderDecoderShape:
        if self.bidirectional and self.hidden_size % 2:
            raise ValueError(f"a bidirectional encoder needs an even hidden_size, got {self.hidden_size}")
        if self.attention == "none" and (self.coverage or self.bridge == "zeros"):
            wrong = "coverage" if self.coverage else 'bridge "zeros"'
            raise ValueError(f"{wrong} needs an attention, got none")
        if self.stepped and self.engine not in ("auto", "reference"):
            name = "input_feeding" if self.input_feeding else "coverage"
            raise ValueError(
                f"engine {self.engine!r} runs all steps of a decoder at once, which {name} does not allow; "
                'set engine to "auto"'
            )
        if self.coverage_loss and not self.coverage:
            raise ValueError(f"coverage_loss needs coverage=true, got coverage_loss {self.coverage_loss}")
        if self.tied != "none" and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tied embeddings need embedding_size equal to hidden_size={self.hidden_size}, "
                f"got {self.embedding_size}"
            )
        return self

    @property
    def stepped(self) -> bool:
        """Whether a step of the decoder needs more of the step before than its state, even in teacher forcing."""
        return self.input_feeding or self.coverage


class EncoderDecoderConfig(EncoderDecoderShape):
    """An encoder-decoder's configuration: its shape and its vocabularies."""

    source_vocabulary_size: int = Field(ge=1, description="tokens of the source")
    target_vocabulary_size: int = Field(ge=2, description="tokens of the target, the border token among them")
    border_id: int = Field(0, ge=0, description="the target's token that opens and ends every sequence")

    @model_validator(mode="after")
    def _fits(self) -> EncoderDecoderConfig:
        if self.border_id >= self.target_vocabulary_size:
            raise ValueError(
                f"border_id must be below target_vocabulary_size={self.target_vocabulary_size}, got {self.border_id}"
            )
        if self.tied == "all" and self.source_vocabulary_size != self.target_vocabulary_size:
            raise ValueError(
                f'tied "all" needs one vocabulary, got {self.source_vocabulary_size} tokens of the source and '
                f"{self.target_vocabulary_size} of the target"
            )
        return self
