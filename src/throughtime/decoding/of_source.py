"""An encoder-decoder, given sources, as something to decode: one step of its decoder for many rows at once.

Rows that go on from one source look at one memory: with K rows for each of G sources, attention is G products of K
queries, and no copy of what the encoder made. Where the native engine takes the decoder's layers, their weights are
packed once and every step runs on it, a whole beam as one batch.

The actions are those of `throughtime.decoding.conditioned`, but that the end is the model's border token, a category
among the others:

    0 .. V-1    a token; the border is the end, and what is read before the first action
    V+τ         where lengths are predicted, the first action: the sequence will have τ tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from throughtime.decoding.packed_decoder import DecoderSteps, packed_decoder
from throughtime.decoding.protocol import Ranked
from throughtime.errors import PromptError, ShapeError
from throughtime.kernels.native.ranking import PackedReadout
from throughtime.layers import Memory, in_evaluation_mode
from throughtime.models import EncoderDecoder
from throughtime.models.sequence_length import remaining
from throughtime.nn import LayerSteps

# The length of a sequence that goes on for as long as it is asked to.
_ENDLESS = 2**62


class Writing(NamedTuple):
    """Where the rows stand.

    read: the actions read so far, the opening one among them. sources: which source each row has (N,). present: the
    sources that some row has, in the order of the rows, `each` rows of every one; memory is theirs. lengths: the tokens
    of each row, where they are predicted (N,). layers: the states of the layers; row i goes on from their row
    `picked[i]` (N,), or from row i where that is None. fed: h̃(t-1) (N, H), where it is fed back. coverage: (N, S) or
    None. weights: the attention of the last step (M, S), picked as the states are; None without it, or before it.
    """

    read: int
    sources: Tensor
    present: Tensor
    each: int
    memory: Memory | None
    lengths: Tensor | None
    layers: list[Any]
    picked: Tensor | None
    fed: Tensor | None
    coverage: Tensor | None
    weights: Tensor | None


class OfSource(nn.Module):
    """p(y, τ | x) of an encoder-decoder for given sources, step by step: what `given` makes of it.

    vocabulary_size: actions. border_id: the end. stop_kind: how sequences end. silent_actions: those at the beginning
    that are no part of a sequence. batch_size: the sources, one for each row of what is decoded; None where there is a
    single one, for any number of rows.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        inputs: Int[Tensor, "S B"] | Int[Tensor, " S"],
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        single = inputs.dim() == 1
        config = model.config
        self.model = model
        self.stop_kind: str = config.stop
        self.border_id: int = config.border_id
        self.symbols: int = config.target_vocabulary_size
        self.silent_actions = int(config.stop == "predicted_length")
        self.vocabulary_size = self.symbols + self.silent_actions * (1 + config.max_length)
        tokens = inputs[:, None] if single else inputs
        given = None if lengths is None else torch.as_tensor(lengths, device=tokens.device)
        packed = packed_decoder(model)
        with torch.no_grad(), in_evaluation_mode(model):
            remember = None
            if packed is None or packed.encoder is None:
                self._encoded = model.encode((tokens, given))
            else:
                read, checked = model.sources((tokens, given))
                x = functional.one_hot(read, config.source_vocabulary_size).to(torch.float32)  # (S, B, V)
                remember = None if packed.memory is None else packed.remember
                self._encoded = model.encoded(x, checked, packed.encoder, remember)
            memory = self._encoded.memory
            self._memory = memory if memory is None or remember is not None else self._combined(memory)
        self.batch_size = None if single else tokens.shape[1]
        self._steps = None if packed is None else DecoderSteps(packed, model.decoder.cell_type.State)
        self._attention = None if packed is None else packed.attention
        self._readout: PackedReadout | None = None
        if packed is not None and config.stop == "end_symbol":
            self._readout = packed.readout
            # A method that a model has is a promise: see `Ranking`.
            self.rank = self._rank

    def initial_state(self, batch_size: int) -> Writing:
        """Before the first action.

        Raises:
            ShapeError: another number of rows than there are sources.
        """
        if self.batch_size not in (None, batch_size):
            raise ShapeError(
                f"decoding: one row for each of the {self.batch_size} sources, got {batch_size} rows; for several "
                "sequences of one, give that one without the axis of the batch"
            )
        summary, config = self._encoded.summary, self.model.config
        sources = torch.arange(batch_size, device=summary.device) % max(1, len(summary))
        fed = summary.new_zeros(batch_size, config.hidden_size) if config.input_feeding else None
        lengths = torch.full_like(sources, _ENDLESS) if self.silent_actions else None
        begun = Writing(0, sources, sources[:0], 1, None, lengths, list(self._encoded.states), sources, fed, None, None)
        begun = self._with_memory(begun)
        if begun.memory is not None and config.coverage:
            begun = begun._replace(coverage=summary.new_zeros(batch_size, begun.memory.values.shape[1]))
        return begun

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " N"], state: Writing) -> tuple[Float[Tensor, "N V"], Writing]:
        """log p of each action after one more, and the new state.

        Raises:
            PromptError: the first action read is not `border_id`.
        """
        self._check_opening(tokens, state)
        if self.silent_actions and state.read == 0:
            log_p = self.model.length_log_prob(self._encoded)[state.sources]  # (N, max_length + 1)
            return functional.pad(log_p, (self.symbols, 0), value=-math.inf), state._replace(read=1)
        if self.silent_actions and state.read == 1:
            state = state._replace(lengths=(tokens - self.symbols).clamp(min=0))
            tokens = torch.full_like(tokens, self.border_id)
        h, state = self.advance(tokens, state)
        if self._readout is not None:
            return self._readout.logits(h).log_softmax(-1), state
        return self._actions(self.model.outputs(h), state), state

    def _rank(self, tokens: Int[Tensor, " N"], state: Writing, k: int, end: int | None) -> Ranked:
        """One step and the `k` likeliest tokens after it, as `Ranking` says."""
        assert self._readout is not None
        self._check_opening(tokens, state)
        h, state = self.advance(tokens, state)
        return Ranked(*self._readout.rank(h, k, end=end), state)

    def _check_opening(self, tokens: Int[Tensor, " N"], state: Writing) -> None:
        if state.read == 0 and bool((tokens != self.border_id).any()):
            raise PromptError(f"decoding: a prompt must begin with {self.border_id}, which opens every sequence of "
                              f"{type(self.model).__name__}, got {tokens.tolist()}")  # fmt: skip

    @torch.no_grad()
    def advance(self, tokens: Int[Tensor, " N"], state: Writing) -> tuple[Float[Tensor, "N H"], Writing]:
        """h̃(t) of each row after one more token, and the new state; the state's `read` has counted it."""
        model, t = self.model, state.read + 1 - self.silent_actions  # of the next token
        x = tokens
        if self._steps is None or not self._steps.reads_tokens:
            x = self._inputs(tokens, t, state)
        picked = _picked(state)
        if self._steps is None:
            layers = [type(layer)(*(field[picked] for field in layer)) for layer in state.layers]
            with in_evaluation_mode(model):
                h, layers = LayerSteps(model.decoder, 1, x).advance(0, x, layers)
        else:
            h, layers = self._steps.advance(x, state.layers, picked)
        weights, coverage = None, state.coverage
        if state.memory is not None:
            h, weights = self._attended(h, state)
            coverage = None if coverage is None else coverage + weights
        return h, state._replace(
            read=state.read + 1,
            layers=layers,
            picked=None,
            fed=None if state.fed is None else h,
            coverage=coverage,
            weights=weights,
        )

    def reorder(self, state: Writing, indices: Int[Tensor, " N"]) -> Writing:
        """The state of the rows `indices`, any number of them."""
        sources = state.sources[indices]
        chosen = state._replace(
            sources=sources,
            lengths=None if state.lengths is None else state.lengths[indices],
            picked=_picked(state)[indices],  # not the caller's indices, which may be of any kind, and change
            fed=None if state.fed is None else state.fed[indices],
            coverage=None if state.coverage is None else state.coverage[indices],
        )
        # Mostly rows change places within their source.
        return chosen if torch.equal(sources, state.sources) else self._with_memory(chosen)

    def attention(self, state: Writing) -> Float[Tensor, "N S"] | None:
        """The weights with which the step that led to `state` looked at the source; None without attention."""
        return state.weights if state.weights is None or state.picked is None else state.weights[state.picked]

    def source_mask(self, state: Writing) -> Bool[Tensor, "N S"] | None:
        """True at the positions of each row's source; None without attention."""
        if state.memory is None:
            return None
        inside = state.memory.inside
        if inside is None:
            inside = torch.ones(state.memory.values.shape[:2], dtype=torch.bool, device=state.sources.device)
        return inside.repeat_interleave(state.each, 0)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _inputs(self, tokens: Int[Tensor, " N"], t: int, state: Writing) -> Float[Tensor, "N I"]:
        """What the decoder's layers read at step t."""
        config = self.model.config
        parts = [self.model.target_embedding(tokens.clamp(max=self.symbols - 1))]
        if state.lengths is not None:
            parts.append(remaining(state.lengths - (t - 1), 1, config.max_length)[0].to(parts[0].dtype))
        if state.fed is not None:
            parts.append(state.fed)
        return torch.cat(parts, -1)

    def _attended(self, h: Float[Tensor, "N H"], state: Writing) -> tuple[Float[Tensor, "N H"], Float[Tensor, "N S"]]:
        """h̃(t) and α(t): the rows of one source as several queries of one memory."""
        model, memory = self.model, state.memory
        assert memory is not None
        if self._attention is not None:
            return self._attention.attend(h, memory.keys, memory.values, memory.inside)
        if state.coverage is None:
            query = h.view(len(state.present), state.each, -1)  # (G, K, H)
            context, weights = model.attention(query, memory)
        else:
            # The keys are each row's own.
            rows = torch.arange(len(state.present), device=h.device).repeat_interleave(state.each)
            context, weights = model.attention(h[:, None], memory.select(rows), state.coverage)
        of_h = functional.linear(h, model.combine.weight[:, model.config.hidden_size :])
        return torch.tanh(context.reshape(len(h), -1) + of_h), weights.reshape(len(h), -1)

    def _combined(self, memory: Memory) -> Memory:
        """W_c m_j in place of m_j: as W_c c(t) = Σ_j α_j(t) W_c m_j, no step has to multiply its context."""
        weight = self.model.combine.weight[:, : self.model.config.hidden_size]  # W_c of W = [W_c, W_h]
        return memory._replace(values=functional.linear(memory.values, weight))

    def _with_memory(self, state: Writing) -> Writing:
        """The state with the memory of the sources that its rows have."""
        if self._memory is None:
            return state
        present, counts = torch.unique_consecutive(state.sources, return_counts=True)
        each = int(counts[0]) if len(counts) else 1
        if bool((counts != each).any()):
            present, each = state.sources, 1
        if state.memory is not None and torch.equal(present, state.present):
            return state._replace(each=each)
        everything = torch.arange(len(self._memory.values), device=present.device)
        memory = self._memory if torch.equal(present, everything) else self._memory.select(present)
        return state._replace(present=present, each=each, memory=memory)

    def _actions(self, o: Float[Tensor, "N O"], state: Writing) -> Float[Tensor, "N V"]:
        """log p of each action that o(t) stands for; of the end alone where a predicted length is over."""
        log_p = o[:, : self.symbols].log_softmax(-1)  # (N, V)
        if self.stop_kind == "end_symbol":
            return log_p
        if self.stop_kind == "bernoulli_halt":
            log_p = functional.logsigmoid(-o[:, self.symbols :]) + log_p
            log_p[:, self.border_id] = functional.logsigmoid(o[:, self.symbols])
            return log_p
        assert state.lengths is not None
        over = (state.read - self.silent_actions > state.lengths)[:, None]  # (N, 1)
        log_p = log_p.masked_fill(over, -math.inf)
        log_p[:, self.border_id] = torch.where(over[:, 0], 0.0, -math.inf).to(log_p.dtype)
        return functional.pad(log_p, (0, self.vocabulary_size - self.symbols), value=-math.inf)


def _picked(state: Writing) -> Int[Tensor, " N"]:
    """Which row of its layers each row of a state goes on from."""
    return torch.arange(len(state.sources), device=state.sources.device) if state.picked is None else state.picked
