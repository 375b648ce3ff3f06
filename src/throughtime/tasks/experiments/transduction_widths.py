"""Beam search against greedy search: what a wider beam costs, what it finds, and what that is worth.

Greedy search takes the likeliest token at each step, and so may miss the likeliest answer: a search error. A beam
misses fewer; whether its answer is also right more often is the model's matter, not the search's.
Source: Stahlberg & Byrne 2019, "On NMT search errors and model errors: cat got your tongue?", section 2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from throughtime.errors import UsageError
from throughtime.tasks import transduce
from throughtime.tasks.experiments.transduction_report import aligned
from throughtime.tasks.pair_metrics import Judged, exact_match, measured
from throughtime.tasks.transducer import Answered, Transducer

WIDTHS = (1, 2, 3, 5, 10, 20)
METRICS = ("exact_match", "token_error_rate")
# Sources that one width answers before it is the next one's turn.
_BLOCK = 512
# Of two scores of one answer in nats, computed in two batches: they differ by the rounding of float32.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Width:
    """One width over all sources.

    exact_match, token_error_rate: as `throughtime.tasks.pair_metrics` has them.
    score: log p of the answer in nats, the mean over the sources.
    seconds: of all answers. sentences_per_second: sources in a second. time: seconds / those of width 1.
    repaired: sources that greedy answers wrong and this width right. spoilt: the reverse.
    search_errors: sources of which greedy's answer has a lower score than this one. lower: the reverse.
    """

    width: int
    exact_match: float
    token_error_rate: float
    score: float
    seconds: float
    sentences_per_second: float
    time: float
    repaired: int
    spoilt: int
    search_errors: int
    lower: int


class Found(NamedTuple):
    """What one width has answered to each source: the texts, their log p, whether they are right, and how long."""

    judged: list[Judged]
    scores: list[float]
    right: list[bool]
    seconds: float


def compare(run: Path, data: Sequence[str], widths: Sequence[int] = WIDTHS) -> list[Width]:
    """Answer the sources of `data` with each width, greedy (width 1) first; the widths take turns, block by block.

    How answers are ordered, and all else of the search, is as the run has it.

    Raises:
        UsageError: no width 1 to compare with.
        ConfigError: a width below 1.
        RunFolderError, CheckpointError: see `transduce.load`.
        DataError: pairs that cannot be read.
    """
    if 1 not in widths:
        raise UsageError(f"widths: expected 1, greedy search, among them, got {list(widths)}; add 1")
    transducers = {width: transduce.transducer(run, beam=width, n_best=1) for width in sorted(set(widths))}
    questions: dict[str, tuple[str, ...]] = {}

    def keep(found: Answered, references: Sequence[str]) -> None:
        questions[found.source] = tuple(references)

    # Once through, untimed: what the first search of a process costs is no width's own.
    transduce.evaluate(run, data, metrics=METRICS, answered=keep, beam=1, n_best=1)
    found = _in_turns(transducers, questions)
    return [_compared(width, one, found[1], transducers[width]) for width, one in found.items()]


def _in_turns(transducers: dict[int, Transducer], questions: dict[str, tuple[str, ...]]) -> dict[int, Found]:
    """The answers of each width, and the seconds that they took."""
    sources = list(questions)
    blocks = [sources[start : start + _BLOCK] for start in range(0, len(sources), _BLOCK)]
    answers: dict[int, list[Answered]] = {width: [] for width in transducers}
    seconds = dict.fromkeys(transducers, 0.0)
    for block in blocks:
        for width, transducer in transducers.items():
            started = time.perf_counter()
            answers[width] += transducer.answer(block)
            seconds[width] += time.perf_counter() - started
    return {
        width: _found(answers[width], questions, transducer, seconds[width])
        for width, transducer in transducers.items()
    }


def _found(
    answers: Sequence[Answered], questions: dict[str, tuple[str, ...]], transducer: Transducer, seconds: float
) -> Found:
    # Where the search allows no answer at all, as some settings of a run may: the empty one, of no probability.
    best = [(one.answers[0].text, one.answers[0].score) if one.answers else ("", -math.inf) for one in answers]
    judged = [Judged(text, questions[one.source]) for (text, _), one in zip(best, answers, strict=True)]
    right = [exact_match([one], transducer.tokenizers.target) == 1.0 for one in judged]
    return Found(judged, [score for _, score in best], right, seconds)


def _compared(width: int, found: Found, greedy: Found, transducer: Transducer) -> Width:
    differences = [own - other for own, other in zip(found.scores, greedy.scores, strict=True)]
    rights = list(zip(greedy.right, found.right, strict=True))
    return Width(
        width,
        **measured(METRICS, found.judged, transducer.tokenizers.target),
        score=sum(found.scores) / len(found.scores),
        seconds=found.seconds,
        sentences_per_second=len(found.scores) / found.seconds,
        time=found.seconds / greedy.seconds,
        repaired=rights.count((False, True)),
        spoilt=rights.count((True, False)),
        search_errors=sum(difference > _TOLERANCE for difference in differences),
        lower=sum(difference < -_TOLERANCE for difference in differences),
    )


def table(widths: Sequence[Width]) -> str:
    """A line of Markdown for each width; `repaired` and the columns behind it count sources."""
    heading = ["beam", "exactly right, %", "token errors, %", "mean log p, nats", "sources/s", "time / greedy's",
               "greedy wrong, beam right", "greedy right, beam wrong", "greedy's log p lower", "higher"]  # fmt: skip
    lines = [
        [str(one.width), f"{100 * one.exact_match:.2f}", f"{100 * one.token_error_rate:.2f}", f"{one.score:.4f}",
         f"{one.sentences_per_second:.0f}", f"{one.time:.2f}", str(one.repaired), str(one.spoilt),
         str(one.search_errors), str(one.lower)]
        for one in widths
    ]  # fmt: skip
    return aligned([heading, *lines])
