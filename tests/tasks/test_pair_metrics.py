"""What metrics of answers come to, by hand and by sacrebleu."""

from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import Tokenizer
from throughtime.data.pairs import TextsSource
from throughtime.errors import UsageError
from throughtime.tasks.pair_metrics import (
    METRICS,
    Judged,
    bleu,
    check_metrics,
    chrf,
    exact_match,
    measured,
    token_error_rate,
)

BYTES = Tokenizer.train("bytes")
TEXTS = st.text(alphabet="abc ", max_size=8)
FOUR_WORDS = st.lists(st.sampled_from(["a", "b", "cc"]), min_size=4, max_size=6).map(" ".join)


def of_words() -> Tokenizer:
    return Tokenizer.train("words", TextsSource(["K AE T", "D AO G", "HH AH Z"], "phonemes"))


def test_an_answer_is_right_that_is_one_of_its_references() -> None:
    judged = [Judged("cat", ("cat",)), Judged("dog", ("cat", "dog")), Judged("cow", ("cat", "dog"))]
    assert exact_match(judged, BYTES) == pytest.approx(2 / 3)


def test_answers_are_compared_as_tokens() -> None:
    judged = [Judged("K AE T", ("K  AE\tT ",)), Judged("K AE T", ("K AE",))]
    assert exact_match(judged, of_words()) == 0.5


@pytest.mark.parametrize(
    ("judged", "rate"),
    [
        ([Judged("kitten", ("sitting",))], 3 / 7),
        # Two edits of three tokens, and none of two: by the sums, not by the mean of the rates.
        ([Judged("ab", ("xyb",)), Judged("cd", ("cd",))], 2 / 5),
        # The nearest reference counts, with its own tokens; of two as near, the longer.
        ([Judged("abc", ("xxxxx", "abd"))], 1 / 3),
        ([Judged("abc", ("abx", "abcd"))], 1 / 4),
        ([Judged("", ("abcd",))], 1.0),
        ([Judged("abcdef", ("ab",))], 2.0),
    ],
)
def test_token_error_rates_by_hand(judged: list[Judged], rate: float) -> None:
    assert token_error_rate(judged, BYTES) == pytest.approx(rate)


def test_the_tokens_are_those_of_the_targets() -> None:
    judged = [Judged("K AE T", ("K AO G",))]
    assert token_error_rate(judged, of_words()) == pytest.approx(2 / 3)


def edits(answer: str, reference: str) -> int:
    """Levenshtein's distance from its definition."""
    if not answer or not reference:
        return len(answer) + len(reference)
    return min(
        edits(answer[1:], reference) + 1,
        edits(answer, reference[1:]) + 1,
        edits(answer[1:], reference[1:]) + (answer[0] != reference[0]),
    )


@given(st.text(alphabet="ab", max_size=5), st.text(alphabet="ab", min_size=1, max_size=5))
def test_edits_are_those_of_the_definition(answer: str, reference: str) -> None:
    rate = token_error_rate([Judged(answer, (reference,))], BYTES)
    assert rate == pytest.approx(edits(answer, reference) / len(reference))


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5), st.tuples(FOUR_WORDS, TEXTS))
def test_one_reference_is_what_sacrebleu_says(some: list[tuple[str, str]], long: tuple[str, str]) -> None:
    pairs = [*some, long]
    judged = [Judged(answer, (reference,)) for answer, reference in pairs]
    answers, references = [answer for answer, _ in pairs], [[reference for _, reference in pairs]]
    assert bleu(judged, BYTES) == pytest.approx(sacrebleu.corpus_bleu(answers, references, force=True).score)
    assert chrf(judged, BYTES) == pytest.approx(sacrebleu.corpus_chrf(answers, references).score)


def test_several_references_may_be_of_different_number() -> None:
    judged = [
        Judged("the cat sat on the mat", ("a cat sat on the mat", "the cat sat on a mat")),
        Judged("it rains all day long", ("it rains the whole day",)),
    ]
    both = [judged[0].references[0], judged[1].references[0]]
    padded = [judged[0].references[1], judged[1].references[0]]  # twice the same says nothing new
    answers = [one.answer for one in judged]
    assert bleu(judged, BYTES) == pytest.approx(sacrebleu.corpus_bleu(answers, [both, padded]).score)
    assert chrf(judged, BYTES) == pytest.approx(sacrebleu.corpus_chrf(answers, [both, padded]).score)
    assert bleu(judged, BYTES) > bleu([Judged(one.answer, one.references[:1]) for one in judged], BYTES)


def test_perfect_answers_have_the_best_of_every_metric() -> None:
    judged = [Judged("the cat sat on the mat", ("the cat sat on the mat",))]
    found = measured(list(METRICS), judged, BYTES)
    assert found == pytest.approx({"exact_match": 1.0, "token_error_rate": 0.0, "bleu": 100.0, "chrf": 100.0})


@pytest.mark.parametrize("text", ["cat", "the cat", "the cat sat"])
def test_right_answers_of_few_words_have_the_best_bleu(text: str) -> None:
    assert bleu([Judged(text, (text,)), Judged("dog", ("dog", "hound"))], BYTES) == pytest.approx(100.0)
    assert bleu([Judged(text, ("nothing of it",))], BYTES) == 0.0


def test_a_metric_that_is_none_is_told() -> None:
    told = "metrics: expected some of exact_match, token_error_rate, bleu, chrf, got 'rouge'"
    with pytest.raises(UsageError) as caught:
        check_metrics(["bleu", "rouge"])
    assert str(caught.value) == told
    with pytest.raises(UsageError, match="expected answers to judge, got none"):
        measured(["bleu"], [], BYTES)
