"""A recurrent language model: p(y(1..τ)) = Π_t p(y(t) | y(1..t-1)).

It is design A (fig. 10.3) with x(t) = y(t-1): embedding → recurrent layers → readout → softmax. What comes before
y(1) is the border token, which also ends a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from throughtime.configuration import Section, validate
from throughtime.errors import ShapeError
from throughtime.kernels import Lookup
from throughtime.layers import IGNORED, LockedDropout, Readout, in_evaluation_mode, linear_cross_entropy
from throughtime.models.model import Model
from throughtime.models.probability import SequenceLogProb
from throughtime.models.recurrent_layers import recurrent_layers


class LanguageModelShape(Section):
    """The [model] section of a configuration: all of a language model but its vocabulary."""

    cell: Literal["rnn", "lstm", "gru"] = Field("lstm", description='recurrent cell: "rnn", "lstm" or "gru"')
    hidden_size: int | list[int] = Field(512, description="units of each layer; a list gives each layer its own size")
    num_layers: int = Field(1, ge=1, description="recurrent layers")
    embedding_size: int = Field(128, ge=1, description="size of a token's embedding")
    tied: bool = Field(
        False, description="share the weights of embedding and readout (needs embedding_size = size of last layer)"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability: dropout of each layer's inputs and of the last outputs, anew each step",
    )
    variational_dropout: float = Field(0.0, ge=0, lt=1, description="the same with one mask for a whole window")
    embedding_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability: whole token types dropped from the input for a window"
    )
    recurrent_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability: units of h(t-1) dropped in the recurrent product for a window"
    )
    zoneout: float = Field(0.0, ge=0, lt=1, description="probability that a unit keeps its state for a step")
    weight_dropout: float = Field(0.0, ge=0, lt=1, description="probability: recurrent weights dropped for a window")
    layer_norm: bool = Field(False, description="layer normalisation inside the cell")
    residual: bool = Field(False, description="add each layer's inputs to its outputs, from the second layer on")
    engine: str = Field("auto", description='engine of the recurrence: "auto" or the name of one')

    @model_validator(mode="after")
    def _consistent(self) -> LanguageModelShape:
        sizes = self.layer_sizes()
        if len(sizes) != self.num_layers or min(sizes) < 1:
            raise ValueError(
                f"hidden_size must be one positive number, or one for each of the {self.num_layers} layers, "
                f"got {self.hidden_size}"
            )
        if self.tied and self.embedding_size != sizes[-1]:
            raise ValueError(
                f"tied embeddings need embedding_size equal to the last layer's size {sizes[-1]}, "
                f"got {self.embedding_size}"
            )
        if self.residual and len(set(sizes)) > 1:
            raise ValueError(f"residual connections need layers of one size, got {sizes}")
        return self

    def layer_sizes(self) -> list[int]:
        """The units of each layer."""
        return list(self.hidden_size) if isinstance(self.hidden_size, list) else [self.hidden_size] * self.num_layers


class LanguageModelConfig(LanguageModelShape):
    """A language model's configuration: its shape and its vocabulary."""

    vocabulary_size: int = Field(ge=2, description="tokens, the border token among them")
    border_id: int = Field(0, ge=0, description="the token that opens and ends every sequence")

    @model_validator(mode="after")
    def _border_in_vocabulary(self) -> LanguageModelConfig:
        if self.border_id >= self.vocabulary_size:
            raise ValueError(f"border_id must be below vocabulary_size={self.vocabulary_size}, got {self.border_id}")
        return self


class LanguageModel(Model):
    """p(y(t) | y(1..t-1)) by a recurrent network.

    `LanguageModel(vocabulary_size=..., hidden_size=..., ...)` takes the keys of `LanguageModelConfig`, or one as
    `config`. Tokens are int64 and time-major, (T, B). A state is a flat tuple of tensors with the batch as second axis.

        >>> import torch, throughtime as tt
        >>> model = tt.models.LanguageModel(vocabulary_size=10, hidden_size=8, embedding_size=4)
        >>> logits, state = model(torch.zeros(5, 2, dtype=torch.int64))
        >>> logits.shape
        torch.Size([5, 2, 10])

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        UsageError: an engine that there is none of.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.3 and eqs. 10.12-10.14; Mikolov et al. 2010.
    """

    Config = LanguageModelConfig

    def __init__(self, config: LanguageModelConfig | None = None, **keys: Any) -> None:
        super().__init__(config if config is not None else validate(LanguageModelConfig, keys, where="LanguageModel"))
        shape = self.config
        sizes = shape.layer_sizes()
        self.vocabulary_size: int = shape.vocabulary_size
        self.embedding = nn.Embedding(shape.vocabulary_size, shape.embedding_size)
        self.recurrent = recurrent_layers(shape, shape.embedding_size, shape.hidden_size)
        self.readout = Readout(
            sizes[-1], shape.vocabulary_size, tied_weight=self.embedding.weight if shape.tied else None
        )
        self.step_dropout = nn.Dropout(shape.dropout)
        self.locked_dropout = LockedDropout(shape.variational_dropout)
        self.embedding_dropout: float = shape.embedding_dropout
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(
        self,
        tokens: Int[Tensor, "T B"],
        state: Sequence[Tensor] | None = None,
        *,
        targets: Int[Tensor, "T B"] | None = None,
        resets: Bool[Tensor, "T B"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "T B V"] | Float[Tensor, "T B"], tuple[Tensor, ...]]:
        """Logits o(t) of the token after each of `tokens`, and the state after the last.

        With `targets` it is the loss L(t) = −log p(y(t) | y(1..t-1)) in nats (T, B) instead of logits, which never
        stand in memory together: what training and evaluation need, for any size of the vocabulary. It is a keyword
        of the call, and no method of its own, so that what wraps a model's call (autocast, averaging over processes)
        wraps it too.

        Args:
            tokens: y(0..τ-1), the inputs.
            state: what an earlier call returned, to go on from there; zeros when missing.
            targets: y(1..τ), what comes after each input; -100 where it does not count.
            resets: true where a row begins a new sequence: its state is cleared before that step.
            lengths: the number of steps of each sequence.

        Raises:
            ShapeError: tokens are not (T, B) or, on the CPU, not of the vocabulary, or targets are of another shape.
        """
        h, after = self._hidden(tokens, state, resets=resets, lengths=lengths)
        if targets is None:
            return self.readout(h), after
        return linear_cross_entropy(h, self.readout.weight_ho, self.readout.bias_ho, targets), after

    def _hidden(
        self, tokens: Tensor, state: Sequence[Tensor] | None, **borders: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if tokens.dim() != 2:
            raise ShapeError(f"LanguageModel: tokens must be (T, B), got {tuple(tokens.shape)}; time comes first")
        if tokens.dtype != torch.int64:
            raise ShapeError(f"LanguageModel: tokens must be int64, got {tokens.dtype}; use tokens.long()")
        x = self.step_dropout(self._embed(tokens))  # (T, B, E)
        lookup = Lookup(tokens, self.embedding.weight) if self._embeds_plainly() else None
        h, after = self.recurrent(x, self._unflatten(state), lookup=lookup, **borders)  # (T, B, H)
        return self.locked_dropout(self.step_dropout(h)), _flatten(after)

    def _embed(self, tokens: Tensor) -> Tensor:
        """The tokens' embeddings; in training some token types are dropped everywhere (Gal & Ghahramani 2016)."""
        try:
            x: Tensor = self.embedding(tokens)
        except IndexError:
            raise ShapeError(
                f"LanguageModel: tokens must be in 0..{self.vocabulary_size - 1}, its vocabulary, got "
                f"{int(tokens.min())}..{int(tokens.max())}; encode the text with the model's own tokenizer"
            ) from None
        if not self.training or not self.embedding_dropout:
            return x
        kept = torch.rand(self.vocabulary_size, device=tokens.device) >= self.embedding_dropout
        return x * (kept[tokens] / (1 - self.embedding_dropout))[..., None].to(x.dtype)

    def _embeds_plainly(self) -> bool:
        """Whether the layers' inputs are just rows of the embedding's weight: each need be multiplied only once."""
        own = type(self)._embed is LanguageModel._embed and type(self.embedding) is nn.Embedding
        parts = (self.embedding, self.step_dropout)
        hooked = any(
            p._forward_hooks or p._forward_pre_hooks or p._backward_hooks or p._backward_pre_hooks for p in parts
        )
        dropped = (self.training and self.embedding_dropout > 0) or (
            self.step_dropout.training and self.step_dropout.p > 0
        )
        return own and not hooked and not dropped

    def _unflatten(self, state: Sequence[Tensor] | None) -> Any:
        if state is None:
            return None
        layers = 1 if isinstance(self.recurrent.hidden_size, int) else self.config.num_layers
        fields = [state[start : start + layers] for start in range(0, len(state), layers)]
        joined = [field[0] if layers == 1 else tuple(field) for field in fields]
        return joined[0] if len(joined) == 1 else tuple(joined)

    # -- decoding: one token at a time -----------------------------------------------------------------------------

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The state before the first token: zeros, second axis `batch_size`."""
        weight = self.embedding.weight
        _, state = self._hidden(torch.zeros(0, batch_size, dtype=torch.int64, device=weight.device), None)
        return state

    def step(
        self, tokens: Int[Tensor, " B"], state: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "B V"], tuple[Tensor, ...]]:
        """Logits of the next token after one more token of each row, and the new state."""
        logits, after = self(tokens[None], state)
        return logits[0], after

    def read(
        self, tokens: Int[Tensor, "T B"], state: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "B V"], tuple[Tensor, ...]]:
        """Logits of the next token after a whole prompt, read at once, and the new state."""
        h, after = self._hidden(tokens, state)
        return self.readout(h[-1]), after

    def reorder(self, state: Sequence[Tensor], indices: Int[Tensor, " N"]) -> tuple[Tensor, ...]:
        """The state of the rows `indices`, any number of them."""
        return tuple(field[:, indices] for field in state)

    # -- probability -----------------------------------------------------------------------------------------------

    def log_prob(self, tokens: Int[Tensor, "T B"], *, lengths: Int[Tensor, " B"] | None = None) -> SequenceLogProb:
        """log p(y(t) | y(1..t-1)) in nats, for each step and each sequence y(1..τ) (eq. 10.14, negated).

        Each sequence begins behind a border. To count its end too, let it end with the border token. What stands
        behind a length is not looked at.
        """
        targets = tokens
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=tokens.device)
            inside = torch.arange(len(tokens), device=tokens.device)[:, None] < lengths  # (T, B)
            targets = torch.where(inside, tokens, IGNORED)
            tokens = torch.where(inside, tokens, self.config.border_id)
        border = torch.full_like(tokens[:1], self.config.border_id)
        inputs = torch.cat([border, tokens[:-1]])  # y(0..τ-1), (T, B)
        nats, _ = self(inputs, targets=targets, lengths=lengths)  # (T, B)
        return SequenceLogProb(-nats, -nats.sum(0))

    @torch.no_grad()
    def sample(
        self, batch_size: int, max_length: int, *, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "T B"], Int[Tensor, " B"]]:
        """Ancestral sampling: y(t) ~ p(y(t) | y(1..t-1)) until the border token or `max_length` steps.

        Returns the tokens, the border token behind each sequence's end, and the lengths, ends not counted. It draws
        from the model in evaluation mode, and leaves every part in its own mode. Temperature, nucleus and other ways
        of choosing are in `tt.decoding`.
        """
        with in_evaluation_mode(self):
            return self._ancestral(batch_size, max_length, generator)

    def _ancestral(self, batch_size: int, max_length: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        state = self.initial_state(batch_size)
        device = self.embedding.weight.device
        tokens = torch.full((batch_size,), self.config.border_id, device=device)
        alive = torch.ones(batch_size, dtype=torch.bool, device=device)
        drawn = []
        for _ in range(max_length):
            logits, state = self.step(tokens, state)
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            tokens = torch.where(alive, tokens, self.config.border_id)
            alive = alive & (tokens != self.config.border_id)
            drawn.append(tokens)
            if not alive.any():
                break
        sequence = torch.stack(drawn) if drawn else tokens.new_zeros(0, batch_size)
        return sequence, (sequence != self.config.border_id).sum(0)


def _flatten(state: Any) -> tuple[Tensor, ...]:
    """A layer's final state as a flat tuple of tensors."""
    if isinstance(state, Tensor):
        return (state,)
    return tuple(tensor for part in state for tensor in _flatten(part))
