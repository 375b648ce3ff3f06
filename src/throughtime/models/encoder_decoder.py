"""Sequence to sequence: an encoder reads x(1..S), a decoder writes y(1..τ), and attention connects them (fig. 10.12).

    m(1..S) = encoder(x(1..S))                                  the memory, of both directions where there are two
    h(t)    = decoder(h(t-1), y(t-1) [, h̃(t-1)] [, τ-t])        h(0) from the encoder's final state, by the bridge
    c(t)    = Σ_j α_j(t) m_j                                    attention (`throughtime.layers.attention`)
    h̃(t)    = tanh(W [c(t); h(t)])
    p(y(t) | y(1..t-1), x) = softmax(c + V h̃(t))

Without attention all that the decoder knows of x is h(0), the fixed context C of fig. 10.12, and h̃(t) = h(t). With
input feeding the decoder also reads h̃(t-1), so that it knows where it has looked.

Where neither input feeding nor coverage asks for the step before, teacher forcing has no loop over time but the
recurrence itself: embeddings, attention and readout are products over all steps at once. With input feeding alone it is
one node of the graph (`throughtime.models.fed_decoder`); all else is a walk (`throughtime.models.decoder_walk`).

Source: Goodfellow, Bengio & Courville 2016, sections 10.4 and 12.4.5.1; Cho et al. 2014; Sutskever, Vinyals & Le 2014;
Bahdanau, Cho & Bengio 2015; Luong, Pham & Manning 2015, eqs. 5-6 and section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from throughtime.configuration import validate
from throughtime.errors import ShapeError, UsageError
from throughtime.layers import (
    IGNORED,
    Attention,
    LockedDropout,
    Memory,
    Readout,
    in_evaluation_mode,
    linear_cross_entropy,
    output_distribution,
)
from throughtime.models.decoder_walk import DecoderWalk, ancestral
from throughtime.models.design import inside_lengths
from throughtime.models.encoder_decoder_config import EncoderDecoderConfig
from throughtime.models.fed_decoder import fed_hidden, fed_refusal
from throughtime.models.feedback import Feedback, FeedbackModel, Lengths, Run
from throughtime.models.probability import SequenceLogProb
from throughtime.models.recurrent_layers import recurrent_layers
from throughtime.models.sequence_length import halting, remaining
from throughtime.nn import RecurrentLayer
from throughtime.nn.states import join_state

Source = Tensor | tuple[Tensor, Tensor | None]


class Encoded(NamedTuple):
    """What the encoder makes of sources: the memory, None without attention, and the decoder's initial states.

    summary (B, H): h of the encoder's last layer behind its last step, of both directions, from which lengths are
    predicted.
    """

    memory: Memory | None
    states: list[Any]
    summary: Tensor


class PreparedPairs(NamedTuple):
    """Pairs as the network takes them.

    external: τ-t where lengths are predicted, (T, B, 1), else (T, B, 0). fed: y(0..), int64 (T, B), the border first.
    targets: y(1..), the end among them where it is a symbol, the border behind it. lengths: steps of each pair (B,);
    inside: true (T, B) at those steps. symbols: the targets of each pair without the end (B,).
    """

    external: Tensor
    fed: Tensor
    targets: Tensor
    lengths: Tensor
    inside: Tensor
    symbols: Tensor
    encoded: Encoded


class EncoderDecoder(FeedbackModel):
    """p(y(1..τ), τ | x(1..S)) by an encoder, a decoder and attention.

    `EncoderDecoder(source_vocabulary_size=..., target_vocabulary_size=..., hidden_size=..., attention="general", ...)`
    takes the keys of `EncoderDecoderConfig`, or one as `config`. Tokens are int64 and time-major; a source is (S, B),
    or a pair of it and its lengths (B,). Targets do not hold their end: it is the model's to add. To decode it:
    `tt.decoding.given(model, inputs=source)`.

        >>> import torch, throughtime as tt
        >>> model = tt.models.EncoderDecoder(source_vocabulary_size=7, target_vocabulary_size=5, hidden_size=8)
        >>> x, y = torch.zeros(6, 2, dtype=torch.int64), torch.ones(4, 2, dtype=torch.int64)
        >>> model.log_prob(y, (x, torch.tensor([6, 3])), lengths=[4, 2]).total.shape
        torch.Size([2])

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        UsageError: an engine that there is none of.

    Source: see the module.
    """

    Config = EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig | None = None, **keys: Any) -> None:
        super().__init__(config if config is not None else validate(EncoderDecoderConfig, keys, where="EncoderDecoder"))
        shape = self.config
        size = shape.hidden_size
        self.distribution = output_distribution("categorical", shape.target_vocabulary_size)
        self.source_embedding = nn.Embedding(shape.source_vocabulary_size, shape.embedding_size)
        self.target_embedding = nn.Embedding(shape.target_vocabulary_size, shape.embedding_size)
        nn.init.uniform_(self.source_embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.target_embedding.weight, -0.1, 0.1)
        if shape.tied == "all":
            self.source_embedding.weight = self.target_embedding.weight
        directions = 2 if shape.bidirectional else 1
        self.encoder = recurrent_layers(
            shape, shape.embedding_size, size // directions, bidirectional=shape.bidirectional
        )
        counted = int(shape.stop == "predicted_length")
        fed = shape.embedding_size + counted + (size if shape.input_feeding else 0)
        self.decoder = recurrent_layers(shape, fed, size)
        fields = len(self.decoder.cell_type.State._fields)
        if shape.bridge == "linear":
            self.bridge = nn.ModuleList(nn.Linear(size, size) for _ in range(shape.num_layers * fields))
        if shape.attention != "none":
            self.attention = Attention(shape.attention, size, size, coverage=shape.coverage)
            self.combine = nn.Linear(2 * size, size, bias=False)
        tied = None if shape.tied == "none" else self.target_embedding.weight
        self.readout = Readout(size, shape.target_vocabulary_size, tied_weight=tied)
        if shape.stop == "bernoulli_halt":
            self.halt = nn.Linear(size, 1)
        if counted:
            self.length = nn.Linear(size, shape.max_length + 1)
        self.dropout = nn.Dropout(shape.dropout)
        self.locked_dropout = LockedDropout(shape.variational_dropout)

    # -- the loss ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: Source,
        *,
        targets: Int[Tensor, "T B"],
        lengths: Lengths = None,
        own: Bool[Tensor, "T1 B"] | None = None,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T1 B N"] | None = None,
    ) -> Float[Tensor, "T1 B"]:
        """L(t) = −log p(y(t) | y(1..t-1), x) in nats, by teacher forcing unless `own` says otherwise.

        There is one row more than targets: the last step, in which a sequence ends ("end_symbol", "bernoulli_halt":
        at a sequence's own length, zero behind it), or the first, −log p(τ) ("predicted_length"). In training a
        `coverage_loss` is added to each step.

        Args:
            inputs: x (S, B), or a pair of it and its lengths.
            targets: y(1..τ), without the end.
            lengths: τ of each sequence; T when missing.
            own: true where step t sees the network's own output of t-1 in place of the target's.
            feedback: what of its own output it sees: the embedding expected, or that of a "sample".
            noise: random numbers (T, B, `distribution.noise_size`) for samples.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
            UsageError: samples without noise.
        """
        sequences = self.prepare(inputs, targets, lengths)
        h = self._taught(sequences) if own is None else None  # (T, B, H)
        if h is None:
            return self.losses(sequences, self.run(sequences, own=own, feedback=feedback, noise=noise))
        if self.config.stop != "end_symbol":
            return self.losses(sequences, Run(self.outputs(h), h))
        # No logits of all steps: the readout and its loss in blocks.
        wanted = sequences.targets.masked_fill(~sequences.inside, IGNORED)
        return linear_cross_entropy(h, self.readout.weight_ho, self.readout.bias_ho, wanted)

    def prepare(self, inputs: Source, targets: Int[Tensor, "T B"], lengths: Lengths = None) -> PreparedPairs:
        """Checked pairs, their sources encoded.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        who, shape = type(self).__name__, self.config
        encoded = self.encode(inputs)
        batch = len(encoded.summary)
        if targets.dim() != 2 or targets.dtype != torch.int64 or targets.shape[1] != batch:
            raise ShapeError(
                f"{who}: targets must be int64 (T, {batch}), one sequence for each source, got {targets.dtype} "
                f"{tuple(targets.shape)}; time comes first"
            )
        steps = len(targets)
        symbols, inside = inside_lengths([steps] * batch if lengths is None else lengths, targets, who=who)
        assert symbols is not None
        assert inside is not None
        self._check_tokens(targets[inside], shape.target_vocabulary_size, "targets")
        if bool((targets[inside] == shape.border_id).any()):
            raise ShapeError(
                f"{who}: targets must not hold the border {shape.border_id}; the end is the model's to add"
            )
        if shape.stop == "predicted_length" and batch and int(symbols.max()) > shape.max_length:
            raise ShapeError(f"{who}: lengths must be at most max_length={shape.max_length}, "
                             f"got {int(symbols.max())}; make max_length greater")  # fmt: skip
        y = torch.where(inside, targets, shape.border_id)
        counted = shape.stop == "predicted_length"
        if not counted:
            y = functional.pad(y, (0, 0, 0, 1), value=shape.border_id)
        ran = symbols + (len(y) - steps)
        inside = torch.arange(len(y), device=y.device)[:, None] < ran
        external = remaining(symbols, len(y), shape.max_length)[..., : int(counted)].to(self.readout.bias_ho.dtype)
        return PreparedPairs(external, self._delayed(y), y, ran, inside, symbols, encoded)

    def run(
        self,
        sequences: PreparedPairs,
        *,
        own: Bool[Tensor, "T B"] | None = None,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T B N"] | None = None,
    ) -> Run:
        """The decoder over all steps: o(t), s(t) of "bernoulli_halt" behind it, and h̃(t); see `FeedbackModel`.

        Raises:
            UsageError: samples without noise.
        """
        h = self._taught(sequences) if own is None else None  # (T, B, H)
        if h is not None:
            return Run(self.outputs(h), h)
        return self._stepped(sequences, own, feedback, noise)

    def losses(self, sequences: PreparedPairs, done: Run) -> Float[Tensor, "T B"]:
        """−log p of each step in nats, given a run; see `forward`."""
        stop, o = self.config.stop, done.outputs
        log_p = self.distribution.log_prob(o[..., : self.distribution.size], sequences.targets)
        log_p = halting(o[..., -1], log_p, sequences.symbols) if stop == "bernoulli_halt" else log_p
        nats = -log_p
        if done.penalty is not None and self.training:
            nats = nats + self.config.coverage_loss * done.penalty
        nats = torch.where(sequences.inside, nats, 0.0)
        if stop != "predicted_length":
            return nats
        of_length = self.length_log_prob(sequences.encoded).gather(1, sequences.symbols[:, None])  # (B, 1)
        return torch.cat([-of_length.mT, nats])

    # -- the parts -----------------------------------------------------------------------------------------------------

    def encode(self, inputs: Source) -> Encoded:
        """Read the sources: x (S, B) int64, or a pair of it and its lengths (B,).

        Raises:
            ShapeError: another shape or type, lengths that do not fit, or tokens that the vocabulary lacks.
        """
        tokens, lengths = self.sources(inputs)
        return self.encoded(self.dropout(self.source_embedding(tokens)), lengths, self.encoder)

    def sources(self, inputs: Source) -> tuple[Int[Tensor, "S B"], Int[Tensor, " B"] | None]:
        """The tokens of the sources, zero on padding, and their lengths; see `encode`."""
        who, shape = type(self).__name__, self.config
        tokens, given = inputs if isinstance(inputs, tuple) else (inputs, None)
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ShapeError(
                f"{who}: a source must be int64 (S, B), got {tokens.dtype} {tuple(tokens.shape)}; time comes first"
            )
        lengths, inside = inside_lengths(given, tokens, who=who)
        if inside is not None:
            tokens = torch.where(inside, tokens, 0)
        self._check_tokens(tokens, shape.source_vocabulary_size, "a source")
        return tokens, lengths

    def encoded(
        self,
        x: Float[Tensor, "S B I"],
        lengths: Int[Tensor, " B"] | None,
        encoder: RecurrentLayer,
        remember: Callable[[Tensor, Tensor | None], Memory] | None = None,
    ) -> Encoded:
        """What an encoder makes of its inputs, bridge and memory included; `remember` stands for the attention's."""
        m, final = encoder(x, lengths=lengths)  # (S, B, H)
        ends = self._ends(final)
        memory = None
        if self.config.attention != "none":
            memory = (remember or self.attention.remember)(self.locked_dropout(self.dropout(m)), lengths)
        return Encoded(memory, self._bridge(ends), ends[-1][0])

    def _ends(self, final: Any) -> list[list[Tensor]]:
        """The encoder's final state, both directions side by side: the fields (B, H) of each layer."""
        fields = [final] if isinstance(final, Tensor) else list(final)  # (L · D, B, H / D) each
        return [
            [part.unflatten(0, (self.config.num_layers, -1))[layer].transpose(0, 1).flatten(1) for part in fields]
            for layer in range(self.config.num_layers)
        ]

    def _bridge(self, ends: list[list[Tensor]]) -> list[Any]:
        """The decoder's state before its first step, one NamedTuple of (B, H) for each layer."""
        shape, kind = self.config, self.decoder.cell_type.State
        if shape.bridge == "zeros":
            return self.decoder.zero_states(len(ends[0][0]), self.readout.bias_ho)
        if shape.bridge == "linear":
            maps = iter(self.bridge)
            ends = [[torch.tanh(next(maps)(field)) for field in layer] for layer in ends]
        return [kind(*layer) for layer in ends]

    def _taught(self, sequences: PreparedPairs) -> Float[Tensor, "T B H"] | None:
        """h̃ of all steps in one call, each having read the target before it; None where they must be walked."""
        if not self.config.stepped:
            return self._forced(sequences)
        return fed_hidden(self, sequences) if fed_refusal(self, sequences) is None else None

    def _forced(self, sequences: PreparedPairs) -> Float[Tensor, "T B H"]:
        """h̃ of all steps at once, each having read the target before it."""
        x = torch.cat([self.dropout(self.target_embedding(sequences.fed)), sequences.external], -1)  # (T, B, E)
        joined = join_state([[state] for state in sequences.encoded.states], equal_sizes=True, batched=True)
        h, _ = self.decoder(x, joined, lengths=sequences.lengths)  # (T, B, H)
        if sequences.encoded.memory is not None:
            attended = self.attention(h.transpose(0, 1), sequences.encoded.memory)
            h = self.attentional(attended.context.transpose(0, 1), h)
        shown: Tensor = self.locked_dropout(self.dropout(h))
        return shown

    def attentional(self, context: Float[Tensor, "*B H"], h: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        """h̃ = tanh(W [c; h]) (Luong et al. 2015, eq. 5)."""
        return torch.tanh(self.combine(torch.cat([context, h], -1)))

    def outputs(self, h: Float[Tensor, "*B H"]) -> Float[Tensor, "*B O"]:
        """o(t) = c + V h̃(t), with the logit of halting behind where that ends a sequence.

        Where the end is no symbol of the sequence, it has no probability among them.
        """
        o: Tensor = self.readout(h)
        if self.config.stop == "end_symbol":
            return o
        o = o.index_fill(-1, torch.tensor([self.config.border_id], device=o.device), torch.finfo(o.dtype).min)
        return torch.cat([o, self.halt(h)], -1) if self.config.stop == "bernoulli_halt" else o

    def length_log_prob(self, encoded: Encoded) -> Float[Tensor, "B L"]:
        """log p(τ | x) in nats for τ = 0..max_length, where lengths are predicted."""
        logits: Tensor = self.length(encoded.summary)
        return logits.log_softmax(-1)

    # -- step by step --------------------------------------------------------------------------------------------------

    def _stepped(self, sequences: PreparedPairs, own: Tensor | None, feedback: Feedback, noise: Tensor | None) -> Run:
        """Step by step, each having read the target, or the network's own output, of the step before."""
        if own is not None and feedback == "sample" and noise is None:
            raise UsageError(f"{type(self).__name__}: feedback='sample' needs noise; distribution.noise(T, B) draws it")
        given = self.target_embedding(sequences.fed)  # (T, B, E)
        walk = DecoderWalk(self, len(given), sequences.encoded)
        for t, y in enumerate(given):
            if own is not None and t:
                seen = self._own(walk.hidden[-1], feedback, None if noise is None else noise[t - 1])
                y = torch.where(own[t][:, None], seen, y)
            walk.advance(y, sequences.external[t])
        h = torch.stack(walk.hidden) if len(given) else self.readout.bias_ho.new_zeros(*given.shape[:2], walk.size)
        penalty = torch.stack(walk.penalties) if walk.penalties else None
        return Run(self.outputs(h), h, penalty)

    def _own(self, h: Float[Tensor, "B H"], feedback: Feedback, noise: Tensor | None) -> Float[Tensor, "B E"]:
        """What the network reads of its own output: a drawn token's embedding, or the expected one."""
        o = self.outputs(h)[..., : self.config.target_vocabulary_size]
        if feedback == "sample" and noise is not None:
            drawn: Tensor = self.target_embedding(self.distribution.sample(o, noise))
            return drawn
        return self.distribution.mean(o) @ self.target_embedding.weight

    def _delayed(self, y: Tensor) -> Tensor:
        """y(0..τ-1): one step later than y, the border first."""
        return functional.pad(y, (0, 0, 1, 0), value=self.config.border_id)[: len(y)]

    def _check_tokens(self, tokens: Tensor, size: int, what: str) -> None:
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise ShapeError(
                f"{type(self).__name__}: {what} must be tokens in 0..{size - 1}, got {int(tokens.min())}.."
                f"{int(tokens.max())}; encode with the model's own tokenizer"
            )

    # -- probability ---------------------------------------------------------------------------------------------------

    def log_prob(self, targets: Int[Tensor, "T B"], inputs: Source, *, lengths: Lengths = None) -> SequenceLogProb:
        """log p(y, τ | x) in nats: of each step, as `forward` has them, and of each sequence.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """
        sequences = self.prepare(inputs, targets, lengths)
        steps = -self.losses(sequences, self.run(sequences)._replace(penalty=None))
        return SequenceLogProb(steps, steps.sum(0))

    @torch.no_grad()
    def sample(
        self, inputs: Source, *, max_length: int, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "T B"], Int[Tensor, " B"]]:
        """Ancestral sampling of y and of its length, in evaluation mode.

        Args:
            inputs: x (S, B), or a pair of it and its lengths.
            max_length: a sequence that has not ended by then is cut there.
            generator: of all that is drawn.

        Returns:
            y (T, B), the border behind the lengths; the lengths (B,).

        Raises:
            ShapeError: inputs that do not fit.
            UsageError: a negative max_length.
            DivergedError: the outputs are no numbers.
        """
        if max_length < 0:
            raise UsageError(f"{type(self).__name__}: max_length must be at least 0 steps, got {max_length}")
        with in_evaluation_mode(self):
            y, found = ancestral(self, self.encode(inputs), max_length, generator)
        inside = torch.arange(len(y), device=y.device)[:, None] < found
        return torch.where(inside, y, self.config.border_id)[: int(found.max()) if len(found) else 0], found
