"""Dates written in many languages, and what they are in ISO 8601: pairs to learn from, out of Babel's locale data.

    "Freitag, 5. März 2021"   2021-03-05
    "٥ مارس ٢٠٢١"             2021-03-05
    "2021年3月5日"             2021-03-05

A form is a date format in the words and digits of a locale; locales that write every day alike share it. The formats
are the locale's short, medium, long and full one, and those of its skeletons that have a year, a month and a day. The
days are those of 1950-2049: a hundred years, so that two digits tell a year.

The text is all there is: no tag says which language it is. Where it does not tell the day, as 02/03/2019 does not,
nobody could: a text that two forms of any locales read as different days is left out, of training and of every
evaluation, and counted. But a text in the form of ISO 8601 is what ISO 8601 says it is.

What is held out, all of it by the seed:

    days        a tenth of the days: no text to train on, in any language, is of such a day
    forms       a tenth of the forms: what is evaluated is such a text as no form to train on can write
    languages   a twentieth of the languages: the same, in their forms that no other language has

Source: Unicode CLDR, as Babel carries it; Unicode Technical Standard 35, part 4, "Dates".
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from throughtime.errors import UsageError

if TYPE_CHECKING:
    from babel import Locale

FIRST_DAY = date(1950, 1, 1)
LAST_DAY = date(2049, 12, 31)
HELD_OUT_DAYS = 0.1
HELD_OUT_FORMS = 0.1
HELD_OUT_LANGUAGES = 0.05

_NAMED_FORMATS = ("short", "medium", "long", "full")
_ISO = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# The zeros of the numbering systems that locales write by default.
_ZEROS = {
    "latn": "0",
    "adlm": "\U0001e950",
    "arab": "\u0660",
    "arabext": "\u06f0",
    "beng": "\u09e6",
    "cakm": "\U00011136",
    "deva": "\u0966",
    "hmnp": "\U0001e140",
    "mtei": "\uabf0",
    "mymr": "\u1040",
    "nkoo": "\u07c0",
    "olck": "\u1c50",
    "tibt": "\u0f20",
}
_RUN = re.compile(r"\d+")
_MONTHS = [date(2021, month, 1) for month in range(1, 13)]
_WEEKDAYS = [date(2021, 3, 1) + timedelta(days) for days in range(7)]

Kind = Literal["year", "month", "day", "text", "month name", "weekday name"]
_KINDS: dict[str, tuple[Kind, Kind]] = {
    "y": ("year", "text"),
    "M": ("month", "month name"),
    "L": ("month", "month name"),
    "d": ("day", "text"),
    "E": ("text", "weekday name"),
    "c": ("text", "weekday name"),
    "G": ("text", "text"),
}


class Piece(NamedTuple):
    """A part of a form: a number in at least `width` digits (a year of 2: its last two), or words.

    words: none of a number; one of a text; one for each month, or for each day of the week from Monday on.
    """

    kind: Kind
    width: int
    words: tuple[str, ...]

    def write(self, day: date) -> str:
        """The part of a day that it is, in the digits 0-9."""
        if self.kind == "text":
            return self.words[0]
        if self.kind == "month name":
            return self.words[day.month - 1]
        if self.kind == "weekday name":
            return self.words[day.weekday()]
        number = {"year": day.year, "month": day.month, "day": day.day}[self.kind]
        return f"{number % 100 if (self.kind, self.width) == ('year', 2) else number:0{self.width}d}"


class Form(NamedTuple):
    """How some locales write a day: pieces in order, and the zero of their digits."""

    pieces: tuple[Piece, ...]
    zero: str

    def write(self, day: date) -> str:
        """The day in this form."""
        return "".join(
            piece.write(day) if piece.words else _in_digits(piece.write(day), self.zero) for piece in self.pieces
        )

    @property
    def month_names(self) -> tuple[str, ...]:
        """The names of the twelve months in this form; none where a month is a number."""
        return next((piece.words for piece in self.pieces if piece.kind == "month name"), ())


class Use(NamedTuple):
    """Where a form is written: its pattern in CLDR's letters, the first locale that has it, the languages that do."""

    pattern: str
    locale: str
    languages: frozenset[str]


@cache
def forms() -> Mapping[Form, Use]:
    """Every form that a locale of Babel's writes dates of this calendar in, in the order of the locales.

    Locales without names of months of their own are left out, and so are digits that are not known here.

    Raises:
        UsageError: Babel is not installed.
    """
    try:
        from babel import Locale
        from babel.localedata import locale_identifiers
    except ModuleNotFoundError:
        raise UsageError("dates: expected Babel's locale data, got no Babel; pip install babel") from None
    found: dict[Form, Use] = {}
    for name in sorted(locale_identifiers()):
        locale = Locale.parse(name)
        if locale.months["format"]["wide"][3] == "M03" or locale.default_numbering_system not in _ZEROS:
            continue
        for pattern in _patterns(locale):
            form = Form(_pieces(pattern, locale), _ZEROS[locale.default_numbering_system])
            use = found.get(form, Use(pattern, name, frozenset()))
            found[form] = use._replace(languages=use.languages | {locale.language})
    return found


def _patterns(locale: Locale) -> list[str]:
    """A locale's patterns of a whole date, each once."""
    from babel.dates import tokenize_pattern

    named = [locale.date_formats[name].pattern for name in _NAMED_FORMATS]
    built = [pattern.pattern for _, pattern in sorted(locale.datetime_skeletons.items())]
    whole = []
    for pattern in dict.fromkeys([*named, *built]):
        letters = {value[0] for kind, value in tokenize_pattern(pattern) if kind == "field"}
        if {"y", "d"} <= letters and letters & {"M", "L"} and letters <= _KINDS.keys():
            whole.append(pattern)
    return whole


def _pieces(pattern: str, locale: Locale) -> tuple[Piece, ...]:
    from babel.dates import tokenize_pattern

    return tuple(
        Piece("text", 0, (value,)) if kind == "chars" else _field(*value, locale)
        for kind, value in tokenize_pattern(pattern)
    )


@cache
def _field(letter: str, width: int, locale: Locale) -> Piece:
    """A field of a pattern: a number, or what Babel writes for it."""
    from babel.dates import format_date

    number, name = _KINDS[letter]
    if number != "text" and (width <= 2 or letter == "y"):
        return Piece(number, width, ())
    days = {"month name": _MONTHS, "weekday name": _WEEKDAYS, "text": _MONTHS[:1]}[name]
    return Piece(name, 0, tuple(format_date(day, letter * width, locale) for day in days))


class Reader:
    """Reads dates by looking up how forms write them: all that a text can mean where its language is not told."""

    def __init__(self, known: Iterable[Form]) -> None:
        # By the text with its numbers blanked out: what these numbers are, with the month and the weekday named.
        self._readings: defaultdict[str, set[_Reading]] = defaultdict(set)
        for form in known:
            for month, weekday in product(*(_spelt(form, kind) for kind in ("month name", "weekday name"))):
                text, numbers = _blanked(form, month, weekday)
                self._readings[text].add(_Reading(numbers, month, weekday))

    def read(self, text: str) -> set[date]:
        """Every day that some form writes so; of a text in the form of ISO 8601 only the one that this means."""
        runs = _RUN.findall(text)
        found = self._readings.get(_RUN.sub(_blank, text), set())
        days = {day for reading in found if (day := reading.day(runs)) is not None}
        return {day for day in days if day.isoformat() == text} if _ISO.fullmatch(text) else days


@cache
def whole_reader() -> Reader:
    """Reads dates in all forms."""
    return Reader(forms())


class _Reading(NamedTuple):
    """What the numbers of a text are, each a piece or, as part of a name, itself; and what is named, from 1 and 0."""

    numbers: tuple[Piece | str, ...]
    month: int | None
    weekday: int | None

    def day(self, runs: Sequence[str]) -> date | None:
        """The day that these digits mean; none where there is no such day, or it is not written so."""
        values: dict[str, int] = {} if self.month is None else {"month": self.month}
        for number, run in zip(self.numbers, runs, strict=True):
            if isinstance(number, Piece):
                values[number.kind] = int(run)
        if values["year"] < 100:
            values["year"] += 1900 if values["year"] >= FIRST_DAY.year % 100 else 2000
        try:
            day = date(**values)
        except ValueError:
            return None
        written = (
            run == number if isinstance(number, str) else _plain(run) == number.write(day)
            for number, run in zip(self.numbers, runs, strict=True)
        )
        fits = FIRST_DAY <= day <= LAST_DAY and self.weekday in (None, day.weekday())
        return day if fits and all(written) else None


class DatePair(NamedTuple):
    """A day as it is written, the same in ISO 8601, and the form that it is written in."""

    source: str
    target: str
    form: Form


class DatePairs(NamedTuple):
    """Pairs to train on, and three lists to evaluate on, whose days are in no pair to train on.

    days: in the forms to train on. forms: in held-out forms. languages: in forms of held-out languages.
    ambiguous: texts that were drawn to train on and left out, as they do not tell their day, for each that was kept.
    """

    train: list[DatePair]
    days: list[DatePair]
    forms: list[DatePair]
    languages: list[DatePair]
    ambiguous: float

    def months_seen(self, pairs: Iterable[DatePair]) -> float:
        """The part of some pairs whose month is a number, or has the name that a form to train on gives it, too."""
        names = [pair.form.month_names for pair in self.train]
        seen = {(month, name) for twelve in set(names) for month, name in enumerate(twelve, start=1)}
        found = [
            not pair.form.month_names or (month, pair.form.month_names[month - 1]) in seen
            for pair in pairs
            for month in [date.fromisoformat(pair.target).month]
        ]
        return sum(found) / max(1, len(found))


class Split(NamedTuple):
    """What is trained on and what is held out: forms, with the languages that they are drawn for, and days."""

    train: dict[Form, Use]
    forms: dict[Form, Use]
    languages: dict[Form, Use]
    train_days: list[date]
    held_out_days: list[date]

    @classmethod
    def of(cls, inventory: Mapping[Form, Use], seed: int) -> Split:
        """The split of all forms and days by a seed."""
        random = Random(seed)
        days = [FIRST_DAY + timedelta(day) for day in range((LAST_DAY - FIRST_DAY).days + 1)]
        random.shuffle(days)
        cut = round(len(days) * HELD_OUT_DAYS)
        spoken = sorted({language for use in inventory.values() for language in use.languages})
        unknown = frozenset(random.sample(spoken, round(len(spoken) * HELD_OUT_LANGUAGES)))
        split = cls({}, {}, {}, days[cut:], days[:cut])
        for form, use in inventory.items():
            known = use.languages - unknown
            part = split.languages if not known else split.forms if random.random() < HELD_OUT_FORMS else split.train
            part[form] = use._replace(languages=known or use.languages)
        return split


# Draws in a row that bring no new text, after which there is taken to be none.
_IDLE_DRAWS = 10_000


def date_pairs(train: int, held_out: int, seed: int = 0) -> DatePairs:
    """So many pairs to train on, and so many for each of the three evaluations; the same ones for the same seed.

    A language is drawn, one of its forms, and a day, each uniformly, until the texts that are kept are enough; no text
    is twice in a list.

    Raises:
        UsageError: Babel is not installed, or there are not so many different texts.
    """
    split = Split.of(forms(), seed)
    every, seen = whole_reader(), Reader(split.train)
    pairs, ambiguous = _draw(split.train, split.train_days, train, f"{seed} train", every)
    return DatePairs(
        pairs,
        _draw(split.train, split.held_out_days, held_out, f"{seed} days", every)[0],
        _draw(split.forms, split.held_out_days, held_out, f"{seed} forms", every, seen)[0],
        _draw(split.languages, split.held_out_days, held_out, f"{seed} languages", every, seen)[0],
        ambiguous / max(1, len(pairs)),
    )


def _draw(
    known: Mapping[Form, Use], days: Sequence[date], count: int, seed: str, every: Reader, seen: Reader | None = None
) -> tuple[list[DatePair], int]:
    """(pairs, ambiguous texts that were left out); none that a form of `seen` can write."""
    random = Random(seed)
    by_language: defaultdict[str, list[Form]] = defaultdict(list)
    for form, use in known.items():
        for language in sorted(use.languages):
            by_language[language].append(form)
    languages = sorted(by_language)
    pairs: dict[str, DatePair] = {}
    ambiguous = idle = 0
    while len(pairs) < count:
        before = len(pairs)
        if idle == _IDLE_DRAWS:
            raise UsageError(f"dates: expected {count:,} different texts, found no more than {before:,}; ask for fewer")
        form, day = random.choice(by_language[random.choice(languages)]), random.choice(days)
        text = form.write(day)
        if every.read(text) != {day}:
            ambiguous += 1
        elif seen is None or not seen.read(text):
            pairs.setdefault(text, DatePair(text, day.isoformat(), form))
        idle = 0 if len(pairs) > before else idle + 1
    return list(pairs.values()), ambiguous


def _spelt(form: Form, kind: Kind) -> Sequence[int | None]:
    """The months (from 1), or weekdays (from 0), where they have names in a form; [None] where they have none."""
    if not any(piece.kind == kind for piece in form.pieces):
        return [None]
    return range(1, 13) if kind == "month name" else range(7)


def _blanked(form: Form, month: int | None, weekday: int | None) -> tuple[str, tuple[Piece | str, ...]]:
    """A form's text with its numbers blanked out, and what they are."""
    text: list[str] = []
    numbers: list[Piece | str] = []
    for piece in form.pieces:
        if not piece.words:
            text.append(form.zero)
            numbers.append(piece)
            continue
        index = {"month name": (month or 1) - 1, "weekday name": weekday or 0}.get(piece.kind, 0)
        word, own = _blanked_word(piece.words[index])
        text.append(word)
        numbers += own
    return "".join(text), tuple(numbers)


@cache
def _blanked_word(word: str) -> tuple[str, tuple[str, ...]]:
    return _RUN.sub(_blank, word), tuple(_RUN.findall(word))


def _blank(run: re.Match[str]) -> str:
    """The zero of a number's digits."""
    first = run.group()[0]
    return chr(ord(first) - unicodedata.digit(first))


def _plain(run: str) -> str:
    """The same number in the digits 0-9."""
    return run if run.isascii() else "".join(str(unicodedata.digit(sign)) for sign in run)


def _in_digits(number: str, zero: str) -> str:
    return number if zero == "0" else "".join(chr(ord(zero) + int(digit)) for digit in number)
