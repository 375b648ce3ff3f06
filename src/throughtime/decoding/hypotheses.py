"""What a beam search has found, and the chains of beginnings that lead to it.

For each step there is one frame: the token that each of the K' new beginnings was given and the one of the K old
beginnings that it lengthens. Slots number the beginnings: with slot(t) of y(1..t),

    y(t) = token of slot(t) in frame t,    slot(t-1) = parent of slot(t) in frame t

so that a sequence is its number of steps and its last slot, and is only followed back once the search is over.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from throughtime.kernels.native.beam import Whole

# A sequence as one integer: step · _SLOTS + slot.
_SLOTS = 2**32


class Hypotheses(NamedTuple):
    """The N best sequences of each row that were found, the best first.

    tokens: (T, B, N) int64, the prompt not among them; the end symbol behind a sequence's end.
    lengths: (B, N) int64, tokens of each sequence before its end symbol.
    scores: (B, N) float64, log p of each whole sequence under the model, in nats, its end included; -inf where a row
        has fewer than N sequences.
    ranking: (B, N) float64, what the sequences are ordered by: `scores`, normalised as the search was asked to.
    token_scores: (T, B, N) float64, log p of each token, the end included, zeros behind it: they sum to `scores`. Where
        lengths are predicted, log p(τ) stands with the first.
    attention: (T, B, N, S), where the model looked for each token, the end included, zeros behind it; None where the
        model does not attend, or nothing was written.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    ranking: Tensor
    token_scores: Tensor
    attention: Tensor | None


class Frame(NamedTuple):
    """One step of the B' rows that were still on their way; see the module."""

    parents: Int[Tensor, "B K2"]
    tokens: Int[Tensor, "B K2"]
    log_p: Float[Tensor, "B K2"]
    of_end: Float[Tensor, "B K"] | None
    attention: Float[Tensor, "B K S"] | None


class Chains:
    """Every frame so far, and the best whole sequences of each row. Rows that are settled leave.

    rows: (B',) those still on their way. whole: their N best whole sequences, each named by its steps and last slot.
    """

    def __init__(self, rows: int, n_best: int, device: torch.device) -> None:
        self.rows = torch.arange(rows, device=device)
        self.whole = Whole(
            torch.full((rows, n_best), -math.inf, dtype=torch.float64, device=device),
            torch.zeros(rows, n_best, dtype=torch.int64, device=device),
        )
        # Of all rows, filled as they leave.
        self._all = Whole(*(part.clone() for part in self.whole))
        self._frames: list[Frame] = []
        # Where in its frame each row is, by row; None where all are there.
        self._places: list[Tensor | None] = []
        self._place: Tensor | None = None

    def add(self, frame: Frame) -> None:
        """The next step."""
        self._frames.append(frame)
        self._places.append(self._place)

    @staticmethod
    def named(steps: int) -> int:
        """What the sequence is called that is whole after so many steps from slot 0; from slot i, i more."""
        return steps * _SLOTS

    def end(self, ranking: Float[Tensor, "B K"], steps: int) -> None:
        """Sequences that are whole after so many steps, from every slot; of equals, the earlier stays before."""
        if not (ranking > self.whole.ranking[:, -1:]).any():
            return
        count, first = self.whole.ranking.shape[1], self.named(steps)
        names = torch.arange(first, first + ranking.shape[1], device=ranking.device).expand(len(ranking), -1)
        ordered, order = torch.cat([self.whole.ranking, ranking], 1).sort(dim=1, descending=True, stable=True)
        ends = torch.cat([self.whole.ends, names], 1).gather(1, order[:, :count])
        self.whole = Whole(ordered[:, :count].contiguous(), ends)

    def leave(self, settled: Bool[Tensor, " B"]) -> Int[Tensor, " M"]:
        """These rows are done; which places of the others' frame stay."""
        done = self.rows[settled]
        for part, own in zip(self._all, self.whole, strict=True):
            part[done] = own[settled]
        stay = (~settled).nonzero()[:, 0]
        self.rows, self.whole = self.rows[stay], Whole(*(part[stay] for part in self.whole))
        # A row that is gone is at place 0: nothing of it is read from later frames.
        self._place = torch.zeros(len(self._all.ranking), dtype=torch.int64, device=stay.device)
        self._place[self.rows] = torch.arange(len(stay), device=stay.device)
        return stay

    def followed(self, end: int | None, silent: int) -> Hypotheses:
        """The best sequences of every row, from their last tokens back to the first; `silent` steps are none."""
        self.leave(torch.ones_like(self.rows, dtype=torch.bool))
        real = self._all.ranking > -math.inf  # (B, N)
        steps = torch.where(real, self._all.ends // _SLOTS, -1)
        slots = self._slots(steps)
        frames = list(zip(self._frames, self._places, strict=True))
        tokens = torch.empty(len(frames), *real.shape, dtype=torch.int64, device=real.device)  # (T, B, N)
        scores = torch.empty_like(tokens, dtype=torch.float64)
        for step, (frame, place) in enumerate(frames):
            tokens[step] = _at(frame.tokens, place, slots[step + 1])
            scores[step] = _at(frame.log_p, place, slots[step + 1])
        is_behind = steps <= torch.arange(len(frames), device=real.device)[:, None, None]
        tokens.masked_fill_(is_behind, 0 if end is None else end)
        scores.masked_fill_(is_behind, 0.0)
        for step in torch.unique(steps).tolist():
            if 0 <= step < len(frames) and (of_end := frames[step][0].of_end) is not None:
                scores[step] += torch.where(steps == step, _at(of_end, frames[step][1], slots[step]), 0.0)
        # In the order in which the search has added them.
        totals = scores.cumsum(0)[-1] if len(scores) else torch.zeros_like(self._all.ranking)
        if len(scores) > silent:
            scores[silent] += scores[:silent].sum(0)
        return Hypotheses(
            tokens[silent:],
            (steps - silent).clamp(min=0),
            totals.where(real, -math.inf),
            self._all.ranking,
            scores[silent:],
            self._attention(steps, slots, silent),
        )

    def _slots(self, steps: Int[Tensor, "B N"]) -> list[Tensor]:
        """slot(t) of each sequence for t = 0, 1, ...; any beyond its own last."""
        slots = [torch.zeros_like(steps)] * (len(self._frames) + 1)
        slot = slots[0]
        for step in reversed(range(len(slots))):
            slot = slots[step] = torch.where(steps == step, self._all.ends % _SLOTS, slot)
            if step:
                slot = _at(self._frames[step - 1].parents, self._places[step - 1], slot)
        return slots

    def _attention(self, steps: Int[Tensor, "B N"], slots: list[Tensor], silent: int) -> Tensor | None:
        """Where each sequence's steps have looked, that of its end included, (T, B, N, S)."""
        looks = []
        for step, frame in enumerate(self._frames[silent:], silent):
            if frame.attention is None:
                return None
            index = slots[step][..., None].expand(-1, -1, frame.attention.shape[-1])  # (B, N, S)
            looks.append(_at(frame.attention, self._places[step], index))
        if not looks:
            return None
        # A sequence that was cut has no step behind its last token: its `steps` are all frames.
        later = torch.arange(silent, len(self._frames), device=steps.device)[:, None, None] > steps  # (T, B, N)
        return torch.stack(looks).masked_fill_(later[..., None], 0)


def _at(values: Tensor, place: Tensor | None, slots: Tensor) -> Tensor:
    """The slots (B, N) of every row, in a frame in which the rows have these places."""
    return (values if place is None else values[place]).gather(1, slots)


def merged(found: Hypotheses, groups: int, end: int | None) -> Hypotheses:
    """The N best of each `groups` neighbouring rows as one row, a sequence that several have found taken once."""
    count = found.ranking.shape[1]
    ranking = _grouped(found.ranking, groups, 0).clone()  # (B, G·N)
    tokens, lengths = _grouped(found.tokens, groups, 1), _grouped(found.lengths, groups, 0)
    for index in range(1, ranking.shape[1]):
        same = (tokens[..., :index] == tokens[..., index : index + 1]).all(0)  # (B, index)
        same &= (lengths[:, :index] == lengths[:, index : index + 1]) & (ranking[:, :index] > -math.inf)
        ranking[:, index].masked_fill_(same.any(1), -math.inf)
    ranking, order = ranking.sort(dim=1, descending=True, stable=True)
    ranking, order = ranking[:, :count], order[:, :count]  # (B, N)
    real = ranking > -math.inf
    rows = torch.arange(len(order), device=order.device)[:, None]
    attention = found.attention
    if attention is not None:
        attention = _grouped(attention, groups, 1)[:, rows, order].where(real[..., None], 0)
    return Hypotheses(
        tokens[:, rows, order].where(real, 0 if end is None else end),
        lengths[rows, order].where(real, 0),
        _grouped(found.scores, groups, 0)[rows, order].where(real, -math.inf),
        ranking,
        _grouped(found.token_scores, groups, 1)[:, rows, order].where(real, 0),
        attention,
    )


def trimmed(found: Hypotheses, end: int | None) -> Hypotheses:
    """Without the steps behind the ends of all."""
    longest = int(found.lengths.max()) if found.lengths.numel() else 0
    kept = longest + (end is not None)
    attention = None if found.attention is None else found.attention[:kept]
    return found._replace(tokens=found.tokens[:kept], token_scores=found.token_scores[:kept], attention=attention)


def _grouped(part: Tensor, groups: int, axis: int) -> Tensor:
    """(.., B·G, N, ..) as (.., B, G·N, ..), the rows on `axis`."""
    before, (rows, count), behind = part.shape[:axis], part.shape[axis : axis + 2], part.shape[axis + 2 :]
    return part.reshape(*before, rows // groups, groups * count, *behind)
