"""Text in, answers out: a trained encoder-decoder with its tokenizers and a beam search."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from throughtime.data.tokenizers import Tokenizer
from throughtime.decoding import given
from throughtime.decoding.beam import beam_search
from throughtime.decoding.ensemble import Ensemble
from throughtime.decoding.hypotheses import Hypotheses
from throughtime.decoding.phrases import holds
from throughtime.decoding.search import Search, impossible
from throughtime.decoding.search_config import SearchConfig
from throughtime.errors import ConfigError
from throughtime.models import EncoderDecoder
from throughtime.tasks.pair_texts import PairTokenizers

Ids: TypeAlias = npt.NDArray[np.int64]

# At most so many sources are read before the first is answered: those of similar lengths are searched together.
_READ_AHEAD = 1024
# What is searched at once: sources, their positions, and numbers in the log p of a step (rows · width · vocabulary).
_ROWS = 256
_POSITIONS = 1 << 14
_NUMBERS = 1 << 23


class Answer(NamedTuple):
    """One answer to a source.

    text: without the end. score: log p of the whole answer in nats, its end included. ranking: what answers are ordered
    by: the score, as the search normalised it. Both are 0 of the answer to an empty source, which no model has scored.
    ended: whether it has ended by itself, and not at the greatest length. tokens, token_scores: each token for display,
    and its log p, the end last where it ended. attention: (τ, S), where each of these tokens looked; None of a model
    without attention.
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

    tokens: the source's tokens for display. unknown: what is not in the vocabulary, and was read as unknown. cut: how
    many tokens behind the greatest length were left out.
    """

    source: str
    tokens: tuple[str, ...]
    answers: tuple[Answer, ...]
    unknown: tuple[str, ...]
    cut: int


# Kinds of vocabularies that may have "bat" and " bat" as two tokens.
_SPACE_IN_TOKENS = ("bpe", "file")

# What a key of [generation] is called on the command line, where it is not the same word.
_OPTIONS = {"required": "require", "banned": "ban"}

_EMPTY = Answer("", 0.0, 0.0, True, (), (), None)
_NOTHING = np.empty(0, np.int64)


class _Phrase(NamedTuple):
    """What answers must or must not hold: under which key of [generation], as a text, and as tokens of the target."""

    key: str
    text: str
    ids: tuple[int, ...]


class Transducer:
    """Answers sources by a model, or by several of the same vocabularies together (`throughtime.decoding.Ensemble`).

    An empty source, or one of white space alone, has the empty answer. What the vocabulary lacks is read as unknown, a
    source longer than `max_source_length` tokens is cut there, and both are told with the answer. The model never
    answers with the unknown token.

    What answers must or must not hold counts as the tokens that it is split into, in a row. The same letters may come
    about from other tokens: of BPE, a banned text is banned with a space before it and without, but not within another
    token; a required one is met as it was given, with a space where one was given.

    Raises:
        ConfigError: what answers must or must not hold is empty, or the target's vocabulary lacks it; they must hold
            what they must not, or more than the greatest length has room for; a coverage penalty, and a model without
            attention.
    """

    def __init__(
        self,
        models: EncoderDecoder | Sequence[EncoderDecoder],
        tokenizers: PairTokenizers,
        config: SearchConfig,
        *,
        max_source_length: int | None = None,
    ) -> None:
        self.models = [models] if isinstance(models, EncoderDecoder) else list(models)
        self.tokenizers = tokenizers
        self.config = config
        self.max_source_length = max_source_length
        unknown = tokenizers.target.unknown_id
        banned, required = self._phrases("banned", config.banned), self._phrases("required", config.required)
        prefix = self._phrases("prefix", [config.prefix] if config.prefix else [])
        faults = [*self._contradictions([*required, *prefix], banned), *self._lacking()]
        if faults:
            raise ConfigError("; ".join(dict.fromkeys(faults)))  # two forms of a text may break one rule
        self._search = Search(
            length_penalty=config.length_penalty,
            coverage_penalty=config.coverage_penalty,
            minimum_length=config.minimum_length,
            no_repeat_ngram=config.no_repeat_ngram,
            banned=[*(phrase.ids for phrase in banned), *([] if unknown is None else [(unknown,)])],
            required=[phrase.ids for phrase in required],
            prefix=prefix[0].ids if prefix else (),
        )
        target = tokenizers.target
        faults = impossible(
            self._search,
            vocabulary=target.vocabulary_size,
            length=config.max_length,
            width=config.beam,
            rows=1,
            end=target.border_id,
        )
        if faults:
            raise ConfigError(f"generation: {'; '.join(faults)}")
        self._unknown_source = tokenizers.source.unknown_id
        self._source_names, self._target_names = _Names(tokenizers.source), _Names(tokenizers.target)

    def stream(
        self, texts: Iterable[str], *, read_ahead: int = _READ_AHEAD, ready: Callable[[], bool] | None = None
    ) -> Iterator[Answered]:
        """The answers in the order of the sources, of which at most `read_ahead` are in memory.

        Sources are gathered while `ready` says that another can be had without waiting; by default they always can.
        Where one of them cannot be read, those before it are answered first; then its error is raised.
        """
        remaining = iter(texts)
        for first in remaining:
            block, fault = [first], None
            try:
                while len(block) < read_ahead and (ready is None or ready()):
                    following = list(islice(remaining, 1))
                    if not following:
                        break
                    block += following
            except Exception as error:
                fault = error
            yield from self.answer(block)
            if fault is not None:
                raise fault

    def answer(self, texts: Sequence[str]) -> list[Answered]:
        """The answers to some sources; those of similar lengths are searched together."""
        source = self.tokenizers.source
        ids = [source.encode(text) if text.strip() else _NOTHING for text in texts]
        found = [Answered(text, (), (_EMPTY,), (), 0) for text in texts]
        for rows in self._batches([min(len(own), self.max_source_length or len(own)) for own in ids]):
            kept = [ids[row][: self.max_source_length] for row in rows]
            for row, own, answers in zip(rows, kept, self._searched(kept), strict=True):
                unknown = source.codec.unknown(texts[row]) if self._unknown_source in ids[row] else ()
                tokens = self._source_names.of(own.tolist())
                found[row] = Answered(texts[row], tokens, answers, unknown, len(ids[row]) - len(own))
        return found

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """The rows to search together, from the shortest sources to the longest; empty ones are in none."""
        most = max(1, min(_ROWS, _NUMBERS // (self.config.beam * self.tokenizers.target.vocabulary_size)))
        batch: list[int] = []
        for row in sorted((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__):
            if batch and (len(batch) == most or (len(batch) + 1) * lengths[row] > _POSITIONS):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _searched(self, sources: Sequence[Ids]) -> list[tuple[Answer, ...]]:
        """The answers to sources given as ids."""
        device = next(self.models[0].parameters()).device
        lengths = torch.tensor([len(ids) for ids in sources])
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in sources])  # (S, B)
        about = [given(model, inputs=padded.to(device), lengths=lengths.to(device)) for model in self.models]
        found = beam_search(
            about[0] if len(about) == 1 else Ensemble(about),
            length=self.config.max_length,
            width=self.config.beam,
            n_best=self.config.n_best,
            search=self._search,
        )
        return self._answers(found, lengths.tolist())

    def _answers(self, found: Hypotheses, source_lengths: Sequence[int]) -> list[tuple[Answer, ...]]:
        """What was found, row by row; whole tensors are made lists at once, which is far faster than piece by piece."""
        target = self.tokenizers.target
        tokens, token_scores = (part.permute(1, 2, 0).tolist() for part in (found.tokens, found.token_scores))
        lengths, scores, ranking = (part.tolist() for part in (found.lengths, found.scores, found.ranking))
        attention = None if found.attention is None else found.attention.cpu()  # (T, B, N, S)
        answers: list[tuple[Answer, ...]] = []
        for row, source_length in enumerate(source_lengths):
            own = []
            for rank in range(self.config.n_best):
                if scores[row][rank] == -math.inf:
                    break
                ids, length = tokens[row][rank], lengths[row][rank]
                ended = len(ids) > length and ids[length] == target.border_id
                shown = length + ended
                own.append(
                    Answer(
                        target.decode(ids[:length]),
                        scores[row][rank],
                        ranking[row][rank],
                        ended,
                        self._target_names.of(ids[:shown]),
                        tuple(token_scores[row][rank][:shown]),
                        None if attention is None else attention[:shown, row, rank, :source_length].clone(),
                    )
                )
            answers.append(tuple(own))
        return answers

    def _phrases(self, key: str, texts: Sequence[str]) -> list[_Phrase]:
        """Texts as tokens of the target.

        Raises:
            ConfigError: one is empty, or holds what the vocabulary lacks.
        """
        target, phrases = self.tokenizers.target, []
        for text in texts:
            ids = tuple(target.encode(text).tolist())
            if not ids:
                raise ConfigError(f"{_key(key)}: expected a text of at least one token, got {text!r}; leave it out")
            if target.unknown_id in ids and key != "banned":
                lacking = ", ".join(map(repr, target.codec.unknown(text)))
                raise ConfigError(
                    f"{_key(key)}: {text!r} holds what is not in the vocabulary: {lacking}; leave that out"
                )
            forms = self._forms(text) if key == "banned" else [ids]
            phrases += [_Phrase(key, text, form) for form in forms]
        return phrases

    def _forms(self, text: str) -> list[tuple[int, ...]]:
        """A text as tokens, and where a space before it is part of its first token, with such a space and without."""
        target, bare = self.tokenizers.target, text.removeprefix(" ")
        texts = (bare, f" {bare}") if bare and target.kind in _SPACE_IN_TOKENS else (text,)
        return list(dict.fromkeys(tuple(target.encode(form).tolist()) for form in texts))

    def _contradictions(self, wanted: Sequence[_Phrase], banned: Sequence[_Phrase]) -> Iterator[str]:
        """What answers must hold and must not: what `Search` finds too, but would tell in ids."""
        size = self.config.no_repeat_ngram
        for key, text, ids in wanted:
            for other in banned:
                if holds(ids, other.ids):
                    yield (
                        f"{_key(key)}: {text!r} holds {other.text!r}, which {_key('banned')} forbids; leave one of "
                        "them out"
                    )
            ngrams = [ids[start : start + size] for start in range(len(ids) - size + 1)] if size else []
            for ngram in sorted({ngram for ngram in ngrams if ngrams.count(ngram) > 1}):
                yield (
                    f"{_key(key)}: {text!r} holds {self.tokenizers.target.decode(ngram)!r} twice, which "
                    f"{_key('no_repeat_ngram')} = {size} forbids; shorten the text, or set that to 0"
                )

    def _lacking(self) -> Iterator[str]:
        """What the search needs and the models have not."""
        if self.config.coverage_penalty and any(model.config.attention == "none" for model in self.models):
            yield (
                f"{_key('coverage_penalty')}: expected a model with attention, got one without "
                '(model.attention = "none"); set it to 0'
            )


def _key(name: str) -> str:
    """A key of [generation], as errors name it: to whoever wrote a configuration, and to whoever typed an option."""
    return f"generation.{name} (--{_OPTIONS.get(name, name).replace('_', '-')})"


class _Names:
    """The tokens of a vocabulary for display, each found once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._name = functools.cache(tokenizer.token)

    def of(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The tokens of ids."""
        return tuple(map(self._name, ids))
