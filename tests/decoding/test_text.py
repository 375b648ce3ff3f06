"""Text from tokens: prompts, whole characters, stop strings, several samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.data import TextSource, TextsSource, Tokenizer
from throughtime.decoding import GenerationConfig, Piece, prompt_text, stream_text, write_texts
from throughtime.errors import PromptError

BYTES = Tokenizer.train("bytes")


class Reciting:
    """Recites one text per row, then ends it; rows differ by what the draws of the first token choose."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.vocabulary_size = tokenizer.vocabulary_size
        self.ids = [*tokenizer.encode(text).tolist(), tokenizer.border_id]
        self.prompt: list[int] = []

    def initial_state(self, batch_size: int) -> int:
        return -1

    def read(self, tokens: Tensor, state: int) -> tuple[Tensor, int]:
        self.prompt = tokens[:, 0].tolist()
        return self._logits(0, tokens.shape[1]), 0

    def step(self, tokens: Tensor, state: int) -> tuple[Tensor, int]:
        return self._logits(state + 1, len(tokens)), state + 1

    def _logits(self, position: int, rows: int) -> Tensor:
        logits = torch.zeros(rows, self.vocabulary_size)
        logits[:, self.ids[position]] = 100.0
        return logits


def recite(text: str, prompt: str = "", **settings: Any) -> list[Piece]:
    config = GenerationConfig(temperature=0, **{"length": 1000, **settings})
    return list(stream_text(Reciting(BYTES, text), BYTES, prompt, config))


@given(st.text(max_size=20))
def test_pieces_are_whole_characters_and_sum_to_the_text(text: str) -> None:
    pieces = recite(text)
    assert "".join(piece.text for piece in pieces) == text
    assert all(len(piece.text) <= 1 for piece in pieces)
    assert pieces[-1].ended == "end"
    assert pieces[-1].tokens == len(text.encode()) + 1


def test_half_a_character_at_the_end_is_shown_as_such_and_only_then() -> None:
    pieces = recite("aé", length=2)
    assert [piece.text for piece in pieces] == ["a", "", "\ufffd"]
    assert pieces[-1] == Piece(0, "\ufffd", 2, "length")


@given(st.text("abé", max_size=12), st.lists(st.text("abé", min_size=1, max_size=3), max_size=2))
def test_stop_strings_over_token_borders(text: str, stops: list[str]) -> None:
    pieces = recite(text, stop=stops)
    written = "".join(piece.text for piece in pieces)
    ends = [(end, end - len(s)) for s in stops for end in range(len(text) + 1) if text[:end].endswith(s)]
    assert written == (text[: min(ends)[1]] if ends else text)
    assert pieces[-1].ended == ("stop" if ends else "end")


def test_a_stop_string_saves_the_steps_after_it() -> None:
    model = Reciting(BYTES, "one\n\ntwo")
    pieces = list(stream_text(model, BYTES, "", GenerationConfig(temperature=0, stop=["\n\n"])))
    assert "".join(piece.text for piece in pieces) == "one"
    assert pieces[-1] == Piece(0, "", 5, "stop")


def test_a_border_opens_the_prompt() -> None:
    model = Reciting(BYTES, "x")
    list(stream_text(model, BYTES, "hé", GenerationConfig(length=1)))
    assert model.prompt == [BYTES.border_id, *"hé".encode()]


def test_samples_end_each_by_itself() -> None:
    torch.manual_seed(0)
    model = tt.models.LanguageModel(vocabulary_size=257, hidden_size=8, embedding_size=4, border_id=BYTES.border_id)
    config = GenerationConfig(length=40, samples=4, seed=3, stop=["a", "e", "q", "7", "0"])
    texts = write_texts(model, BYTES, "in", config)
    alone = write_texts(model, BYTES, "in", config.model_copy(update={"samples": 1}))
    assert len(texts) == 4
    assert texts[0] == alone[0]
    assert len({text.text for text in texts}) == 4
    assert not any(stop in text.text for text in texts for stop in config.stop)
    assert {text.ended for text in texts} <= {"stop", "length", "end"}
    assert texts == write_texts(model, BYTES, "in", config)


def test_words_know_what_stands_before_them(tmp_path: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat\nthe cat sat\n")
    words = Tokenizer.train("words", TextSource([path]))
    prompt = words.check_prompt("the dog")
    assert prompt.unknown == ("dog",)
    model = Reciting(words, "sat on\nthe mat")
    text = write_texts(model, words, prompt, GenerationConfig(temperature=0))[0].text
    assert (prompt_text(words, prompt) + text).startswith("the <unk> sat on\nthe mat")


def test_characters_never_seen_are_an_error(tmp_path: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcabc\n")
    characters = Tokenizer.train("chars", TextSource([path]))
    with pytest.raises(PromptError, match=r"prompt: the model has never seen 'z'"):
        stream_text(Reciting(characters, "a"), characters, "az", GenerationConfig())


def test_the_likeliest_texts_by_beam_search() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train("chars", TextsSource(["abc"], "letters"))
    model = tt.models.LanguageModel(
        vocabulary_size=tokenizer.vocabulary_size, hidden_size=8, embedding_size=4, border_id=tokenizer.border_id
    )
    texts = write_texts(model, tokenizer, "ab", GenerationConfig(beam=50, samples=3, length=3))
    prompt = [tokenizer.border_id, *tokenizer.encode("ab").tolist()]
    found = tt.decoding.beam_search(
        model, prompt, length=3, width=50, n_best=3, stop=tt.decoding.EndSymbol(tokenizer.border_id)
    )
    expected = [tokenizer.decode(found.tokens[: found.lengths[0, n], 0, n].tolist()) for n in range(3)]
    assert [text.text for text in texts] == expected
    assert len(set(expected)) == 3


def test_a_search_draws_nothing() -> None:
    with pytest.raises(ValueError, match="a beam search draws nothing, so temperature and top_k must be left out; or"):
        GenerationConfig(beam=3, temperature=0.5, top_k=4)
