"""Phrases, tokens in a row, and what of them a sequence holds."""

from __future__ import annotations

from typing import TypeAlias

Phrase: TypeAlias = tuple[int, ...]


def needless(phrases: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    """The phrases without those that are met whenever another one is."""
    once = tuple(dict.fromkeys(phrases))
    return tuple(phrase for phrase in once if not any(other != phrase and holds(other, phrase) for other in once))


def room_for(phrases: tuple[Phrase, ...], written: Phrase = ()) -> int:
    """Tokens that must follow `written`, at least, until it holds all phrases, none of which another holds.

    Each follows another or `written` itself, and shares with it what that one ends with.
    """
    left = [phrase for phrase in phrases if not holds(written, phrase)]
    first = [len(phrase) - longest_beginning(written, phrase) for phrase in left]
    later = [
        len(phrase) - max((longest_beginning(other, phrase) for other in left if other != phrase), default=0)
        for phrase in left
    ]
    return sum(later) + min((a - b for a, b in zip(first, later, strict=True)), default=0)


def holds(phrase: Phrase, part: Phrase) -> bool:
    """Whether `part` stands in `phrase`, its tokens side by side."""
    return any(phrase[start : start + len(part)] == part for start in range(len(phrase) - len(part) + 1))


def longest_beginning(written: Phrase, phrase: Phrase) -> int:
    """The most tokens of `phrase`, from its first, that `written` ends with."""
    sizes = range(min(len(written), len(phrase)), 0, -1)
    return next((size for size in sizes if written[-size:] == phrase[:size]), 0)
