"""Vocabularies found in a text, each as a Hugging Face tokenizer that other programs read too.

kind    model of the file                                   ids
bytes   BPE without merges over the 256 byte-level signs    the byte's value; border 256
chars   WordLevel over single characters                    by code point; then U+FFFD (unknown), border
words   WordLevel between white space, line end = <eos>     by falling count; then border
bpe     byte-level BPE with GPT-2's pattern                 border 0, bytes, merges in their order
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from throughtime.data.pieces import after_space, short_pieces, whole_pieces
from throughtime.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Model

    from throughtime.data.sources import Source

BORDER = "<|border|>"
"""Opens every document and closes the stream."""
UNKNOWN_CHARACTER = "\ufffd"
UNKNOWN_WORD = "<unk>"
END_OF_LINE = "<eos>"

# What str.split() takes for white space: the pattern's \s lacks the four separators.
WHITE_SPACE = "[\\s\x1c-\x1f]+"
ANY_CHARACTER = "[\\s\\S]"

DEFAULT_BPE_SIZE = 8192
BPE_SAMPLE = 1 << 28
"""BPE is trained on at most this much text (bytes), spread evenly over all of it."""
WORD_LIMIT = 1 << 22
"""When more distinct words than this are counted, the rarest are forgotten, to keep memory bounded."""
_PIECE = 1 << 14


def byte_signs() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte, by its value (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def bytes_model() -> Model:
    """Every byte for itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model = Tokenizer(models.BPE({sign: byte for byte, sign in enumerate(byte_signs())}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([BORDER])
    return model


def characters_model(source: Source, vocabulary_size: int | None) -> Model:
    """The characters of a text; with a limit, the most frequent ones.

    Raises:
        DataError: the limit leaves no room for a character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    _check_limit("chars", vocabulary_size, least=3)
    counts = np.zeros(0x110000, np.int64)
    for document in source.documents():
        for chunk in document.chunks():
            found = np.bincount(np.frombuffer(chunk.encode("utf-32-le"), "<u4"))
            counts[: len(found)] += found
    counts[ord(UNKNOWN_CHARACTER)] = 0
    frequent = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    kept = sorted(frequent[: None if vocabulary_size is None else vocabulary_size - 2].tolist())
    vocabulary = {chr(point): index for index, point in enumerate(kept)}
    vocabulary[UNKNOWN_CHARACTER] = len(vocabulary)
    model = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_CHARACTER))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
    model.decoder = decoders.Fuse()
    model.add_special_tokens([BORDER])
    return model


def words_model(source: Source, vocabulary_size: int | None) -> Model:
    """The words between white space, <eos> for each line end, <unk> for what is not among the most frequent.

    Raises:
        DataError: the limit leaves no room for a word.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    _check_limit("words", vocabulary_size, least=4)
    counts = _count_words(source)
    # A word spelt like the border is not the border.
    counts.pop(BORDER, None)
    specials = {word: counts.pop(word, 0) for word in (END_OF_LINE, UNKNOWN_WORD)}
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = ranked[: None if vocabulary_size is None else vocabulary_size - 3]
    order = sorted([*kept, *specials.items()], key=lambda item: (-item[1], item[0]))
    model = Tokenizer(models.WordLevel({word: index for index, (word, _) in enumerate(order)}, unk_token=UNKNOWN_WORD))
    model.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
    model.pre_tokenizer = pre_tokenizers.Split(Regex(WHITE_SPACE), "removed")
    # A space before each word but the first; "\n" never begins a word, so that no word counts as a continuation.
    spaced = decoders.WordPiece("\n", cleanup=False)
    line_ends = decoders.Replace(Regex(f"^ ?{END_OF_LINE}$"), "\n")
    model.decoder = decoders.Sequence([spaced, line_ends, decoders.Fuse(), decoders.Replace("\n ", "\n")])
    model.add_special_tokens([BORDER])
    return model


def bpe_model(source: Source, vocabulary_size: int | None) -> Model:
    """Byte-level byte pair encoding (Sennrich et al. 2016; Radford et al. 2019), 8,192 ids unless said otherwise.

    Raises:
        DataError: the limit is below the 256 bytes and the border.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    _check_limit("bpe", vocabulary_size, least=257)
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size or DEFAULT_BPE_SIZE,
        special_tokens=[BORDER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(_sample(source), trainer)
    return model


def split_words(text: str) -> list[str]:
    """The words between white space, a line end being the word <eos>."""
    return text.replace("\n", f" {END_OF_LINE} ").split()


def _count_words(source: Source) -> Counter[str]:
    counts: Counter[str] = Counter()
    rare = 0
    for document in source.documents():
        for text in whole_pieces(document.chunks(), after_space):
            counts.update(split_words(text))
            if len(counts) > WORD_LIMIT:
                rare += 1
                counts = Counter({word: count for word, count in counts.items() if count > rare})
    return counts


def _sample(source: Source) -> Iterator[str]:
    share = min(1.0, BPE_SAMPLE / max(source.size, 1))
    due = 0.0
    for document in source.documents():
        for chunk in document.chunks():
            due += share
            if due >= 1.0:
                due -= 1.0
                # The trainer gathers 256 pieces at a time before it counts: short ones keep that small.
                yield from short_pieces(chunk, _PIECE)


def _check_limit(kind: str, vocabulary_size: int | None, *, least: int) -> None:
    if vocabulary_size is not None and vocabulary_size < least:
        raise DataError(
            f"tokenizer {kind}: vocabulary_size must be at least {least}, got {vocabulary_size}; "
            "raise it or leave it out"
        )
