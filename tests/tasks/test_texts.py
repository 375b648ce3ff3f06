"""The text of a configuration: who reads it, what is kept, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from throughtime.data.config import DataConfig
from throughtime.data.tokenizers import Tokenizer
from throughtime.errors import ConfigError, DataError
from throughtime.tasks import language
from throughtime.tasks.texts import absolute, prepare_texts

ALONE: Any = SimpleNamespace(world_size=1, on_main=lambda action: action())
OTHER: Any = SimpleNamespace(world_size=2, on_main=lambda action: None)
TEXT = "".join(f"line {number} of a text with some words\n" for number in range(200))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe"])
def test_other_processes_open_what_the_main_one_prepared(
    kind: str, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(paths=[str(text)], tokenizer=kind, vocabulary_size=300)
    first = prepare_texts(data, ALONE)

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a vocabulary was looked for again")

    monkeypatch.setattr(Tokenizer, "train", never)
    other, again = prepare_texts(data, OTHER), prepare_texts(data, ALONE)
    for texts in (other, again):
        assert texts.tokenizer.digest == first.tokenizer.digest
        assert texts.train.folder == first.train.folder
        assert texts.valid.folder == first.valid.folder


def test_standard_input_is_for_one_process() -> None:
    with pytest.raises(DataError, match="standard input can be read by one process only"):
        prepare_texts(DataConfig(paths=["-"]), OTHER)


def test_a_held_out_file_is_not_trained_on(text: Path) -> None:
    spelt = text.parent / "." / text.name
    with pytest.raises(DataError, match=re.escape(f"{text} is both trained on and held out; take it out of --data")):
        prepare_texts(DataConfig(paths=[str(text.parent)], valid=[str(spelt)]), ALONE)


def test_a_configuration_finds_its_text_from_every_folder(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    data = absolute(DataConfig(paths=[text.name, "-", "stdlib:", "*.txt"], tokenizer="words", valid=["v"]))
    assert data.paths == [str(text), "-", "stdlib:", str(text.parent / "*.txt")]
    assert data.valid == [str(text.parent / "v")]
    assert data.tokenizer == "words"
    assert absolute(DataConfig(tokenizer="tokenizer.json")).tokenizer == str(text.parent / "tokenizer.json")


@pytest.mark.parametrize("change", ["data.tokenizer=chars", "data.vocabulary_size=77"])
def test_a_run_keeps_its_vocabulary(train: Any, change: str) -> None:
    run = train()
    key = change.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: the run in .* has .*; a run keeps its vocabulary"):
        language.train([], run, overrides=[change], resume=True)
