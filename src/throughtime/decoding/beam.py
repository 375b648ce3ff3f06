"""Beam search: the likeliest sequences among those that a limited number of beginnings leads to.

    s(y(1..t)) = s(y(1..t-1)) + log p(y(t) | y(1..t-1))

At each step every kept beginning is lengthened by every token; of those that go on, the `width` with the greatest s are
kept. A sequence that ends leaves the beam for good: nothing that is found later can push it out but a likelier whole
sequence. With a width of all beginnings this is a search through everything.

Source: Lowerre 1976, "The HARPY speech recognition system"; Graves 2012, "Sequence transduction with recurrent neural
networks", section 2.6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.decoding.protocol import Steppable, reordered
from throughtime.decoding.sampling import PromptIds, diverged, prompt_ids, read_prompt, silent_actions
from throughtime.decoding.stop import StopRule, end_of
from throughtime.errors import ConfigError
from throughtime.layers.modes import in_evaluation_mode


class Hypotheses(NamedTuple):
    """The N best sequences of each row that were found, the best first.

    tokens: (T, B, N) int64, the prompt not among them; the end symbol behind a sequence's end.
    lengths: (B, N) int64, tokens of each sequence before its end symbol.
    scores: (B, N) float64, log p of each whole sequence under the model, in nats, its end included; -inf where a row
        has fewer than N sequences.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


def beam_search(
    model: Steppable,
    prompt: PromptIds = None,
    *,
    length: int,
    width: int,
    n_best: int = 1,
    stop: StopRule | None = None,
) -> Hypotheses:
    """The likeliest sequences that a beam of `width` beginnings finds, by the model's own steps.

        >>> import torch, throughtime as tt
        >>> model = tt.models.LanguageModel(vocabulary_size=10, hidden_size=8, embedding_size=4)
        >>> found = tt.decoding.beam_search(model, length=5, width=4, n_best=2, stop=tt.decoding.EndSymbol())
        >>> found.lengths.shape, bool((found.scores[:, 0] >= found.scores[:, 1]).all())
        (torch.Size([1, 2]), True)

    Args:
        model: anything `Steppable`, as in `sample`; rows of its state are picked as `Reordering` says.
        prompt: what is read first: (T,) ids, or (T, B); by default the model's border token.
        length: tokens to write, at most; a sequence that has not ended by then is cut there, and counts as it is.
        width: beginnings kept for each row.
        n_best: sequences to return for each row.
        stop: what ends a sequence, as in `sample`.

    Raises:
        PromptError, ShapeError: see `sample`.
        ConfigError: a length below 0, a width or n_best below 1; `stop` is none of the model's.
        DivergedError: the logits are not numbers.
    """
    for name, value, least in (("length", length, 0), ("width", width, 1), ("n_best", n_best, 1)):
        if value < least:
            raise ConfigError(f"beam_search: {name} must be >= {least}, got {value}")
    ids = prompt_ids(model, prompt, 1)  # (T, B)
    search = _Search(ids.shape[1], ids.device, length, width, n_best, end_of(model, stop), silent_actions(model))
    if length:
        _search(model, ids, search)
    return search.best()


@torch.inference_mode()
def _search(model: Steppable, tokens: Int[Tensor, "T B"], search: _Search) -> None:
    """Lengthen until nothing better can come."""
    logits, state = read_prompt(model, tokens)
    while True:
        log_p = logits.double().log_softmax(-1)  # (B·K, V)
        if log_p.isnan().any():
            raise diverged(model)
        rows, chosen = search.lengthen(log_p)
        if search.settled():
            return
        state = reordered(model, state, rows, rows=len(logits))
        with in_evaluation_mode(model):
            logits, state = model.step(chosen, state)


class _Search:
    """The beam of every row, and the best that it has found.

    Beginnings are kept as a chain: for each step, the token of each of the K beginnings and which one it came from.
    """

    def __init__(
        self,
        rows: int,
        device: torch.device,
        length: int,
        width: int,
        n_best: int,
        end: int | None,
        silent: int,
    ) -> None:
        self.steps, self.width, self.end, self.silent = length + silent, width, end, silent
        self.scores = torch.zeros(rows, 1, dtype=torch.float64, device=device)  # (B, K) of the beginnings
        self.tokens: list[Tensor] = []  # (B, K) at each step
        self.parents: list[Tensor] = []
        # Of whole sequences: their scores, their steps, and the beginning that the last of these steps lengthened.
        self.found = torch.full((rows, n_best), -math.inf, dtype=torch.float64, device=device)
        self.found_steps = torch.zeros(rows, n_best, dtype=torch.int64, device=device)
        self.found_slots = torch.zeros_like(self.found_steps)
        if not length:
            self._keep(self.scores, silent, torch.zeros_like(self.found_steps[:, :1]))

    def lengthen(self, log_p: Float[Tensor, "N V"]) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """One more token for every beginning: which rows of the model's batch go on, and their tokens."""
        batch, before = self.scores.shape
        scores = self.scores[..., None] + log_p.reshape(batch, before, -1)  # (B, K, V)
        step = len(self.tokens)
        if self.end is not None:
            slots = torch.arange(before, device=scores.device).expand(batch, -1)
            self._keep(scores[..., self.end], step, slots)
            scores[..., self.end] = -math.inf
        last = step + 1 == self.steps
        vocabulary = scores.shape[-1]
        flat = scores.flatten(1)  # (B, K·V)
        kept = max(self.width, self.found.shape[1]) if last else self.width
        self.scores, best = flat.topk(min(kept, flat.shape[1]))  # (B, K')
        self.tokens.append(best % vocabulary)
        self.parents.append(best // vocabulary)
        if last:
            # What has not ended is cut here.
            slots = torch.arange(best.shape[1], device=best.device).expand(batch, -1)
            self._keep(self.scores, step + 1, slots)
        offsets = torch.arange(batch, device=best.device)[:, None] * before
        return (self.parents[-1] + offsets).flatten(), self.tokens[-1].flatten()

    def _keep(self, scores: Tensor, step: int, slots: Tensor) -> None:
        """Whole sequences (B, K) that have ended at `step`, among the best so far."""
        count = self.found.shape[1]
        steps = torch.full_like(slots, step)
        self.found, order = torch.cat([self.found, scores], 1).sort(dim=1, descending=True, stable=True)
        self.found = self.found[:, :count]
        self.found_steps = torch.cat([self.found_steps, steps], 1).gather(1, order)[:, :count]
        self.found_slots = torch.cat([self.found_slots, slots], 1).gather(1, order)[:, :count]

    def settled(self) -> bool:
        """Whether no beginning can become one of the best any more: a score only falls."""
        return len(self.tokens) == self.steps or bool((self.scores[:, 0] <= self.found[:, -1]).all())

    def best(self) -> Hypotheses:
        """The best whole sequences, followed back to their first tokens."""
        filler = 0 if self.end is None else self.end
        tokens = torch.full((len(self.tokens), *self.found.shape), filler, device=self.found.device)  # (T, B, N)
        real = self.found > -math.inf
        slots = self.found_slots
        for step in reversed(range(len(self.tokens))):
            within = real & (step < self.found_steps)
            slot = torch.where(within, slots, 0)
            tokens[step] = torch.where(within, self.tokens[step].gather(1, slot), filler)
            slots = torch.where(within, self.parents[step].gather(1, slot), slots)
        lengths = torch.where(real, self.found_steps - self.silent, 0)
        longest = int(lengths.max()) if lengths.numel() else 0
        tokens = tokens[self.silent :]
        kept = tokens[: min(len(tokens), longest + 1)] if self.end is not None else tokens
        return Hypotheses(kept.cpu(), lengths.cpu(), self.found.clone().cpu())
