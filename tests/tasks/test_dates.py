"""Dates in many languages: written as Babel writes them, read as nobody else could mean them, held out as promised."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from datetime import date, timedelta
from random import Random

import pytest

from throughtime.errors import UsageError
from throughtime.tasks import dates
from throughtime.tasks.dates import (
    FIRST_DAY,
    LAST_DAY,
    DatePairs,
    Form,
    Piece,
    Reader,
    Split,
    Use,
    date_pairs,
    forms,
    whole_reader,
)

babel_dates = pytest.importorskip("babel.dates")

DAYS = [FIRST_DAY + timedelta(day) for day in range((LAST_DAY - FIRST_DAY).days + 1)]


@pytest.fixture(scope="module")
def pairs() -> DatePairs:
    return date_pairs(train=1500, held_out=200, seed=1)


@pytest.fixture(scope="module")
def split() -> Split:
    return Split.of(forms(), 1)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return whole_reader()


def form_like(text: str) -> Form:
    """The first form that writes 5 March 2021 so."""
    return next(form for form in forms() if form.write(date(2021, 3, 5)) == text)


def test_a_form_writes_what_babel_writes_in_the_locales_own_digits() -> None:
    random = Random(0)
    for form, use in random.sample(list(forms().items()), 300):
        day = random.choice(DAYS)
        written = babel_dates.format_date(day, use.pattern, use.locale)
        if form.zero == "0":
            assert form.write(day) == written
        else:
            # Names may hold digits of their own, which stay as they are.
            plain = form._replace(zero="0")
            assert plain.write(day) == written
            assert form.write(day) != written
    assert form_like("۵ مارس ۲۰۲۱").zero == "۰"


def test_forms_cover_many_languages_and_all_their_digits() -> None:
    languages = {language for use in forms().values() for language in use.languages}
    assert {"ar", "cs", "de", "en", "fr", "hi", "ja", "ko", "ru", "sw", "th", "tr", "vi", "zh"} <= languages
    assert len(languages) > 200
    assert len({form.zero for form in forms()}) >= 10


def test_every_form_is_read_as_it_is_written() -> None:
    random = Random(0)
    for form in random.sample(list(forms()), 500):
        day = random.choice(DAYS)
        text = form.write(day)
        # Some write the day before the month and look like ISO 8601, which means another day.
        swapped = re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text) and text != day.isoformat()
        expected = set() if swapped else {day}
        assert Reader([form]).read(text) == expected, (text, day)


def test_reading_is_the_inverse_of_writing_by_brute_force() -> None:
    known = [form_like(text) for text in ("3/5/2021", "05/03/21", "3/5/21", "Mar 5, 2021", "5. ožujka 2021.")]
    known += [Form((Piece("year", 2, ()), *_slashes("month", "day")), "0")]
    written: defaultdict[str, set[date]] = defaultdict(set)
    for form in known:
        for day in DAYS[::5]:
            written[form.write(day)].add(day)
    every_fifth = frozenset(DAYS[::5])
    reader = Reader(known)
    for text in Random(0).sample(sorted(written), 2500):
        assert reader.read(text) & every_fifth == written[text], text


def _slashes(*kinds: str) -> list[Piece]:
    return [piece for kind in kinds for piece in (Piece("text", 0, ("/",)), Piece(kind, 1, ()))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("02/03/2019", {"2019-02-03", "2019-03-02"}),
        ("13/03/2019", {"2019-03-13"}),
        ("03/03/2019", {"2019-03-03"}),
        # Some locales write year, day and month; but this is ISO 8601.
        ("2019-02-03", {"2019-02-03"}),
        ("2019-13-02", set()),
        ("2 mars 2019", {"2019-03-02"}),
        ("29 février 2019", set()),
        ("2 mars 1949", set()),
        ("tomorrow", set()),
        ("", set()),
        # Croatian: October. Polish, without the point: November.
        ("2. listopada 2019.", {"2019-10-02"}),
        ("2 listopada 2019", {"2019-11-02"}),
    ],
)
def test_a_text_means_every_day_that_some_locale_writes_so(reader: Reader, text: str, days: set[str]) -> None:
    assert {day.isoformat() for day in reader.read(text)} == days


def test_a_weekday_that_does_not_fit_is_no_reading(reader: Reader) -> None:
    assert reader.read("Friday, March 5, 2021") == {date(2021, 3, 5)}
    assert reader.read("Monday, March 5, 2021") == set()


def test_pairs_come_again_with_their_seed_alone(pairs: DatePairs) -> None:
    assert date_pairs(train=1500, held_out=200, seed=1) == pairs
    other = Split.of(forms(), 2)
    assert other.held_out_days != Split.of(forms(), 1).held_out_days
    assert other.forms.keys() != Split.of(forms(), 1).forms.keys()


def test_pairs_are_clean_and_tell_their_day(pairs: DatePairs, reader: Reader) -> None:
    for part in (pairs.train, pairs.days, pairs.forms, pairs.languages):
        assert len({pair.source for pair in part}) == len(part)
        for source, target, form in part:
            day = date.fromisoformat(target)
            assert (day.isoformat(), FIRST_DAY <= day <= LAST_DAY) == (target, True)
            assert source == form.write(day)
            assert source.strip()
            assert not set("\t\r\n") & set(source)
            assert reader.read(source) == {day}
    assert (len(pairs.train), len(pairs.days), len(pairs.forms), len(pairs.languages)) == (1500, 200, 200, 200)
    assert 0.01 < pairs.ambiguous < 0.2


def test_no_day_that_is_evaluated_was_trained_on(pairs: DatePairs) -> None:
    trained = {pair.target for pair in pairs.train}
    assert not trained & {pair.target for part in (pairs.days, pairs.forms, pairs.languages) for pair in part}


def test_no_held_out_text_can_be_written_in_a_form_to_train_on(pairs: DatePairs, split: Split) -> None:
    assert {pair.form for pair in pairs.train} <= split.train.keys()
    assert {pair.form for pair in pairs.days} <= split.train.keys()
    for part, known in ((pairs.forms, split.forms), (pairs.languages, split.languages)):
        assert {pair.form for pair in part} <= known.keys()
        for source, target, _ in part[:40]:
            day = date.fromisoformat(target)
            assert all(form.write(day) != source for form in split.train)


def test_a_split_is_of_all_forms_and_days_and_holds_out_whole_languages(split: Split) -> None:
    parts = (split.train, split.forms, split.languages)
    assert set().union(*parts) == forms().keys()
    assert sum(map(len, parts)) == len(forms())
    assert sorted([*split.train_days, *split.held_out_days]) == DAYS
    trained = {language for use in split.train.values() for language in use.languages}
    unknown = {language for use in split.languages.values() for language in use.languages}
    assert unknown
    assert not trained & unknown
    assert 0.05 < len(split.forms) / len(forms()) < 0.15


def test_months_seen_counts_names_that_a_form_to_train_on_has_for_the_same_month(pairs: DatePairs) -> None:
    assert pairs.months_seen(pairs.train) == 1.0
    assert pairs.months_seen(pairs.languages) < pairs.months_seen(pairs.forms) <= 1.0
    named = next(pair for pair in pairs.train if pair.form.month_names)
    swapped = tuple(
        piece._replace(words=tuple(f"{word}?" for word in piece.words)) if len(piece.words) == 12 else piece
        for piece in named.form.pieces
    )
    assert pairs.months_seen([named, named._replace(form=Form(swapped, "0"))]) == 0.5


def test_a_use_names_the_first_locale_and_all_languages() -> None:
    use = forms()[form_like("05/03/2021")]
    assert use == Use("dd/MM/y", "am", use.languages)
    assert {"am", "fr", "it", "pt"} <= use.languages


def test_without_babel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(UsageError, match=r"dates: expected Babel's locale data, got no Babel; pip install babel"):
        forms.__wrapped__()


def test_more_texts_than_there_are_is_an_error(split: Split, reader: Reader) -> None:
    form = next(form for form in split.train if reader.read(form.write(LAST_DAY)) == {LAST_DAY})
    with pytest.raises(UsageError, match="dates: expected 2 different texts, found no more than 1; ask for fewer"):
        dates._draw({form: split.train[form]}, [LAST_DAY], 2, "seed", reader)
