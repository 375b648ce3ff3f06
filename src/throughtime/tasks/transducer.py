"""Text in, answers out: a trained encoder-decoder with its tokenizers and a beam search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.data.tokenizers import Tokenizer
from throughtime.decoding import given
from throughtime.decoding.beam import beam_search
from throughtime.decoding.hypotheses import Hypotheses
from throughtime.decoding.search import Search
from throughtime.decoding.search_config import SearchConfig
from throughtime.models import EncoderDecoder
from throughtime.tasks.pair_texts import PairTokenizers

# Sources that are answered at once, and of which those of similar lengths are put together.
_ROWS = 64
_READ_AHEAD = 1024


class Answer(NamedTuple):
    """One answer to a source.

    text: without the end. score: log p of the whole answer in nats, its end included. ranking: what answers are ordered
    by: the score, as the search normalised it. ended: whether it has ended by itself, and not at the greatest length.
    tokens, token_scores: each token for display, and its log p, the end last where it ended. attention: (τ, S), where
    each of these tokens looked; None of a model without attention.
    """

    text: str
    score: float
    ranking: float
    ended: bool
    tokens: tuple[str, ...]
    token_scores: tuple[float, ...]
    attention: Tensor | None


class Answered(NamedTuple):
    """A source with its answers, the best first.

    tokens: the source's tokens for display. unknown: what the model has never seen, and read as unknown. cut: how many
    tokens behind the greatest length were left out.
    """

    source: str
    tokens: tuple[str, ...]
    answers: tuple[Answer, ...]
    unknown: tuple[str, ...]
    cut: int


class Transducer:
    """Answers sources by a model.

    An empty source has the empty answer. What the vocabulary lacks is read as unknown, a source longer than
    `max_source_length` tokens is cut there, and both are told with the answer. The model never answers with the
    unknown token.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        tokenizers: PairTokenizers,
        config: SearchConfig,
        *,
        max_source_length: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizers = tokenizers
        self.config = config
        self.max_source_length = max_source_length
        unknown = tokenizers.target.unknown_id
        self._search = Search(
            length_penalty=config.length_penalty,
            coverage_penalty=config.coverage_penalty,
            minimum_length=config.minimum_length,
            no_repeat_ngram=config.no_repeat_ngram,
            banned=() if unknown is None else (unknown,),
        )

    def stream(self, texts: Iterable[str], *, read_ahead: int = _READ_AHEAD) -> Iterator[Answered]:
        """The answers in the order of the sources, of which at most `read_ahead` are in memory."""
        remaining = iter(texts)
        while block := list(islice(remaining, read_ahead)):
            yield from self.answer(block)

    def answer(self, texts: Sequence[str]) -> list[Answered]:
        """The answers to some sources; those of similar lengths are searched together."""
        ids = [self.tokenizers.source.encode(text) for text in texts]
        found: list[Answered | None] = [None] * len(texts)
        order = sorted((row for row in range(len(texts)) if len(ids[row])), key=lambda row: len(ids[row]))
        for row in range(len(texts)):
            if not len(ids[row]):
                found[row] = Answered(texts[row], (), (Answer("", 0.0, 0.0, True, (), (), None),), (), 0)
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            kept = [torch.from_numpy(ids[row][: self.max_source_length]) for row in rows]
            for row, own, answers in zip(rows, kept, self._searched(kept), strict=True):
                tokens = tuple(self.tokenizers.source.token(index) for index in own.tolist())
                unknown = tuple(self.tokenizers.source.codec.unknown(texts[row]))
                found[row] = Answered(texts[row], tokens, answers, unknown, len(ids[row]) - len(own))
        return [one for one in found if one is not None]

    def _searched(self, sources: Sequence[Tensor]) -> list[tuple[Answer, ...]]:
        """The answers to sources given as ids."""
        lengths = torch.tensor([len(ids) for ids in sources])
        padded = torch.nn.utils.rnn.pad_sequence(list(sources))  # (S, B)
        found = beam_search(
            given(self.model, inputs=padded, lengths=lengths),
            length=self.config.max_length,
            width=max(self.config.beam, self.config.n_best),
            n_best=self.config.n_best,
            search=self._search,
        )
        return [
            tuple(self._answer(found, row, rank, int(lengths[row])) for rank in range(self.config.n_best)
                  if found.scores[row, rank] > -torch.inf)
            for row in range(len(sources))
        ]  # fmt: skip

    def _answer(self, found: Hypotheses, row: int, rank: int, source_length: int) -> Answer:
        target: Tokenizer = self.tokenizers.target
        length = int(found.lengths[row, rank])
        ids = found.tokens[:, row, rank].tolist()
        ended = len(ids) > length and ids[length] == target.border_id
        shown = slice(length + ended)
        attention = None
        if found.attention is not None:
            attention = found.attention[shown, row, rank, :source_length].clone()
        return Answer(
            target.decode(ids[:length]),
            float(found.scores[row, rank]),
            float(found.ranking[row, rank]),
            ended,
            tuple(target.token(index) for index in ids[shown]),
            tuple(found.token_scores[shown, row, rank].tolist()),
            attention,
        )
