"""Tokenizers: round trips, chunks that change nothing, agreement with Hugging Face's own reading of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import KINDS, Document, StreamDecoder, TextSource, Tokenizer, pieces, vocabularies
from throughtime.errors import DataError, PromptError, StorageError

SAMPLE = "the cat sat on the mat ,\nthe hat  of the cat\n\n\tdef f(x):\n        return 'é😀' + \"don't\"\n"
OWN = [kind for kind in KINDS if kind != "file"]


class Texts:
    """Documents in memory."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    @property
    def size(self) -> int:
        return sum(len(text.encode()) for text in self._texts)

    def documents(self) -> Iterator[Document]:
        return (Document(str(index), lambda text=text: iter([text])) for index, text in enumerate(self._texts))

    def fingerprint(self) -> str:
        return repr(self._texts)


@cache
def trained(kind: str) -> Tokenizer:
    return Tokenizer.train(kind, Texts(SAMPLE), vocabulary_size=300 if kind == "bpe" else None)


def foreign(folder: Path, *, border: str | None = None) -> Path:
    """A tokenizer of a kind that is not ours."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.enable_padding(length=50)
    model.enable_truncation(max_length=2)
    if border:
        model.add_special_tokens([border])
    model.save(str(folder / "foreign.json"))
    return folder / "foreign.json"


def test_sizes_and_special_ids() -> None:
    tokenizer = trained("bytes")
    assert (tokenizer.vocabulary_size, tokenizer.border_id, tokenizer.unknown_id) == (257, 256, None)
    tokenizer = Tokenizer.train("chars", Texts("banana"))
    assert (tokenizer.vocabulary_size, tokenizer.border_id, tokenizer.unknown_id) == (5, 4, 3)
    assert tokenizer.encode("banana!").tolist() == [1, 0, 2, 0, 2, 0, 3]
    tokenizer = Tokenizer.train("words", Texts("b a b\nc b a\n"))
    assert (tokenizer.vocabulary_size, tokenizer.border_id, tokenizer.unknown_id) == (6, 5, 4)
    assert tokenizer.encode("b a\nc d").tolist() == [0, 2, 1, 3, 4]
    tokenizer = trained("bpe")
    assert (tokenizer.vocabulary_size, tokenizer.border_id, tokenizer.unknown_id) == (300, 0, None)


def test_limits_keep_the_most_frequent() -> None:
    tokenizer = Tokenizer.train("chars", Texts("aaabbc"), vocabulary_size=4)
    assert tokenizer.decode(tokenizer.encode("abc")) == "ab�"
    tokenizer = Tokenizer.train("words", Texts("a a a b b c"), vocabulary_size=5)
    assert tokenizer.vocabulary_size == 5
    assert tokenizer.decode(tokenizer.encode("a b c")) == "a b <unk>"


def test_ids_are_as_narrow_as_they_can_be() -> None:
    assert trained("bytes").dtype is np.uint16
    many = " ".join(f"w{number}" for number in range(70_000))
    assert Tokenizer.train("words", Texts(many)).dtype is np.uint32


@given(text=st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = trained("bytes")
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text())
def test_bpe_round_trip(text: str) -> None:
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text())
def test_characters_round_trip(text: str) -> None:
    tokenizer = Tokenizer.train("chars", Texts(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(alphabet="ab \n\t\r\x1c\x85 "))
def test_words_round_trip_up_to_white_space(text: str) -> None:
    tokenizer = Tokenizer.train("words", Texts(text))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert tokenizer.decode(tokenizer.encode(text)) == "\n".join(lines)


MIXED = st.lists(
    st.sampled_from(["the", " ", "\n", "  ", "cat", "'s", "é", "😀", "\t", "\x1c", " ", "12", ",", "\r\n"])
)


@pytest.mark.parametrize("kind", OWN)
@given(parts=MIXED, extra=st.text(), cuts=st.lists(st.integers(0, 60)))
def test_chunks_change_nothing(kind: str, parts: list[str], extra: str, cuts: list[int]) -> None:
    tokenizer = trained(kind)
    text = "".join(parts) + extra
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:stop] for start, stop in pairwise(edges)]
    ids = [index for array in tokenizer.encode_chunks(chunks) for index in array.tolist()]
    assert ids == tokenizer.encode(text).tolist()


@given(parts=MIXED, length=st.integers(1, 5))
def test_bpe_cuts_where_the_pattern_cuts(parts: list[str], length: int) -> None:
    text = "".join(parts)
    whole = trained("bpe").codec.model.encode(text).ids
    shorts = pieces.short_pieces(text, length)
    assert "".join(shorts) == text
    assert [index for piece in shorts for index in trained("bpe").codec.model.encode(piece).ids] == whole


@pytest.mark.parametrize("kind", OWN)
@given(parts=MIXED)
def test_hugging_face_reads_the_same(kind: str, parts: list[str]) -> None:
    tokenizer = trained(kind)
    model = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    text = "".join(parts)
    ids = model.encode(text).ids
    assert tokenizer.encode(text).tolist() == ids
    assert tokenizer.decode([*ids, tokenizer.border_id]) == model.decode(ids)


@pytest.mark.parametrize("kind", OWN)
@given(data=st.data())
def test_a_stream_of_ids_is_the_decoded_text(kind: str, data: st.DataObject) -> None:
    tokenizer = trained(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1)))
    decoder = StreamDecoder(tokenizer)
    told = [decoder.feed(index) for index in ids]
    assert "".join(told) + decoder.flush() == tokenizer.decode(ids)


def test_a_stream_never_tells_half_a_character() -> None:
    decoder = StreamDecoder(trained("bytes"))
    assert [decoder.feed(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert decoder.feed(0xF0) == ""
    assert decoder.feed(0x41) == "�A"
    assert decoder.feed(0xC3) == ""
    assert decoder.flush() == "�"


@pytest.mark.parametrize("kind", OWN)
def test_save_and_load(tmp_path: Path, kind: str) -> None:
    tokenizer = trained(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.kind == kind
    assert again.digest == tokenizer.digest
    assert (again.border_id, again.unknown_id) == (tokenizer.border_id, tokenizer.unknown_id)
    assert again.encode(SAMPLE).tolist() == tokenizer.encode(SAMPLE).tolist()
    assert Tokenizer.train("file", path=tmp_path / "tokenizer.json").kind == kind


@pytest.mark.parametrize("kind", OWN)
def test_training_again_gives_the_same(kind: str) -> None:
    again = Tokenizer.train(kind, Texts(SAMPLE), vocabulary_size=300 if kind == "bpe" else None)
    assert again.digest == trained(kind).digest


@pytest.mark.parametrize("kind", OWN)
def test_a_border_spelt_out_is_text(kind: str) -> None:
    tokenizer = Tokenizer.train(kind, Texts(SAMPLE + "<|border|>"))
    ids = tokenizer.encode("a <|border|> b")
    assert tokenizer.border_id not in ids.tolist()


def test_a_foreign_tokenizer_gets_a_border(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign(tmp_path))
    assert (tokenizer.kind, tokenizer.border_id, tokenizer.vocabulary_size, tokenizer.unknown_id) == ("file", 3, 4, 2)
    tokenizer.save(tmp_path / "again.json")
    again = Tokenizer.load(tmp_path / "again.json")
    assert (again.border_id, again.digest) == (3, tokenizer.digest)


def test_a_foreign_border_is_found(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign(tmp_path, border="<|endoftext|>"))
    assert (tokenizer.border_id, tokenizer.vocabulary_size) == (3, 4)
    assert tokenizer.token(3) == "<|endoftext|>"


def test_a_foreign_tokenizer_reads_whole_documents(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(foreign(tmp_path))
    assert tokenizer.encode("a b x a").tolist() == [0, 1, 2, 0]
    assert [array.tolist() for array in tokenizer.encode_chunks(["a", " b a"])] == [[0, 1, 0]]
    assert tokenizer.decode([0, 3, 1]) == "a b"
    decoder = StreamDecoder(tokenizer)
    assert "".join(decoder.feed(index) for index in [0, 3, 1, 0]) + decoder.flush() == "a b a"
    prompt = tokenizer.check_prompt("a x y x")
    assert (prompt.ids.tolist(), prompt.unknown) == ([0, 2, 2, 2], ("x", "y"))


def test_gpt2_s_own_form_is_read_as_bpe(tmp_path: Path) -> None:
    model = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    model.train_from_iterator([SAMPLE], vocab_size=280, special_tokens=["<|endoftext|>"], show_progress=False)
    model.save(str(tmp_path / "gpt2.json"))
    tokenizer = Tokenizer.load(tmp_path / "gpt2.json")
    assert (tokenizer.kind, tokenizer.token(tokenizer.border_id)) == ("bpe", "<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE


def test_tokens_for_display() -> None:
    tokenizer = trained("bytes")
    assert [tokenizer.token(index) for index in (97, 10, 32, 0xC3, 256)] == ["a", "\\n", " ", "\\xc3", "<|border|>"]
    tokenizer = trained("chars")
    assert [tokenizer.token(index) for index in tokenizer.encode("é\t")] == ["é", "\\t"]
    tokenizer = trained("words")
    assert [tokenizer.token(index) for index in tokenizer.encode("the\n")] == ["the", "<eos>"]


def test_prompts() -> None:
    assert trained("bytes").check_prompt("é").ids.tolist() == [0xC3, 0xA9]
    assert trained("chars").check_prompt("").ids.dtype == np.int64
    prompt = trained("words").check_prompt("the dog sat dog cow")
    assert prompt.unknown == ("dog", "cow")
    assert prompt.ids[1] == trained("words").unknown_id


def test_a_prompt_the_model_has_never_seen() -> None:
    remedy = "leave them out, or train with data.tokenizer=bytes, which reads every text"
    expected = f"prompt: the model has never seen 'Z' (U+005A), '→' (U+2192); {remedy}"
    with pytest.raises(PromptError, match=f"^{re.escape(expected)}$"):
        trained("chars").check_prompt("aZ→Z")
    with pytest.raises(PromptError, match=r"'H' \(U\+0048\) and 2 more; leave them out"):
        trained("chars").check_prompt("ABCDEFGHIJ")
    with pytest.raises(PromptError, match=r"^prompt: not UTF-8 at character 2; give it in UTF-8 \(see `locale`\)$"):
        trained("bytes").check_prompt("a\udcff")


def test_faults(tmp_path: Path) -> None:
    def fails(expected: str, *arguments: object, **options: object) -> None:
        with pytest.raises(DataError, match=f"^{re.escape(expected)}"):
            Tokenizer.train(*arguments, **options)  # type: ignore[arg-type]

    fails("tokenizer: no kind 'byte'; choose one of bytes, chars, words, bpe, file", "byte", Texts("a"))
    fails("tokenizer bytes: has 257 ids, got vocabulary_size 300; leave it out", "bytes", vocabulary_size=300)
    fails("tokenizer words: no text given to find its vocabulary in; give a source", "words")
    fails("tokenizer file: no path given; name a tokenizer.json", "file")
    for kind, least in (("chars", 3), ("words", 4), ("bpe", 257)):
        expected = f"tokenizer {kind}: vocabulary_size must be at least {least}, got 2; raise it or leave it out"
        fails(expected, kind, Texts("a"), vocabulary_size=2)
    missing, broken = tmp_path / "none.json", tmp_path / "broken.json"
    fails(f"{missing}: cannot be read: No such file or directory; name a tokenizer.json", "file", path=missing)
    broken.write_text("{}")
    fails(f"{broken}: not a tokenizer.json of Hugging Face tokenizers (", "file", path=broken)
    with pytest.raises(StorageError, match=r"^cannot write .*tokenizer.json: File exists"):
        trained("bytes").save(broken / "tokenizer.json")


def test_memory_is_bounded_while_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "WORD_LIMIT", 10)
    texts = [f"often r{number} s{number}" for number in range(100)]
    tokenizer = Tokenizer.train("words", Texts(*texts))
    assert tokenizer.check_prompt("often").unknown == ()
    assert tokenizer.vocabulary_size < 20


def test_bpe_is_trained_on_a_spread_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "BPE_SAMPLE", 250)
    texts = [f"{number:010}" for number in range(100)]
    sample = list(vocabularies._sample(Texts(*texts)))
    assert sample == texts[3::4]


def test_a_run_without_white_space_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "RUN_LIMIT", 8)
    assert list(pieces.whole_pieces(["abcde", "fghij", "klm n"], pieces.after_space)) == ["abcdefghij", "klm ", "n"]


def test_penn_treebank_counts(shared_data: Path) -> None:
    train = TextSource([shared_data / "ptb" / "ptb.train.txt.gz"])
    valid = TextSource([shared_data / "ptb" / "ptb.valid.txt"])
    tokenizer = Tokenizer.train("words", train)
    assert tokenizer.vocabulary_size == 9_999 + 2  # with <eos> and the border
    for source, tokens, lines in ((train, 929_589, 42_068), (valid, 73_760, 3_370)):
        (document,) = source.documents()
        ids = np.concatenate(list(tokenizer.encode_chunks(document.chunks())))
        assert len(ids) == tokens
        assert np.count_nonzero(ids == tokenizer.encode("\n")[0]) == lines
    assert tokenizer.token(tokenizer.unknown_id or 0) == "<unk>"


def test_tinyshakespeare_characters(shared_data: Path) -> None:
    source = TextSource([shared_data / "tinyshakespeare" / "input.txt"])
    assert Tokenizer.train("chars", source).vocabulary_size == 65 + 2  # with the unknown one and the border
