"""Text to ids and back, fast, for each kind of vocabulary.

Each codec computes what its Hugging Face tokenizer (`throughtime.data.vocabularies`) would, which tests hold; for
bytes, characters and words in numpy or plain Python, some ten to a thousand times as fast.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from throughtime.data.pieces import Cut, after_space, anywhere, before_space, short_pieces
from throughtime.data.vocabularies import (
    ANY_CHARACTER,
    BORDER,
    END_OF_LINE,
    UNKNOWN_CHARACTER,
    UNKNOWN_WORD,
    WHITE_SPACE,
    byte_signs,
    split_words,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Model

Ids = npt.NDArray[np.integer[Any]]

_BORDERS = (BORDER, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "[SEP]")
_BPE_PIECE = 1 << 12


class Reader(ABC):
    """Ids to text one by one; what is not yet a whole character is kept back."""

    @abstractmethod
    def feed(self, token: int) -> str:
        """The text that this id completes."""

    def flush(self) -> str:
        """What is still kept back."""
        return ""


class Codec(ABC):
    """One kind of vocabulary; `model` is the same as a Hugging Face tokenizer."""

    kind: ClassVar[str]
    cut: Cut | None = None
    """Where a text may be cut; None: only whole documents can be encoded."""

    def __init__(self, model: Model) -> None:
        model.no_padding()
        model.no_truncation()
        # A text that spells out "<|border|>" is text.
        model.encode_special_tokens = True
        self.model = model
        self.border_id = _border_id(model)
        self.vocabulary = model.get_vocab(with_added_tokens=True)
        self.names = {index: token for token, index in self.vocabulary.items()}
        self.vocabulary_size = max(self.names) + 1
        self.dtype: type[np.unsignedinteger[Any]] = np.uint16 if self.vocabulary_size <= 1 << 16 else np.uint32
        added = model.get_added_tokens_decoder()
        self.specials = frozenset(index for index, token in added.items() if token.special)

    @property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary lacks; None where nothing is lacking."""
        return None

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of a text, as `dtype`."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids; borders and other special ids are left out."""

    @abstractmethod
    def reader(self) -> Reader:
        """Decodes one id after the other."""

    def unknown(self, text: str) -> tuple[str, ...]:
        """The parts of a text that the vocabulary lacks, each once, in their order."""
        return ()

    def plain(self, ids: Sequence[int] | Ids) -> list[int]:
        """The ids without borders and other special ones."""
        return [index for index in np.asarray(ids, np.int64).tolist() if index not in self.specials]


class _ByteLevel(Codec):
    """Every id stands for bytes."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        value = {sign: byte for byte, sign in enumerate(byte_signs())}
        self.spelling = [b""] * self.vocabulary_size
        for index, name in self.names.items():
            if index not in self.specials:
                self.spelling[index] = bytes(value[sign] for sign in name)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return b"".join(self.spelling[index] for index in self.plain(ids)).decode("utf-8", "replace")

    def reader(self) -> Reader:
        return _ByteReader(self.spelling)


class _Bytes(_ByteLevel):
    """The bytes of UTF-8."""

    kind = "bytes"
    cut = staticmethod(anywhere)

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(self.dtype)


class _BPE(_ByteLevel):
    """Byte-level byte pairs, with GPT-2's pattern between words."""

    kind = "bpe"
    cut = staticmethod(before_space)

    def encode(self, text: str) -> Ids:
        # Many short pieces are encoded on all cores, and faster on each of them.
        encodings = self.model.encode_batch_fast(short_pieces(text, _BPE_PIECE), add_special_tokens=False)
        return np.concatenate([np.array(encoding.ids, self.dtype) for encoding in encodings])


class _Characters(Codec):
    """Unicode characters."""

    kind = "chars"
    cut = staticmethod(anywhere)

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        unknown = self.vocabulary[UNKNOWN_CHARACTER]
        self._index = np.full(0x110000, unknown, self.dtype)
        for index, name in self.names.items():
            if index not in self.specials:
                self._index[ord(name)] = index

    @property
    def unknown_id(self) -> int | None:
        return self.vocabulary[UNKNOWN_CHARACTER]

    def encode(self, text: str) -> Ids:
        encoded: Ids = self._index[np.frombuffer(text.encode("utf-32-le"), "<u4")]
        return encoded

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return "".join(self.names[index] for index in self.plain(ids))

    def reader(self) -> Reader:
        return _NameReader(self)

    def unknown(self, text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(character for character in text if character not in self.vocabulary))


class _Words(Codec):
    """Words between white space; a line end is the word <eos>."""

    kind = "words"
    cut = staticmethod(after_space)

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._index = _WithDefault(model.get_vocab(with_added_tokens=False))
        self._index.default = self._index[UNKNOWN_WORD]

    @property
    def unknown_id(self) -> int | None:
        return self._index.default

    def encode(self, text: str) -> Ids:
        words = split_words(text)
        return np.fromiter(map(self._index.__getitem__, words), self.dtype, len(words))

    def decode(self, ids: Sequence[int] | Ids) -> str:
        reader = self.reader()
        return "".join(reader.feed(index) for index in self.plain(ids))

    def reader(self) -> Reader:
        return _WordReader(self)

    def unknown(self, text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for word in split_words(text) if word not in self._index))


class _Foreign(Codec):
    """Any other tokenizer.json. Where it may cut a text is not known: each document is encoded as a whole."""

    kind = "file"

    @property
    def unknown_id(self) -> int | None:
        state = json.loads(self.model.to_str())["model"]
        name = state.get("unk_token") or state.get("unk_id")
        return name if isinstance(name, int) else self.vocabulary.get(name)

    def encode(self, text: str) -> Ids:
        return np.array(self.model.encode(text, add_special_tokens=False).ids, self.dtype)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return self.model.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=True)

    def reader(self) -> Reader:
        return _ForeignReader(self)

    def unknown(self, text: str) -> tuple[str, ...]:
        encoding = self.model.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return tuple(dict.fromkeys(text[start:stop] for index, (start, stop) in pairs if index == self.unknown_id))


class _WithDefault(dict[str, int]):
    default: int = 0

    def __missing__(self, word: str) -> int:
        return self.default


class _ByteReader(Reader):
    def __init__(self, spelling: list[bytes]) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._spelling[token])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _NameReader(Reader):
    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def feed(self, token: int) -> str:
        return "" if token in self._codec.specials else self._codec.names[token]


class _WordReader(Reader):
    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._space = ""

    def feed(self, token: int) -> str:
        if token in self._codec.specials:
            return ""
        if (word := self._codec.names[token]) == END_OF_LINE:
            self._space = ""
            return "\n"
        text = self._space + word
        self._space = " "
        return text


class _ForeignReader(Reader):
    def __init__(self, codec: Codec) -> None:
        from tokenizers.decoders import DecodeStream

        self._codec = codec
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._told = ""

    def feed(self, token: int) -> str:
        self._ids.append(token)
        text = self._stream.step(self._codec.model, token) or ""
        self._told += text
        return text

    def flush(self) -> str:
        return self._codec.decode(self._ids).removeprefix(self._told)


def codec_of(model: Model) -> Codec:
    """The codec of a Hugging Face tokenizer: its kind shows in its parts.

    A vocabulary made elsewhere gets a border id: its own end-of-text token where it has one, or a new one.
    """
    state = json.loads(model.to_str())
    _border_id(model)
    for codec, fits in _KINDS:
        if fits(state):
            return codec(model)
    return _Foreign(model)


def _border_id(model: Model) -> int:
    specials = {token.content: index for index, token in model.get_added_tokens_decoder().items() if token.special}
    if not specials.keys() & set(_BORDERS):
        model.add_special_tokens([BORDER])
        return model.token_to_id(BORDER) or 0
    return next(specials[name] for name in _BORDERS if name in specials)


def _is_byte_level(state: dict[str, Any], *, pattern: bool) -> bool:
    parts = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": pattern}
    before = state["pre_tokenizer"] or {}
    after = state["decoder"] or {}
    return (
        state["model"]["type"] == "BPE"
        and parts.items() <= before.items()
        and after.get("type") == "ByteLevel"
        and state["normalizer"] is None
        and all(token["special"] for token in state["added_tokens"])
        and set(byte_signs()) <= state["model"]["vocab"].keys()
    )


def _is_bytes(state: dict[str, Any]) -> bool:
    ordered = {sign: byte for byte, sign in enumerate(byte_signs())}
    return _is_byte_level(state, pattern=False) and state["model"]["vocab"] == ordered


def _is_bpe(state: dict[str, Any]) -> bool:
    return _is_byte_level(state, pattern=True)


def _is_characters(state: dict[str, Any]) -> bool:
    split = {"type": "Split", "pattern": {"Regex": ANY_CHARACTER}, "behavior": "Isolated"}
    before = state["pre_tokenizer"] or {}
    return state["model"].get("unk_token") == UNKNOWN_CHARACTER and split.items() <= before.items()


def _is_words(state: dict[str, Any]) -> bool:
    split = {"type": "Split", "pattern": {"Regex": WHITE_SPACE}, "behavior": "Removed"}
    before = state["pre_tokenizer"] or {}
    return state["model"].get("unk_token") == UNKNOWN_WORD and split.items() <= before.items()


_KINDS: tuple[tuple[type[Codec], Callable[[dict[str, Any]], bool]], ...] = (
    (_Bytes, _is_bytes),
    (_BPE, _is_bpe),
    (_Characters, _is_characters),
    (_Words, _is_words),
)
