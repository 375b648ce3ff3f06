"""A design of chapter 10, given what it is conditioned on, as something to decode.

However a sequence ends, and whatever the network sees, writing one is a walk over actions. With V symbols they are

    0 .. V-1      a symbol y(t)
    V             the end, which is also what is read before the first action
    V+1+τ         where lengths are predicted, the first action: the sequence will have τ symbols

and log p of each, given those before it, is

    end_symbol         log p(y(t)), of V+1 categories
    bernoulli_halt     log (1 - s(t)) + log p(y(t));  log s(t) of the end
    predicted_length   log p(τ) first; then log p(y(t)), and the end for certain behind τ symbols
    given              log p(y(t)), and the end for certain behind the given length

so that a search over actions is a search over sequences of all lengths, in log-probabilities of the model itself.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from throughtime.decoding.of_source import OfSource
from throughtime.errors import ConfigError, PromptError, ShapeError, UsageError
from throughtime.models import (
    ConditionalRecurrent,
    ContextToSequence,
    Design,
    EncoderDecoder,
    FeedbackDesign,
    HiddenRecurrent,
)

# The length of a sequence that goes on for as long as it is asked to.
_ENDLESS = 2**62


class Actions(NamedTuple):
    """Where a row of sequences stands.

    read: the actions read so far, the opening one among them. rows: which of the contexts or inputs each row has, (B,).
    lengths: the symbols of each row, where they are known, (B,). layers: the states of the layers, (B, ·) each.
    outside: what does not change on the way, the same for all rows.
    """

    read: int
    rows: Tensor
    lengths: Tensor
    layers: list[Any]
    outside: Tensor | None


class Conditioned(nn.Module):
    """p(y, τ | x) of a design, for a given x, step by step: what `given` makes, `Steppable`.

    vocabulary_size: actions. border_id: the end, V. stop_kind: how sequences end. silent_actions: those at the
    beginning that are no part of a sequence. batch_size: the contexts or inputs, one for each row of what is decoded;
    None where there is a single one, for any number of rows.
    """

    def __init__(self, model: Design, stop_kind: str, batch_size: int | None, lengths: Tensor) -> None:
        super().__init__()
        self.model = model
        self.stop_kind = stop_kind
        self.batch_size = batch_size
        self.symbols: int = model.config.output_size
        self.border_id = self.symbols
        self.silent_actions = int(stop_kind == "predicted_length")
        self.vocabulary_size = self.symbols + 1 + self.silent_actions * (1 + getattr(model.config, "max_length", 0))
        self._lengths = lengths

    def initial_state(self, batch_size: int) -> Actions:
        """Before the first action.

        Raises:
            ShapeError: another number of rows than there are contexts or inputs.
        """
        if self.batch_size not in (None, batch_size):
            raise ShapeError(
                f"decoding: one row for each of the {self.batch_size} contexts or inputs, got {batch_size} rows; for "
                "several sequences of one, give that one without the axis of the batch"
            )
        device = self._lengths.device
        rows = torch.arange(batch_size, device=device) % len(self._lengths)
        layers, outside = self._begin(rows)
        return Actions(0, rows, self._lengths[rows], layers, outside)

    def step(self, tokens: Int[Tensor, " B"], state: Actions) -> tuple[Float[Tensor, "B V"], Actions]:
        """log p of each action after one more, and the new state.

        Raises:
            PromptError: the first action read is not `border_id`.
        """
        self._check_opening(tokens, state)
        t = state.read + 1 - self.silent_actions  # of the next symbol
        o, layers = self._outputs(tokens, t, state)
        return self._symbol_actions(o, t > state.lengths), state._replace(read=state.read + 1, layers=layers)

    def _check_opening(self, tokens: Int[Tensor, " B"], state: Actions) -> None:
        if state.read == 0 and bool((tokens != self.border_id).any()):
            raise PromptError(f"decoding: a prompt must begin with {self.border_id}, which opens every sequence of "
                              f"{type(self.model).__name__}, got {tokens.tolist()}")  # fmt: skip

    def reorder(self, state: Actions, indices: Int[Tensor, " N"]) -> Actions:
        """The state of the rows `indices`, any number of them."""
        layers = [type(layer)(*(field[indices] for field in layer)) for layer in state.layers]
        return Actions(state.read, state.rows[indices], state.lengths[indices], layers, state.outside)

    # -- what the designs differ in --------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, rows: Int[Tensor, " B"]) -> tuple[list[Any], Tensor | None]:
        """The states of the layers before the first step, and what enters from outside."""

    @abstractmethod
    def _outputs(self, tokens: Int[Tensor, " B"], t: int, state: Actions) -> tuple[Float[Tensor, "B O"], list[Any]]:
        """o(t), t from 1, after y(t-1) in `tokens`, and the new states of the layers."""

    # -- from outputs to actions -----------------------------------------------------------------------------------

    def _symbol_actions(self, o: Float[Tensor, "B O"], over: Bool[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """log p of each action that o(t) stands for; of the end alone where a known length is `over`."""
        if self.stop_kind == "end_symbol":
            return o.log_softmax(-1)  # (B, V+1)
        log_p = o[:, : self.symbols].log_softmax(-1)  # (B, V)
        if self.stop_kind == "bernoulli_halt":
            halt = o[:, self.symbols :]  # (B, 1)
            return torch.cat([functional.logsigmoid(-halt) + log_p, functional.logsigmoid(halt)], -1)
        end = torch.where(over, 0.0, -math.inf).to(log_p.dtype)  # (B,)
        actions = torch.cat([log_p.masked_fill(over[:, None], -math.inf), end[:, None]], -1)  # (B, V+1)
        return functional.pad(actions, (0, self.vocabulary_size - self.symbols - 1), value=-math.inf)

    def _fed(self, tokens: Int[Tensor, " B"], like: Tensor) -> Float[Tensor, "B F"]:
        """y(t-1) as the network reads it, zeros in place of what is no symbol."""
        features = self.model.distribution.features(tokens.clamp(max=self.symbols - 1)).to(like.dtype)
        return features * (tokens < self.symbols)[:, None]


class _OfContext(Conditioned):
    """ContextToSequence, given x."""

    model: ContextToSequence

    def __init__(self, model: ContextToSequence, context: Tensor | None, lengths: Tensor | None) -> None:
        single = context is None or context.dim() == 1
        contexts = context[None] if context is not None and single else context
        count = 1 if contexts is None else len(contexts)
        self._check(model, contexts, count)
        device = model.readout.bias_ho.device
        if lengths is None:
            lengths = torch.full((count,), _ENDLESS, device=device)
        super().__init__(model, model.config.stop, None if single else count, lengths)
        self._contexts = contexts

    @staticmethod
    def _check(model: ContextToSequence, contexts: Tensor | None, count: int) -> None:
        size, got = model.config.context_size, None if contexts is None else tuple(contexts.shape)
        if got != ((count, size) if size else None):
            expected = f"({size},) or (B, {size})" if size else "None, as context_size is 0"
            raise ShapeError(f"decoding: the context of {type(model).__name__} must be {expected}, got "
                             f"{got if got is None or len(got) != 2 or got[0] != 1 else got[1:]}")  # fmt: skip

    def _begin(self, rows: Int[Tensor, " B"]) -> tuple[list[Any], Tensor | None]:
        contexts = None if self._contexts is None else self._contexts[rows]
        like = self.model.readout.bias_ho.new_empty(len(rows), 1)
        return self.model.states(contexts) or self.model.first_states(like), self._contexts

    def _outputs(self, tokens: Int[Tensor, " B"], t: int, state: Actions) -> tuple[Float[Tensor, "B O"], list[Any]]:
        contexts = None if state.outside is None else state.outside[state.rows]
        # Of the symbols from t on, the first step.
        external = self.model.external(contexts, state.lengths - (t - 1), 1)[0]  # (B, E)
        return _advance(self.model, external, self._fed(tokens, external), state.layers)

    def step(self, tokens: Int[Tensor, " B"], state: Actions) -> tuple[Float[Tensor, "B V"], Actions]:
        """As every step; where lengths are predicted, the first is for the length, which the second reads."""
        if not self.silent_actions or state.read > 1:
            return super().step(tokens, state)
        if state.read == 1:
            return super().step(tokens, state._replace(lengths=(tokens - self.symbols - 1).clamp(min=0)))
        self._check_opening(tokens, state)
        contexts = None if state.outside is None else state.outside[state.rows]
        of_lengths = self.model.length_log_prob(contexts, len(state.rows))  # (B, max_length + 1)
        return functional.pad(of_lengths, (self.symbols + 1, 0), value=-math.inf), state._replace(read=1)


class _OfInputs(Conditioned):
    """A design with an output for each input: x(1..τ) as `outside`, (T + 1, B, ·) with zeros behind the end."""

    def __init__(self, model: Design, inputs: Tensor, lengths: Any) -> None:
        single = inputs.dim() == (1 if inputs.dtype == torch.int64 else 2)
        inputs = inputs[:, None] if single else inputs
        x, checked, _ = model.read_inputs(inputs, lengths)  # (T, B, I)
        if checked is None:
            checked = torch.full((x.shape[1],), len(x), device=x.device)
        super().__init__(model, "given", None if single else x.shape[1], checked)
        self._x = x

    def _at(self, t: int, state: Actions) -> Tensor:
        """The row of each sequence at step t, from 1; zeros behind the last."""
        assert state.outside is not None
        return state.outside[min(t, len(state.outside)) - 1, state.rows]


class _Fed(_OfInputs):
    """ConditionalRecurrent and OutputRecurrent, given x(1..τ)."""

    model: ConditionalRecurrent

    def _begin(self, rows: Int[Tensor, " B"]) -> tuple[list[Any], Tensor | None]:
        return self.model.first_states(self._x.new_empty(len(rows), 1)), functional.pad(self._x, (0, 0, 0, 0, 0, 1))

    def _outputs(self, tokens: Int[Tensor, " B"], t: int, state: Actions) -> tuple[Float[Tensor, "B O"], list[Any]]:
        external = self._at(t, state)
        return _advance(self.model, external, self._fed(tokens, external), state.layers)


class _Independent(_OfInputs):
    """HiddenRecurrent, given x(1..τ): its outputs are known beforehand, whatever the symbols are."""

    model: HiddenRecurrent

    def _begin(self, rows: Int[Tensor, " B"]) -> tuple[list[Any], Tensor | None]:
        return [], functional.pad(self.model(self._x, lengths=self._lengths), (0, 0, 0, 0, 0, 1))

    def _outputs(self, tokens: Int[Tensor, " B"], t: int, state: Actions) -> tuple[Float[Tensor, "B O"], list[Any]]:
        return self._at(t, state), []


def _advance(
    model: FeedbackDesign, external: Float[Tensor, "B E"], fed: Float[Tensor, "B F"], layers: list[Any]
) -> tuple[Float[Tensor, "B O"], list[Any]]:
    """One step of a design that sees its outputs."""
    h, layers = model.advance(torch.cat([external, fed], -1), layers)
    return model.readout(model.dropout(h)), layers


def given(
    model: Design | EncoderDecoder,
    *,
    context: Tensor | None = None,
    inputs: Tensor | None = None,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
) -> Conditioned | OfSource:
    """A model of p(y | x) as `greedy`, `sample` and `beam_search` take it, given what it is conditioned on.

    The tokens of a design are the categories 0..V-1 of y(t), and V, the end; those of an encoder-decoder its own, the
    border being the end. `step` gives log-probabilities.

        >>> import torch, throughtime as tt
        >>> model = tt.models.ContextToSequence(context_size=3, output_size=5, hidden_size=8, stop="bernoulli_halt")
        >>> about = tt.decoding.given(model, context=torch.zeros(3))
        >>> tt.decoding.greedy(about, length=4, stop=tt.decoding.BernoulliHalt()).tokens.shape[1]
        1

    Args:
        model: `EncoderDecoder`; or `ContextToSequence`, `ConditionalRecurrent`, `OutputRecurrent` or
            `HiddenRecurrent`, with categorical outputs.
        context: of `ContextToSequence`: (C,), or (B, C) for one sequence each; None where `context_size` is 0.
        inputs: of the others: x(1..τ), (T, I) or (T, B, I), or categories (T,) or (T, B); of an encoder-decoder the
            source, (S,) or (S, B).
        lengths: τ of each sequence (B,), where the model does not choose it: by default that of the inputs; of an
            encoder-decoder the lengths of the sources.

    Raises:
        UsageError: another model; a context for inputs, or inputs for a context.
        ConfigError: outputs that are no categories.
        ShapeError: context, inputs or lengths that do not fit; lengths for a model that chooses them.
    """
    name = type(model).__name__
    if isinstance(model, EncoderDecoder):
        if inputs is None or context is not None:
            raise UsageError(f"decoding: {name} takes a source; pass inputs= alone")
        return OfSource(model, inputs, lengths)
    if not isinstance(model, ContextToSequence | ConditionalRecurrent | HiddenRecurrent):
        raise UsageError(f"decoding: given is for designs that put out sequences, got {name}; "
                         "a model that has step() is decoded as it is")  # fmt: skip
    if model.config.output != "categorical":
        raise ConfigError(f"decoding: {name} must have categorical outputs, got {model.config.output}; "
                          "its own sample() draws such sequences")  # fmt: skip
    if isinstance(model, ContextToSequence):
        if inputs is not None:
            raise UsageError(f"decoding: {name} takes a context, got inputs; pass context=")
        if lengths is not None and model.config.stop != "given":
            raise ShapeError(f'decoding: lengths must be None, as {name} was built with stop="{model.config.stop}" and '
                             "chooses them itself")  # fmt: skip
        return _OfContext(model, context, _context_lengths(model, context, lengths))
    if inputs is None or context is not None:
        got = "nothing" if inputs is None and context is None else "a context" if inputs is None else "both"
        raise UsageError(f"decoding: {name} takes inputs, got {got}; pass inputs= alone")
    kind = _Independent if isinstance(model, HiddenRecurrent) else _Fed
    return kind(model, inputs, lengths)


def _context_lengths(model: ContextToSequence, context: Tensor | None, lengths: Any) -> Tensor | None:
    """Given lengths as a tensor, one for each context."""
    if lengths is None:
        return None
    device = model.readout.bias_ho.device
    found = torch.as_tensor(lengths, device=device)
    count = 1 if context is None or context.dim() == 1 else len(context)
    if found.shape != (count,) or found.is_floating_point() or bool((found < 0).any()):
        raise ShapeError(f"decoding: lengths must be {count} integers >= 0, one for each context, got "
                         f"{found.tolist()}")  # fmt: skip
    return found
