"""What a beam search is asked for besides its width, and what of it cannot be done."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

from throughtime.decoding.phrases import Phrase, holds, needless, room_for
from throughtime.errors import ConfigError


@dataclass(frozen=True)
class Search:
    """How sequences are compared, and which are allowed; the defaults compare by log p and allow all.

    Scores are always the model's own: what is not allowed is left out, and nothing else becomes likelier by that.

    length_penalty: α ≥ 0; above 0, longer sequences lose less by their length (GNMT takes 0.2).
    coverage_penalty: β ≥ 0; above 0, a sequence loses by what it leaves of the source (GNMT takes 0.2).
    minimum_length: tokens before the end, at least.
    no_repeat_ngram: n; no n tokens in a row come twice in a sequence; 0: off.
    groups: parts of the beam that search one after the other, each kept from choosing what those before it chose.
    diversity: λ ≥ 0, nats that a token loses, in the choice alone, for each beginning of the groups before that has
        chosen it in this step.
    banned: tokens, or phrases (several tokens in a row), that no sequence holds. The end may be the last of a phrase.
    required: tokens or phrases that every sequence holds, in any order; they may overlap.
    prefix: what every sequence begins with, as part of it: tokens for all rows, or a sequence of tokens for each row.

    Raises:
        ConfigError: a setting is out of its range; banned, required, prefix and n-grams exclude each other.

    Source: Wu et al. 2016, "Google's neural machine translation system", eq. 14 (α, β); Paulus, Xiong & Socher 2018,
    "A deep reinforced model for abstractive summarization", section 2.5 (n-grams); Vijayakumar et al. 2018, "Diverse
    beam search for improved description of complex scenes", with Hamming diversity (groups); Post & Vilar 2018, "Fast
    lexically constrained decoding with dynamic beam allocation for neural machine translation" (required).
    """

    length_penalty: float = 0.0
    coverage_penalty: float = 0.0
    minimum_length: int = 0
    no_repeat_ngram: int = 0
    groups: int = 1
    diversity: float = 0.0
    banned: Sequence[int | Sequence[int]] = ()
    required: Sequence[int | Sequence[int]] = ()
    prefix: Sequence[int] | Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        for name in ("banned", "required", "prefix"):
            if not isinstance(getattr(self, name), Iterable):
                raise ConfigError(f"Search: {name} must be tokens or phrases in a list, got {getattr(self, name)!r}")
        object.__setattr__(self, "banned", _phrases(self.banned))
        object.__setattr__(self, "required", _phrases(self.required))
        by_row = any(isinstance(part, Iterable) for part in self.prefix)
        object.__setattr__(self, "prefix", _phrases(self.prefix) if by_row else _phrase(cast("Phrase", self.prefix)))
        faults = [*self._out_of_range(), *self._contradictions()]
        if faults:
            raise ConfigError(f"Search: {'; '.join(faults)}")

    @property
    def banned_phrases(self) -> tuple[Phrase, ...]:
        """`banned`, each as a tuple."""
        return cast("tuple[Phrase, ...]", self.banned)

    @property
    def required_phrases(self) -> tuple[Phrase, ...]:
        """`required`, each as a tuple, without those that others hold."""
        return needless(cast("tuple[Phrase, ...]", self.required))

    def prefixes(self, rows: int) -> tuple[Phrase, ...]:
        """The prefix of each row."""
        if self.prefix and isinstance(self.prefix[0], tuple):
            return cast("tuple[Phrase, ...]", self.prefix)
        return (cast("Phrase", self.prefix),) * rows

    def _out_of_range(self) -> list[str]:
        ranges = {
            "length_penalty": (0 <= self.length_penalty < math.inf, "a number >= 0 (0: off)"),
            "coverage_penalty": (0 <= self.coverage_penalty < math.inf, "a number >= 0 (0: off)"),
            "minimum_length": (_counts(self.minimum_length, 0), "a whole number of tokens >= 0"),
            "no_repeat_ngram": (_counts(self.no_repeat_ngram, 0), "a whole number of tokens >= 0 (0: off)"),
            "groups": (_counts(self.groups, 1), "a whole number of groups >= 1"),
            "diversity": (0 <= self.diversity < math.inf, "a number >= 0 (0: off)"),
            "banned": (() not in self.banned, "tokens, or phrases of at least one"),
            "required": (() not in self.required, "tokens, or phrases of at least one"),
        }
        return [
            f"{name} must be {expected}, got {getattr(self, name)}"
            for name, (good, expected) in ranges.items()
            if not good
        ]

    def _contradictions(self) -> list[str]:
        """What is asked for and forbidden at once."""
        wanted = [("required", phrase) for phrase in cast("tuple[Phrase, ...]", self.required)]
        wanted += [("prefix", phrase) for phrase in dict.fromkeys(self.prefixes(1))]
        faults, size = [], self.no_repeat_ngram if _counts(self.no_repeat_ngram, 0) else 0
        for name, phrase in wanted:
            faults += [
                f"{name} {list(phrase)} holds {list(banned)}, which is banned; leave one of them out"
                for banned in self.banned_phrases
                if banned and holds(phrase, banned)
            ]
            ngrams = [phrase[start : start + size] for start in range(len(phrase) - size + 1)] if size > 0 else []
            faults += [
                f"{name} {list(phrase)} holds {list(ngram)} twice; allow that with another no_repeat_ngram than {size}"
                for ngram in sorted({ngram for ngram in ngrams if ngrams.count(ngram) > 1})
            ]
        return faults


def impossible(search: Search, *, vocabulary: int, length: int, width: int, rows: int, end: int | None) -> list[str]:
    """Why a model with such a vocabulary and end cannot be searched so at this length and width, fault by fault."""
    faults = []
    if search.minimum_length > length:
        faults.append(f"minimum_length must be <= {length}, the maximum length, got {search.minimum_length}")
    if search.groups > 0 and width % search.groups:
        faults.append(f"width must be a multiple of the {search.groups} groups, got {width}")
    prefixes = search.prefixes(rows)
    if len(prefixes) != rows:
        faults.append(
            f"prefix must be tokens for all rows, or a sequence of tokens for each of the {rows} rows, got "
            f"{len(prefixes)} sequences"
        )
    faults += _foreign(search, prefixes, vocabulary, end)
    longest = max(map(len, prefixes), default=0)
    if longest > length:
        faults.append(f"prefix has {longest} tokens, the maximum length is {length}; allow a greater length")
    needed = room_for(search.required_phrases)
    if needed > length:
        faults.append(
            f"required phrases take at least {needed} tokens, the maximum length is {length}; require less, or allow a "
            "greater length"
        )
    elif needed and longest <= length:
        faults += _crowded(search, prefixes, length)
    return faults


def fault_of_number(name: str, value: Any, least: int) -> str | None:
    """What is wrong with a number of things, of which there must be `least`; None where nothing is."""
    if not _is_whole(value):
        return f"{name} must be a whole number, got {value!r}"
    return None if value >= least else f"{name} must be >= {least}, got {value}"


def _counts(value: Any, least: int) -> bool:
    """Whether it is a number of things, `least` or more."""
    return _is_whole(value) and value >= least


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _crowded(search: Search, prefixes: Sequence[Phrase], length: int) -> list[str]:
    """The first row whose prefix leaves too little room for what is required."""
    for row, prefix in enumerate(prefixes):
        left = room_for(search.required_phrases, prefix)
        if left > length - len(prefix):
            return [
                f"required phrases take at least {left} tokens more than the prefix of row {row}, of {len(prefix)} "
                f"tokens; the maximum length is {length}: require less, or allow a greater length"
            ]
    return []


def _foreign(search: Search, prefixes: Sequence[Phrase], vocabulary: int, end: int | None) -> list[str]:
    """Tokens that cannot be written: outside the vocabulary, or the end where more must follow."""
    faults = []
    named = {"banned": search.banned_phrases, "required": search.required_phrases, "prefix": prefixes}
    for name, phrases in named.items():
        outside = sorted({token for phrase in phrases for token in phrase if not 0 <= token < vocabulary})
        if outside:
            faults.append(f"{name} tokens must be in 0..{vocabulary - 1}, the model's vocabulary, got {outside[0]}")
        # A banned phrase may tell what a sequence must not end with.
        inner = [phrase[:-1] if name == "banned" else phrase for phrase in phrases]
        if end is not None and any(end in phrase for phrase in inner):
            faults.append(f"{name} must not go on behind {end}, the end of a sequence; leave it out")
    return faults


def _phrase(given: Iterable[int]) -> Phrase:
    return tuple(map(operator.index, given))


def _phrases(given: Iterable[int | Iterable[int]]) -> tuple[Phrase, ...]:
    return tuple(_phrase(part if isinstance(part, Iterable) else (part,)) for part in given)
