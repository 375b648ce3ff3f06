"""Tokenizers: text to ids and back, with one id that marks the borders of documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from throughtime.data.codecs import Codec, Ids, codec_of
from throughtime.data.pieces import whole_pieces
from throughtime.data.vocabularies import bpe_model, bytes_model, characters_model, words_model
from throughtime.errors import DataError, PromptError
from throughtime.storage import write_file

if TYPE_CHECKING:
    from throughtime.data.sources import Source

KINDS = ("bytes", "chars", "words", "bpe", "file")
_TRAINERS = {"chars": characters_model, "words": words_model, "bpe": bpe_model}
_SHOWN = 8


class Prompt(NamedTuple):
    """A prompt as ids (int64), and the parts of it that became the unknown id."""

    ids: npt.NDArray[np.int64]
    unknown: tuple[str, ...]


class Tokenizer:
    """A vocabulary with its border id; one tokenizer.json that `tokenizers.Tokenizer.from_file` reads as well.

    The kind is seen from the file itself: "bytes" (UTF-8, 256 ids and the border), "chars", "words" (between white
    space; a line end is <eos>), "bpe" (byte-level), or "file" for any other vocabulary.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @classmethod
    def train(
        cls,
        kind: str,
        source: Source | None = None,
        *,
        vocabulary_size: int | None = None,
        path: str | Path | None = None,
    ) -> Tokenizer:
        """The vocabulary of a text; of kind "file" the one at `path`.

        `vocabulary_size` counts all ids, the border and the unknown one among them; without it characters and words
        are all kept, and BPE has 8,192 ids. Memory is bounded: BPE is trained on at most 256 MiB of the text, spread
        evenly over it, and beyond four million distinct words the rarest are forgotten while counting.

        Raises:
            DataError: the kind is unknown, or the size or the path does not fit it.
        """
        if kind == "file":
            if path is None:
                raise DataError("tokenizer file: no path given; name a tokenizer.json")
            return cls.load(path)
        if kind == "bytes":
            if vocabulary_size not in (None, 257):
                raise DataError(f"tokenizer bytes: has 257 ids, got vocabulary_size {vocabulary_size}; leave it out")
            return cls(codec_of(bytes_model()))
        if kind not in _TRAINERS:
            raise DataError(f"tokenizer: no kind {kind!r}; choose one of {', '.join(KINDS)}")
        if source is None:
            raise DataError(f"tokenizer {kind}: no text given to find its vocabulary in; give a source")
        return cls(codec_of(_TRAINERS[kind](source, vocabulary_size)))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a tokenizer.json, ours or any other.

        Raises:
            DataError: the file is missing or is no tokenizer.json.
        """
        from tokenizers import Tokenizer as Model

        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read: {reason}; name a tokenizer.json") from None
        try:
            model = Model.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise DataError(
                f"{path}: not a tokenizer.json of Hugging Face tokenizers ({error}); write it with its save()"
            ) from None
        return cls(codec_of(model))

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json.

        Raises:
            StorageError: the disk is full or read-only.
        """
        write_file(path, self.to_json())

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self.codec.model.to_str(pretty=True) + "\n"

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.codec.kind

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, the border included."""
        return self.codec.vocabulary_size

    @property
    def border_id(self) -> int:
        """The id that opens every document and closes a stream."""
        return self.codec.border_id

    @property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary lacks; None where it lacks nothing (bytes, BPE)."""
        return self.codec.unknown_id

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type that holds every id: uint16 or uint32."""
        return self.codec.dtype

    @property
    def digest(self) -> str:
        """A digest of the vocabulary and its rules."""
        return hashlib.blake2b(self.codec.model.to_str().encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The ids of a text, without borders."""
        return self.codec.encode(text).astype(np.int64)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[Ids]:
        """The ids of one document given in chunks, as arrays of `dtype`: those of the whole text.

        What could belong to a token that the next chunk completes is carried over (`throughtime.data.pieces`); only
        a run of more than a million characters without white space is cut by "words" and "bpe" where a chunk
        ends. A vocabulary of kind "file" has the whole document in memory.
        """
        cut = self.codec.cut
        pieces = whole_pieces(chunks, cut) if cut else ("".join(chunks),)
        return (self.codec.encode(piece) for piece in pieces)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids. Borders are left out; bytes that are not UTF-8 become U+FFFD; <eos> is a line end."""
        return self.codec.decode(ids)

    def token(self, index: int) -> str:
        """One id, for display on one line: control characters, and bytes that are no character, are escaped."""
        name = self.codec.names[index]
        if index in self.codec.specials:
            return name
        spelling = getattr(self.codec, "spelling", None)
        text = name if spelling is None else spelling[index].decode("utf-8", "backslashreplace")
        return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)

    def check_prompt(self, text: str) -> Prompt:
        """The ids of a prompt; words that the vocabulary lacks become <unk> and are told.

        Raises:
            PromptError: the model has never seen some of its characters (kind "chars"), or it is not UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"prompt: not UTF-8 at character {error.start + 1}; give it in UTF-8 (see `locale`)"
            ) from None
        unknown = self.codec.unknown(text)
        if unknown and self.kind == "chars":
            shown = ", ".join(f"{sign!r} (U+{ord(sign):04X})" for sign in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise PromptError(
                f"prompt: the model has never seen {shown}{more}; leave them out, "
                "or train with data.tokenizer=bytes, which reads every text"
            )
        return Prompt(self.encode(text), unknown)
