"""Text on top of tokens: several texts written at once, each piece handed on as soon as it is certain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from throughtime.data.streaming import StreamDecoder
from throughtime.data.tokenizers import Prompt, Tokenizer
from throughtime.decoding.beam import beam_search
from throughtime.decoding.config import GenerationConfig
from throughtime.decoding.filters import Filters
from throughtime.decoding.protocol import Steppable
from throughtime.decoding.sampling import decode, prompt_ids
from throughtime.decoding.stop import EndSymbol
from throughtime.decoding.stop_strings import StopStrings

Ended = Literal["length", "end", "stop"]


class Piece(NamedTuple):
    """The next characters of one of the texts, never half of one.

    sample: which text, from 0.
    ended: on a text's last piece, why it ended: its length, the model's end of a text, or a stop string.
    tokens: how many tokens the text has so far, those of a stop string and the end included.
    """

    sample: int
    text: str
    tokens: int
    ended: Ended | None = None


class Text(NamedTuple):
    """A whole text; see `Piece`."""

    text: str
    tokens: int
    ended: Ended


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as the model reads it: what the vocabulary lacks shows as such."""
    return _fed(StreamDecoder(tokenizer), prompt)


def stream_text(
    model: Steppable, tokenizer: Tokenizer, prompt: Prompt | str, config: GenerationConfig
) -> Iterator[Piece]:
    """The pieces of `config.samples` texts that go on from the prompt, as they are made, the prompt not among them.

    Each text begins with the tokenizer's border, so that an empty prompt begins a new document. Close the iterator to
    stop earlier. The pieces of one sample come in order; those of different samples are mixed. With `config.beam` the
    samples are the likeliest texts that a beam search finds, the best first, and come when it has ended.

    Raises:
        PromptError: the prompt holds characters that the model has never seen.
        ConfigError, EngineError, DivergedError: see `throughtime.decoding.sample`.
    """
    read = tokenizer.check_prompt(prompt) if isinstance(prompt, str) else prompt
    rows = [_Row(index, tokenizer, read, config) for index in range(config.samples)]
    ids = [tokenizer.border_id, *read.ids.tolist()]
    if config.beam:
        return _pieces(rows, _searched(model, ids, tokenizer.border_id, config), tokenizer.border_id)
    chunks = decode(
        model,
        prompt_ids(model, ids, config.samples),
        length=config.length,
        seed=config.seed,
        filters=Filters(**config.model_dump(include=set(Filters.__dataclass_fields__))),
        stop=EndSymbol(tokenizer.border_id),
        precision=config.precision,
        engine=config.engine,
    )
    return _pieces(rows, (step for chunk in chunks for step in chunk.tokens.tolist()), tokenizer.border_id)


def _searched(model: Steppable, prompt: list[int], border: int, config: GenerationConfig) -> Iterator[list[int]]:
    """The tokens of each step of the likeliest texts."""
    found = beam_search(
        model,
        prompt,
        length=config.length,
        width=config.beam,
        n_best=config.samples,
        stop=EndSymbol(border),
    )
    yield from found.tokens[:, 0].tolist()  # (T, N)


def write_texts(model: Steppable, tokenizer: Tokenizer, prompt: Prompt | str, config: GenerationConfig) -> list[Text]:
    """The whole texts of `stream_text`, one for each sample; errors are the same."""
    written = ["" for _ in range(config.samples)]
    finished: dict[int, Text] = {}
    for piece in stream_text(model, tokenizer, prompt, config):
        written[piece.sample] += piece.text
        if piece.ended is not None:
            finished[piece.sample] = Text(written[piece.sample], piece.tokens, piece.ended)
    return [finished[index] for index in range(config.samples)]


def _pieces(rows: list[_Row], steps: Iterator[list[int]], border: int) -> Iterator[Piece]:
    for tokens in steps:
        for row, token in zip(rows, tokens, strict=True):
            if row.ended is None:
                yield row.end("end") if token == border else row.feed(token)
        if all(row.ended is not None for row in rows):
            return
    for row in rows:
        if row.ended is None:
            yield row.end("length")


class _Row:
    """One text on its way: what is certain of it, and how it ended."""

    def __init__(self, index: int, tokenizer: Tokenizer, prompt: Prompt, config: GenerationConfig) -> None:
        self.ended: Ended | None = None
        self._index = index
        self._decoder = StreamDecoder(tokenizer)
        # Words and the like need to know what stands before them: whether a space comes between.
        _fed(self._decoder, prompt)
        self._stops = StopStrings(config.stop)
        self._tokens = 0

    def feed(self, token: int) -> Piece:
        self._tokens += 1
        text = self._stops.feed(self._decoder.feed(token))
        if self._stops.found:
            self.ended = "stop"
        return Piece(self._index, text, self._tokens, self.ended)

    def end(self, ended: Ended) -> Piece:
        """The last piece: what the decoder and the stop strings still held back."""
        text = self._stops.feed(self._decoder.flush())
        self.ended = "stop" if self._stops.found else ended
        return Piece(self._index, text + self._stops.flush(), self._tokens + (ended == "end"), self.ended)


def _fed(decoder: StreamDecoder, prompt: Prompt) -> str:
    return "".join(decoder.feed(index) for index in prompt.ids.tolist())
