"""Beam search: the likeliest sequences among those that a limited number of beginnings leads to.

    s(y(1..t)) = s(y(1..t-1)) + log p(y(t) | y(1..t-1))

At each step every kept beginning is lengthened by every token; of those that go on, the `width` with the greatest s are
kept. A sequence that ends leaves the beam for good: nothing that is found later can push it out but a better whole
sequence. Whole sequences are compared by s, or by what `Search` makes of it (`throughtime.decoding.scoring`). With a
width of all beginnings this is a search through everything.

A row is settled once none of its beginnings can come to a better sequence than those it has; it leaves the batch then,
and costs nothing more.

Source: Lowerre 1976, "The HARPY speech recognition system"; Graves 2012, "Sequence transduction with recurrent neural
networks", section 2.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from throughtime.decoding.choice import diverse_choice
from throughtime.decoding.constraints import Constraints
from throughtime.decoding.hypotheses import Chains, Frame, Hypotheses, merged, trimmed
from throughtime.decoding.protocol import Attending, Masking, Ranked, Steppable, reordered
from throughtime.decoding.ranking import likeliest, log_normaliser, ranked, ranked_step
from throughtime.decoding.required import RequiredPhrases, fair_choice
from throughtime.decoding.sampling import PromptIds, diverged, prompt_ids, read_prompt, silent_actions
from throughtime.decoding.scoring import coverage_penalty, length_penalty, unsettled
from throughtime.decoding.search import Search, fault_of_number, impossible
from throughtime.decoding.stop import StopRule, end_of
from throughtime.errors import ConfigError
from throughtime.kernels.native import library
from throughtime.kernels.native.beam import Lengthened, Penalties, lengthen
from throughtime.layers.modes import in_evaluation_mode

__all__ = ["Hypotheses", "Search", "beam_search"]

_BY_LOG_P = Search()


def beam_search(
    model: Steppable,
    prompt: PromptIds = None,
    *,
    length: int,
    width: int,
    n_best: int = 1,
    stop: StopRule | None = None,
    search: Search = _BY_LOG_P,
) -> Hypotheses:
    """The best sequences that a beam of `width` beginnings finds, by the model's own steps.

        >>> import torch, throughtime as tt
        >>> model = tt.models.LanguageModel(vocabulary_size=10, hidden_size=8, embedding_size=4)
        >>> found = tt.decoding.beam_search(model, length=5, width=4, n_best=2, stop=tt.decoding.EndSymbol())
        >>> found.lengths.shape, bool((found.scores[:, 0] >= found.scores[:, 1]).all())
        (torch.Size([1, 2]), True)

    Args:
        model: anything `Steppable`, as in `sample`; rows of its state are picked as `Reordering` says. Where it is
            `Ranking`, it finds the likeliest tokens itself; where it is `Attending`, its attention is handed on.
        prompt: what is read first: (T,) ids, or (T, B); by default the model's border token.
        length: tokens to write, at most; a sequence that has not ended by then is cut there, and counts as it is.
        width: beginnings kept for each row. Where there are fewer, as after the first step of a small vocabulary, all
            are kept.
        n_best: sequences to return for each row.
        stop: what ends a sequence, as in `sample`.
        search: how sequences are compared, and which are allowed. Where fewer than `n_best` are found that are, the
            others have a score of -inf.

    Raises:
        PromptError, ShapeError: see `sample`.
        ConfigError: a length below 0, a width or n_best below 1; `stop` is none of the model's; what `search` asks for
            cannot be had of this model at this length and width. All faults at once.
        DivergedError: the logits are not numbers.
    """
    least = (("length", length, 0), ("width", width, 1), ("n_best", n_best, 1))
    faults = [fault for given in least if (fault := fault_of_number(*given)) is not None]
    if not all(isinstance(value, Integral) for _, value, _ in least):
        raise ConfigError(f"beam_search: {'; '.join(faults)}")  # nothing more can be said of these
    end, ids = end_of(model, stop), prompt_ids(model, prompt, 1)  # (T, B)
    faults += impossible(
        search, vocabulary=model.vocabulary_size, length=max(length, 0), width=width, rows=ids.shape[1], end=end
    )
    if search.coverage_penalty and not (isinstance(model, Attending) and isinstance(model, Masking)):
        faults.append(f"coverage_penalty needs a model with attention(state) and source_mask(state), got "
                      f"{type(model).__name__}; set it to 0")  # fmt: skip
    if faults:
        raise ConfigError(f"beam_search: {'; '.join(faults)}")
    silent = silent_actions(model)
    task = _Task(search, length + silent if length else 0, width // search.groups, n_best, end, silent)
    with torch.inference_mode(), in_evaluation_mode(model):
        found = _found(model, ids, task)
    # Copied outside of inference mode, so that a loss of these sequences may be differentiated.
    return Hypotheses(*(None if part is None else part.clone().cpu() for part in found))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Task:
    """What is searched for. steps: at most, the `silent` ones at the beginning among them; width: of one group."""

    search: Search
    steps: int
    width: int
    n_best: int
    end: int | None
    silent: int

    def kept(self, step: int) -> int:
        """Beginnings of a group to keep after this step; after the last, as many as can be returned."""
        return max(self.width, -(-self.n_best // self.search.groups)) if step + 1 == self.steps else self.width

    def penalty(self, steps: int) -> float:
        """lp after so many steps."""
        return length_penalty(steps - self.silent, self.search.length_penalty)


def _found(model: Steppable, prompt: Int[Tensor, "T B"], task: _Task) -> Hypotheses:
    """Lengthen until nothing better can come."""
    groups = task.search.groups
    beam = _Beam(model, task, prompt.shape[1], prompt.device)
    if task.steps:
        logits, state = read_prompt(model, prompt)
        if groups > 1:
            each = torch.arange(len(logits), device=logits.device).repeat_interleave(groups)
            logits, state = logits[each], reordered(model, state, each, rows=len(logits))
        if task.search.coverage_penalty:
            beam.source = model.source_mask(state)  # type: ignore[attr-defined]
        following = beam.ranked(logits, state)
        while True:
            rows, chosen = beam.lengthen(model, following)
            if not len(rows):
                break
            state = reordered(model, following.state, rows, rows=len(following.log_p))
            following = beam.following(model, chosen, state)
    found = beam.chains.followed(task.end, task.silent)
    return trimmed(found if groups == 1 else merged(found, groups, task.end), task.end)


class _Beam:
    """The beginnings of every row: B·G rows with K beginnings each, G the groups.

    scores: (B, K) log p of each. chains: what they have written, and the whole sequences. source: (B, S) bool, the real
    places of what the model attends to, where that counts.
    """

    def __init__(self, model: Steppable, task: _Task, sentences: int, device: torch.device) -> None:
        search, rows = task.search, sentences * task.search.groups
        self.task = task
        self.scores = torch.zeros(rows, 1, dtype=torch.float64, device=device)
        self.chains = Chains(rows, task.n_best, device)
        self.source: Tensor | None = None
        self._step = 0
        self._vocabulary = model.vocabulary_size
        self._attends = isinstance(model, Attending)
        self._constraints = Constraints.of(search, sentences, device)
        phrases = search.required_phrases
        self._required = RequiredPhrases(phrases, model.vocabulary_size, device) if phrases else None
        banned = [phrase[0] for phrase in search.banned_phrases if len(phrase) == 1]
        self._banned = torch.zeros(self._vocabulary, dtype=torch.bool, device=device) if banned else None  # (V,)
        if self._banned is not None:
            self._banned[banned] = True
        # Tokens among the likeliest that may be of no use.
        self._spare = len(banned) + (len(self._required.tokens) if self._required else 0)
        # What beginnings take with them: (B, K, ·) each.
        self._written = torch.zeros(rows, 1, 0, dtype=torch.int64, device=device) if self._constraints else None
        self._progress = self._required.begin(rows) if self._required else None
        self._coverage: Tensor | None = None
        plain = search.groups == 1 and self._required is None and not search.coverage_penalty
        self._is_plain = plain and device.type == "cpu" and library.missing_reason() is None
        if not task.steps:
            self.chains.end(self.scores, 0)

    def following(self, model: Steppable, tokens: Int[Tensor, " N"], state: Any) -> Ranked:
        """One step of the model; all log-probabilities are only asked for where the greatest do not suffice."""
        if self._constraints is not None or self._required is not None:
            return self.ranked(*model.step(tokens, state))
        return self._without_banned(ranked_step(model, tokens, state, self._candidates(), self.task.end))

    def _candidates(self) -> int:
        """How many of the likeliest tokens can be of use to one beginning."""
        # Each group must find its own behind all that others have chosen.
        count = self.task.kept(self._step) * self.task.search.groups + self._spare
        # Of a vocabulary of the end alone, one that is impossible: no row is ever without candidates.
        return max(1, min(count, self._vocabulary - (self.task.end is not None)))

    def _without_banned(self, following: Ranked) -> Ranked:
        """Single tokens that are banned do not come."""
        if self._banned is None or self._step < self.task.silent:
            return following
        log_p, of_end = following.log_p.masked_fill(self._banned[following.ids], -math.inf), following.of_end
        if of_end is not None:
            of_end = of_end.masked_fill(self._banned[self.task.end], -math.inf)
        return following._replace(log_p=log_p, of_end=of_end)

    def ranked(self, logits: Float[Tensor, "N V"], state: Any) -> Ranked:
        """The likeliest of the tokens that are allowed, and those that required phrases need."""
        normaliser = log_normaliser(logits)  # (N, 1)
        if self._step < self.task.silent:
            return ranked(logits, normaliser, state, self._candidates(), self.task.end)
        if self._constraints is not None:
            assert self._written is not None
            sentences = self.chains.rows // self.task.search.groups
            per_row = logits.reshape(*self.scores.shape, -1)  # (B, K, V)
            logits = self._constraints.allowed(per_row, self._written, sentences).flatten(0, 1)
        following = self._without_banned(ranked(logits, normaliser, state, self._candidates(), self.task.end))
        if self._required is None:
            return following
        tokens = self._required.tokens.expand(len(logits), -1)  # (N, R)
        known = (following.ids[..., None] == self._required.tokens).any(1)  # (N, R)
        extra = (logits.gather(1, tokens).double() - normaliser).masked_fill(known, -math.inf)
        return following._replace(
            log_p=torch.cat([following.log_p, extra], 1), ids=torch.cat([following.ids, tokens], 1)
        )

    def lengthen(self, model: Steppable, following: Ranked) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """One more token for every beginning: which rows of the model's batch go on, and their tokens; none at the end.

        Raises:
            DivergedError: log-probabilities that are no numbers.
            ConfigError: a coverage penalty, and no attention.
        """
        attention = self._look(model, following.state)
        made = self._lengthened_natively(following) if self._is_plain else self._lengthened(model, following)
        of_end = None if following.of_end is None else following.of_end.reshape(self.scores.shape)
        self.chains.add(Frame(made.parents, made.tokens, made.log_p, of_end, attention))
        self.scores = made.scores
        self._take(made.parents, made.tokens)
        self._step += 1
        if self._step == self.task.steps:
            self._check(model, self.scores)
            # What has not ended is cut here.
            self._keep(self.scores, self._step)
            return made.origins[:0, 0], made.tokens[:0, 0]
        origins, tokens = made.origins, made.tokens
        if made.going is not None:
            self._check(model, self.scores)
            stay = self._leave(~made.going)
            origins, tokens = origins[stay], tokens[stay]
        return origins.flatten(), tokens.flatten()

    def _lengthened_natively(self, following: Ranked) -> Lengthened:
        """What `_lengthened` says, where nothing counts but log p and the number of tokens."""
        task, last = self.task, self._step + 1 == self.task.steps
        of_end = None if following.of_end is None or not self._may_end() else following.of_end.double().contiguous()
        penalties = Penalties(
            of_ends=task.penalty(min(self._step + 1, task.steps)),
            of_choice=task.penalty(task.steps) if last else 1.0,
            greatest=task.penalty(task.steps),
        )
        return lengthen(
            self.scores,
            following.log_p.double().contiguous(),
            following.ids.contiguous(),
            min(task.kept(self._step), self.scores.shape[1] * following.ids.shape[1]),
            self.chains.whole,
            of_end=of_end,
            first_end=self.chains.named(self._step),
            penalties=penalties,
        )

    def _lengthened(self, model: Steppable, following: Ranked) -> Lengthened:
        """Keep the sequences that end here, and choose which beginnings go on."""
        shape = self.scores.shape
        log_p, ids = following.log_p.reshape(*shape, -1), following.ids.reshape(*shape, -1)  # (B, K, k)
        if self._required is not None:
            self._check(model, log_p)  # a bank could leave it out
        if following.of_end is not None and self._may_end():
            self._keep(self.scores + following.of_end.reshape(shape), self._step)
        progress = self._progress_after(ids)  # (B, K, k, P)
        best = self._choice(self.scores[..., None] + log_p, ids, progress)  # (B, K'), of K·k
        parents = best // ids.shape[-1]
        tokens, added = ids.flatten(1).gather(1, best), log_p.flatten(1).gather(1, best)
        scores = self.scores.gather(1, parents) + added
        self._progress = None if progress is None else _of_slots(progress.flatten(1, 2), best)
        rows = torch.arange(0, shape[0] * shape[1], shape[1], device=parents.device)[:, None]
        going = self._going(scores)
        return Lengthened(parents, tokens, added, scores, parents + rows, None if going.all() else going)

    def _may_end(self) -> bool:
        """Whether sequences are long enough to end here."""
        return self._step >= self.task.silent + self.task.search.minimum_length

    @staticmethod
    def _check(model: Steppable, scores: Tensor) -> None:
        """Scores are numbers. What is none is the greatest of its row, which does not go on then."""
        if scores.isnan().any():
            raise diverged(model)

    def _look(self, model: Steppable, state: Any) -> Float[Tensor, "B K S"] | None:
        """Where the step that led to `state` has looked; counted, where it matters."""
        look = model.attention(state) if self._attends else None  # type: ignore[attr-defined]
        attention: Tensor | None = None if look is None else look.reshape(*self.scores.shape, -1)
        if self.task.search.coverage_penalty and self._step >= self.task.silent:
            if attention is None or self.source is None:
                raise ConfigError(f"beam_search: coverage_penalty needs a model that attends, got {_name(model)} "
                                  "without attention; set it to 0")  # fmt: skip
            self._coverage = attention.double() if self._coverage is None else self._coverage + attention
        return attention

    def _keep(self, scores: Float[Tensor, "B K"], step: int) -> None:
        """Whole sequences with these log p, after so many steps and perhaps the end, if they are among the best."""
        # The end is a token too; a sequence that is cut has none.
        ranking = self._ranking(scores, min(step + 1, self.task.steps))
        if self._required is not None and self._progress is not None:
            ranking = ranking.masked_fill(self._required.met(self._progress) < self._required.total, -math.inf)
        self.chains.end(ranking, step)

    def _ranking(self, scores: Float[Tensor, "B K *n"], steps: int) -> Float[Tensor, "B K *n"]:
        """What sequences of so many steps with these log p are ordered by, given where their beginnings have looked."""
        ranking = scores / self.task.penalty(steps)
        if self.source is None or self._coverage is None:
            return ranking
        missing = coverage_penalty(self._coverage, self.source, self.task.search.coverage_penalty)  # (B, K)
        return ranking + missing.view(*missing.shape, *[1] * (scores.dim() - 2))

    def _progress_after(self, ids: Int[Tensor, "B K n"]) -> Int[Tensor, "B K n P"] | None:
        """How far each candidate is with the required phrases."""
        if self._required is None or self._progress is None:
            return None
        if self._step < self.task.silent:
            return self._progress[:, :, None].expand(*ids.shape, -1)
        return self._required.after(self._progress, ids)

    def _choice(self, scores: Float[Tensor, "B K n"], ids: Tensor, progress: Tensor | None) -> Int[Tensor, "B k"]:
        """Which of the K·n candidates go on."""
        last = self._step + 1 == self.task.steps
        # Those that are cut are whole, and chosen as such.
        groups, flat = self.task.search.groups, (self._ranking(scores, self.task.steps) if last else scores).flatten(1)
        count = min(self.task.kept(self._step), flat.shape[1])
        required, banks = self._required, None
        if required is not None and progress is not None:
            banks = required.met(progress).flatten(1)  # (B, K·n)
            if last:
                flat, banks = flat.masked_fill(banks < required.total, -math.inf), None

        def choose(scores: Tensor, group: int) -> Tensor:
            if banks is None or required is None:
                return likeliest(scores, count)[1]
            return fair_choice(scores, banks[group::groups], required.total, count)

        if groups == 1:
            return choose(flat, 0)
        by_group = [part.reshape(-1, groups, flat.shape[1]) for part in (flat, ids)]
        return diverse_choice(by_group[0], by_group[1], self.task.search.diversity, choose).flatten(0, 1)

    def _take(self, parents: Int[Tensor, "B K"], tokens: Int[Tensor, "B K"]) -> None:
        """What each new beginning has from the one that it lengthens."""
        if self._coverage is not None:
            self._coverage = _of_slots(self._coverage, parents)
        if self._written is not None and self._step >= self.task.silent:
            self._written = torch.cat([_of_slots(self._written, parents), tokens[..., None]], -1)
        elif self._written is not None:
            self._written = _of_slots(self._written, parents)

    def _going(self, scores: Float[Tensor, "B K"]) -> Bool[Tensor, " B"]:
        """The rows in which beginnings with these log p can still come to something better."""
        going = unsettled(scores, self.chains.whole.ranking[:, -1], self.task.penalty(self.task.steps))
        groups = self.task.search.groups
        if groups > 1:
            # What one group chooses counts for the others, as long as one of them goes on.
            going = going.view(-1, groups).any(1).repeat_interleave(groups)
        return going

    def _leave(self, settled: Bool[Tensor, " B"]) -> Int[Tensor, " M"]:
        """The rows that stay when the settled ones have left."""
        stay = self.chains.leave(settled)
        self.scores = self.scores[stay]
        self.source, self._written, self._progress, self._coverage = (
            None if part is None else part[stay]
            for part in (self.source, self._written, self._progress, self._coverage)
        )
        return stay


def _of_slots(values: Tensor, slots: Int[Tensor, "B K"]) -> Tensor:
    """(B, K, ·) of these slots of every row."""
    return values[torch.arange(len(values), device=values.device)[:, None], slots]


def _name(model: object) -> str:
    return type(model).__name__
