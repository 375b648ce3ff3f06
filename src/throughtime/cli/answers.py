"""What answers look like, and what is said of them at the end."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.tasks.transducer import Answered

# Lines, and things not in the vocabulary, that are named of many.
_SHOWN = 5


def as_line(found: Answered) -> str:
    """The best answer, on one line."""
    from throughtime.data.pairs import escaped

    return (escaped(found.answers[0].text) if found.answers else "") + "\n"


def as_table(number: int, found: Answered) -> str:
    """A line for each answer: number of the source, rank, score, text; the answer to an empty source has no score."""
    from throughtime.data.pairs import escaped

    return "".join(
        f"{number}\t{rank}\t{f'{answer.score:.4f}' if found.tokens else ''}\t{escaped(answer.text)}\n"
        for rank, answer in enumerate(found.answers, start=1)
    )


def as_object(found: Answered) -> str:
    """A source with all its answers as one line of JSON."""
    return json.dumps(plain(found), ensure_ascii=False) + "\n"


def plain(found: Answered) -> dict[str, Any]:
    """A source with its answers as JSON has them, without the attention; that to an empty source has no score."""
    unscored = {} if found.tokens else {"score": None, "ranking": None}
    answers = [{**answer._asdict(), **unscored} for answer in found.answers]
    return {
        "source": found.source,
        "answers": [{name: value for name, value in answer.items() if name != "attention"} for answer in answers],
        "unknown": list(found.unknown),
        "cut": found.cut,
    }


class Tally:
    """What a user should know of many answers.

    source_limit, answer_limit: the greatest lengths, in tokens.
    """

    def __init__(self, source_limit: int | None, answer_limit: int) -> None:
        self.sources = 0
        self._limits = source_limit, answer_limit
        self._empty, self._cut, self._without, self._endless = (_Places() for _ in range(4))
        self._unknown: Counter[str] = Counter()

    def add(self, where: str, found: Answered) -> None:
        """Count one more; `where` is "file:line"."""
        self.sources += 1
        self._unknown.update(found.unknown)
        if not found.answers:
            self._without.add(where)
        elif not found.tokens:
            self._empty.add(where)
        elif not found.answers[0].ended:
            self._endless.add(where)
        if found.cut:
            self._cut.add(where)

    def lines(self) -> list[str]:
        """How many sources there were, and what was the matter with some."""
        source_limit, answer_limit = self._limits
        told = [
            f"{_count(self.sources, 'source')} answered",
            self._empty.line("empty: an empty answer stands for each"),
            self._cut.line(f"cut at {source_limit} tokens (data.max_length)"),
            self._without.line("without an answer that is allowed"),
            self._endless.line(f"with an answer that had not ended at {answer_limit} tokens (--max-length)"),
        ]
        if self._unknown:
            shown = ", ".join(f"{text!r} ({number:,})" for text, number in self._unknown.most_common(_SHOWN))
            more = "" if len(self._unknown) <= _SHOWN else f" and {len(self._unknown) - _SHOWN:,} more"
            told.append(f"not in the vocabulary, read as unknown: {shown}{more}")
        return [line for line in told if line]


class _Places:
    """How many there are, and where the first ones stand."""

    def __init__(self) -> None:
        self._number = 0
        self._first: list[str] = []

    def add(self, where: str) -> None:
        self._number += 1
        if len(self._first) < _SHOWN:
            self._first.append(where)

    def line(self, what: str) -> str:
        if not self._number:
            return ""
        more = f" and {self._number - len(self._first):,} more" if self._number > len(self._first) else ""
        return f"{_count(self._number, 'source')} {what}: {', '.join(self._first)}{more}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
