"""Phrases, tokens in a row, and what of them a sequence holds."""

from __future__ import annotations

from typing import TypeAlias

Phrase: TypeAlias = tuple[int, ...]


def needless(phrases: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    """The phrases without those that are met whenever another one is."""
    once = tuple(dict.fromkeys(phrases))
    return tuple(phrase for phrase in once if not any(other != phrase and holds(other, phrase) for other in once))


def tokens_met(phrases: tuple[Phrase, ...], written: Phrase) -> int:
    """How many tokens of the phrases are met after the tokens `written`."""
    whole = [phrase for phrase in phrases if holds(written, phrase)]
    others = [longest_beginning(written, phrase) for phrase in phrases if phrase not in whole]
    return sum(map(len, whole)) + max(others, default=0)


def holds(phrase: Phrase, part: Phrase) -> bool:
    """Whether `part` stands in `phrase`, its tokens side by side."""
    return any(phrase[start : start + len(part)] == part for start in range(len(phrase) - len(part) + 1))


def longest_beginning(written: Phrase, phrase: Phrase) -> int:
    """The most tokens of `phrase`, from its first, that `written` ends with."""
    sizes = range(min(len(written), len(phrase)), 0, -1)
    return next((size for size in sizes if written[-size:] == phrase[:size]), 0)
