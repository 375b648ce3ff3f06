"""How good answers are: each held-out source has one reference or several, any of which is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from throughtime.data.tokenizers import Tokenizer
from throughtime.errors import UsageError


@dataclass(frozen=True)
class Judged:
    """An answer with the references that it is held against."""

    answer: str
    references: tuple[str, ...]


def exact_match(judged: Sequence[Judged], tokenizer: Tokenizer) -> float:
    """The share of answers that are one of their references, as tokens. 1 - this is the word error rate of a word."""
    right = [
        any(list(tokenizer.encode(one.answer)) == list(tokenizer.encode(other)) for other in one.references)
        for one in judged
    ]
    return sum(right) / len(right)


def token_error_rate(judged: Sequence[Judged], tokenizer: Tokenizer) -> float:
    """Σ Levenshtein distance / Σ tokens of the reference, of each answer and the reference nearest to it.

    The tokens are the tokenizer's: phonemes, characters or words, as the targets are split.
    Source: Levenshtein 1966; the nearest of several references: Yao & Zweig 2015, section 4.1.
    """
    from rapidfuzz.distance import Levenshtein

    edits = tokens = 0
    for one in judged:
        answer = tokenizer.encode(one.answer).tolist()
        found = [
            (Levenshtein.distance(answer, reference), -len(reference))
            for reference in (tokenizer.encode(text).tolist() for text in one.references)
        ]
        distance, minus_length = min(found)
        edits, tokens = edits + distance, tokens - minus_length
    return edits / max(tokens, 1)


def bleu(judged: Sequence[Judged], tokenizer: Tokenizer) -> float:
    """BLEU of the texts, 0..100 (Papineni et al. 2002), by sacrebleu with its usual tokenisation "13a".

    As of single sentences there, n-grams longer than all answers do not count (`effective_order=True`): right answers
    of one to three words have 100, and not 0. Where any answer has four words, it is the usual BLEU.
    """
    from sacrebleu.metrics.bleu import BLEU

    # Their product of roots comes to a little more than 100.
    return min(100.0, float(BLEU(effective_order=True).corpus_score(*_texts(judged)).score))


def chrf(judged: Sequence[Judged], tokenizer: Tokenizer) -> float:
    """chrF2 of the texts, 0..100 (Popović 2015), by sacrebleu."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score(*_texts(judged)).score)


METRICS: dict[str, Callable[[Sequence[Judged], Tokenizer], float]] = {
    "exact_match": exact_match,
    "token_error_rate": token_error_rate,
    "bleu": bleu,
    "chrf": chrf,
}


def check_metrics(names: Sequence[str]) -> None:
    """Nothing, where there is a metric of each name.

    Raises:
        UsageError: there is none of one.
    """
    for name in names:
        if name not in METRICS:
            raise UsageError(f"metrics: expected some of {', '.join(METRICS)}, got {name!r}")


def measured(names: Sequence[str], judged: Sequence[Judged], tokenizer: Tokenizer) -> dict[str, float]:
    """The metrics of these names; `tokenizer` is that of the targets.

    Raises:
        UsageError: there is no metric of a name, or no answer to judge.
    """
    check_metrics(names)
    if not judged:
        raise UsageError("metrics: expected answers to judge, got none; give some pairs")
    return {name: METRICS[name](judged, tokenizer) for name in names}


def _texts(judged: Sequence[Judged]) -> tuple[list[str], Any]:
    """The answers, and the references as sacrebleu wants them: the first of each, the second of each, ..."""
    most = max(len(one.references) for one in judged)
    columns = [[one.references[at] if at < len(one.references) else None for one in judged] for at in range(most)]
    return [one.answer for one in judged], columns
