"""Stop strings over pieces: what passes is what the whole text says, and nothing that must be taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from throughtime.decoding.stop_strings import StopStrings

letters = st.text("ab", max_size=12)
stop_strings = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first, looked for at every place."""
    ends = [(end, end - len(stop)) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@given(st.lists(letters, max_size=8), stop_strings)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    passed = "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()
    assert (passed, matcher.found) == naive("".join(pieces), stops)


@given(st.lists(letters, max_size=8), stop_strings)
def test_nothing_is_passed_that_could_begin_a_stop_string_and_no_more_is_held(
    pieces: list[str], stops: list[str]
) -> None:
    matcher, text, passed = StopStrings(stops), "", ""
    for piece in pieces:
        text += piece
        passed += matcher.feed(piece)
        if matcher.found:
            break
        held = text[len(passed) :]
        assert text.startswith(passed)
        longest = max(
            (text[i:] for i in range(len(text)) if any(s.startswith(text[i:]) for s in stops)), key=len, default=""
        )
        assert held == longest


def test_a_stop_string_over_three_pieces() -> None:
    matcher = StopStrings(["\n\n\n"])
    assert [matcher.feed(piece) for piece in ("one\n", "\n", "two\n\n", "\nrest")] == ["one", "", "\n\ntwo", ""]
    assert matcher.found
    assert matcher.feed("more") == ""
    assert matcher.flush() == ""
