"""Sources that break off, beams narrower than the answers, and texts that answers hold or do not hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from throughtime.data import Tokenizer
from throughtime.data.pairs import TextsSource
from throughtime.decoding.search_config import SearchConfig
from throughtime.errors import ConfigError, DataError
from throughtime.models import EncoderDecoder, EncoderDecoderConfig
from throughtime.tasks.pair_texts import PairTokenizers
from throughtime.tasks.transducer import Transducer

LETTERS = Tokenizer.train("chars", TextsSource(["abc"], "letters"))


def untrained(target: Tokenizer = LETTERS, attention: str = "general") -> EncoderDecoder:
    """A model that reads the letters a, b, c, and writes what the target's vocabulary has."""
    torch.manual_seed(0)
    return EncoderDecoder(
        EncoderDecoderConfig(
            hidden_size=8,
            embedding_size=4,
            attention=attention,  # type: ignore[arg-type]
            source_vocabulary_size=LETTERS.vocabulary_size,
            target_vocabulary_size=target.vocabulary_size,
            border_id=target.border_id,
        )
    )


def transducer(target: Tokenizer = LETTERS, attention: str = "general", **search: Any) -> Transducer:
    config = SearchConfig(**{"max_length": 4, **search})
    return Transducer(untrained(target, attention), PairTokenizers(LETTERS, target), config)


# -- sources that break off --------------------------------------------------------------------------------------------


def test_what_was_read_before_a_fault_is_answered() -> None:
    def broken() -> Iterator[str]:
        yield from ("a", "ab", "abc")
        raise DataError("words.txt: line 4: not UTF-8")

    stream = transducer().stream(broken())
    assert [next(stream).source for _ in range(3)] == ["a", "ab", "abc"]
    with pytest.raises(DataError, match="line 4: not UTF-8"):
        next(stream)


# -- the beam ----------------------------------------------------------------------------------------------------------


def test_more_answers_do_not_widen_the_beam() -> None:
    for narrow in (1, 2):
        (one,), (four,) = (transducer(beam=narrow, n_best=count).answer(["abc"]) for count in (1, 4))
        assert one.answers[0].text == four.answers[0].text
        assert one.answers[0].score == pytest.approx(four.answers[0].score)
    # A beam of one has a single path, of which answers are the beginnings; a wider one has others besides.
    (greedy,) = transducer(beam=1, n_best=4, max_length=8).answer(["abc"])
    assert [answer.text for answer in greedy.answers] == ["", "c", "cc", "ccc"]
    (wide,) = transducer(beam=4, n_best=4, max_length=8).answer(["abc"])
    assert sorted(answer.text for answer in wide.answers) == ["", "a", "b", "c"]


# -- what answers hold, and what they do not ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (
            {"prefix": "abc", "banned": ["bc"]},
            "generation.prefix (--prefix): 'abc' holds 'bc', which generation.banned (--ban) forbids; leave one of "
            "them out",
        ),
        (
            {"required": ["a"], "banned": ["a"]},
            "generation.required (--require): 'a' holds 'a', which generation.banned (--ban) forbids; leave one of "
            "them out",
        ),
        (
            {"required": ["abab"], "no_repeat_ngram": 2},
            "generation.required (--require): 'abab' holds 'ab' twice, which generation.no_repeat_ngram "
            "(--no-repeat-ngram) = 2 forbids; shorten the text, or set that to 0",
        ),
        (
            {"required": ["ax"]},
            "generation.required (--require): 'ax' holds what is not in the vocabulary: 'x'; leave that out",
        ),
        ({"prefix": "q"}, "generation.prefix (--prefix): 'q' holds what is not in the vocabulary: 'q'; leave that out"),
        (
            {"banned": [""]},
            "generation.banned (--ban): expected a text of at least one token, got ''; leave it out",
        ),
        (
            {"attention": "none", "coverage_penalty": 0.2},
            "generation.coverage_penalty (--coverage-penalty): expected a model with attention, got one without "
            '(model.attention = "none"); set it to 0',
        ),
    ],
)
def test_what_cannot_be_held_is_told_in_texts(search: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        transducer(**search)
    assert str(caught.value) == told


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"'abc' holds 'b', which .*; .*'abc' holds 'c', which .*; .*'c' holds 'c', wh"
    ):
        transducer(required=["abc", "c"], banned=["b", "c"])


def test_a_banned_text_is_banned_with_a_space_before_it_and_without() -> None:
    words = Tokenizer.train("bpe", TextsSource(["a bat sat", "the bat", "bat"] * 5, "words"), vocabulary_size=300)
    (bare,), (spaced,) = words.encode("bat"), words.encode(" bat")
    assert bare != spaced
    model = untrained(words)
    with torch.no_grad():
        model.readout.bias_ho[[bare, spaced]] += 20.0

    def texts(**search: Any) -> str:
        config = SearchConfig(max_length=3, n_best=5, **search)
        (found,) = Transducer(model, PairTokenizers(LETTERS, words), config).answer(["abc"])
        return "|".join(answer.text for answer in found.answers)

    assert "bat" in texts()
    with pytest.raises(ConfigError) as caught:
        texts(required=["bat bat"], banned=["bat"])
    assert str(caught.value).count("leave one of them out") == 1
    for banned in ("bat", " bat"):
        assert "bat" not in texts(banned=[banned])
