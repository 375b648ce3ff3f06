"""What becomes of the pairs that a run is given: left out, read as unknown, refused; each is told."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from throughtime.errors import DataError
from throughtime.tasks import transduce

KEYS = (
    "model.hidden_size=8", "model.embedding_size=4", "training.batch_size=32", "training.max_steps=2",
    "training.precision=fp32", "training.device=cpu", "generation.max_length=8",
)  # fmt: skip
SOURCES = ["".join(word) for length in (1, 2, 3) for word in itertools.product("abc", repeat=length)]


def write_pairs(path: Path, sources: Iterable[str] = SOURCES) -> Path:
    """Each source with itself backwards, in capitals."""
    path.write_text("".join(f"{source}\t{source[::-1].upper()}\n" for source in sources), "utf-8")
    return path


def train(run: Path, *overrides: str, data: dict[str, Any]) -> list[str]:
    """What a training into `run` tells."""
    told: list[str] = []
    transduce.train(run, data=data, overrides=[*KEYS, *overrides], tell=told.append)
    return told


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of the training loop see drawn costs more than these trainings."""
    monkeypatch.setattr("throughtime.training.loop.draw_curve", lambda *arguments: None)


def test_what_is_left_out_is_counted_and_listed(tmp_path: Path) -> None:
    rows = [{"source": source, "target": source} for source in ("ab", "ba", "é aa\tb", "c", "ccccc")]
    pairs = tmp_path / "train.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    valid = write_pairs(tmp_path / "valid.tsv", ["abcabc", "x"])
    data = {"paths": [str(pairs)], "valid": [str(valid)], "max_length": 3}
    told = train(tmp_path / "run", data=data)
    assert told[0].startswith("3 pairs to train on, 2 held out; ")
    assert told[1] == (
        f"2 pairs to be trained on were left out, the first, {pairs}:3: source of 6 tokens, at "
        f"most 3; all are listed in {tmp_path / 'run' / 'left-out.tsv'}"
    )
    assert told[2:4] == [
        f"1 of 2 sources to be held out (50.0%) hold what is not in the vocabulary, the first, {valid}:2: 'x' (1); "
        "read as unknown",
        f"2 of 2 targets to be held out (100.0%) hold what is not in the vocabulary, the first, {valid}:1: 'C' (1), "
        "'B' (1), 'A' (1), 'X' (1); read as unknown",
    ]
    listed = (tmp_path / "run" / "left-out.tsv").read_text().splitlines()
    assert [line.split("\t")[0::2] for line in listed] == [[f"{pairs}:3", r"é aa\tb"], [f"{pairs}:5", "ccccc"]]


def test_words_dropped_from_a_vocabulary_are_told_of(tmp_path: Path) -> None:
    pairs = tmp_path / "train.tsv"
    rare = "".join(f"often seen\tx\nrare{number} once{number}\ty\n" for number in range(4))
    pairs.write_text(rare)
    words = ("data.source_tokenizer=words", "data.source_vocabulary_size=5")
    data = {"paths": [str(pairs)], "valid": [str(write_pairs(tmp_path / "valid.tsv", ["often"]))]}
    told = train(tmp_path / "run", *words, data=data)
    (line,) = [line for line in told if "to be trained on" in line]
    assert line.startswith(
        f"4 of 8 sources to be trained on (50.0%) hold what is not in the vocabulary, the first, {pairs}:2: "
    )
    assert line.endswith(" more; read as unknown")


@pytest.mark.parametrize(("asked", "told_of"), [(2, True), (3, False), (0, False)])
def test_metrics_of_some_sources_are_said_to_be(tmp_path: Path, asked: int, told_of: bool) -> None:
    valid = tmp_path / "valid.tsv"
    valid.write_text("ab\tBA\nab\tBB\nba\tAB\ncc\tCC\n")
    data = {"paths": [str(write_pairs(tmp_path / "train.tsv"))], "valid": [str(valid)]}
    few = ("training.max_steps=1", f"training.evaluate_sources={asked}")
    told = train(tmp_path / "run", *few, data=data)
    line = (
        "answers are judged of the first 2 of 3 held-out sources (training.evaluate_sources), greedily; the loss is of "
    )
    assert (f"{line}all" in told) == told_of == any("judged" in line for line in told)


def test_pairs_that_are_all_too_long(tmp_path: Path) -> None:
    data = {"paths": [str(write_pairs(tmp_path / "train.tsv", ["abc", "abca"]))], "max_length": 2}
    with pytest.raises(DataError, match=r"all of the 1 pairs were left out, the first, .*; raise data.max_length"):
        train(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_targets_that_a_model_of_predicted_lengths_cannot_write(tmp_path: Path) -> None:
    keys = ("model.stop=predicted_length", "model.max_length=3", "training.max_steps=1")
    pairs = write_pairs(tmp_path / "train.tsv", [*SOURCES, "abca", "abc"])
    short, long = write_pairs(tmp_path / "short.tsv", ["acb"]), write_pairs(tmp_path / "long.tsv", ["a", "abcb"])
    data = {"paths": [str(pairs)], "valid": [str(short)]}
    told = train(tmp_path / "run", *keys, data=data)
    assert told[0].startswith("40 pairs to train on, 1 held out; ")
    assert (tmp_path / "run" / "left-out.tsv").read_text() == f"{pairs}:40\ttarget of 4 tokens, at most 3\tabca\n"
    refused = r"long.tsv:2: target of 4 tokens, expected at most 3, which is all .* \(model.max_length\); train with"
    with pytest.raises(DataError, match=refused):
        train(tmp_path / "other", *keys, data=data | {"valid": [str(long)]})
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match=refused):
        transduce.evaluate(tmp_path / "run", [str(long)])
    all_long = {"paths": [str(write_pairs(tmp_path / "all.tsv", ["abca"]))], "valid": [str(short)]}
    with pytest.raises(DataError, match=r"all of the 1 pairs were left out, .*; raise data.max_length or model.max_le"):
        train(tmp_path / "other", *keys, data=all_long)


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    data = {"paths": [str(write_pairs(tmp_path / "train.tsv"))], "target_tokenizer": "syllables"}
    with pytest.raises(
        DataError, match=r"data.target_tokenizer: expected one of bytes, chars, words, bpe, or the path"
    ):
        train(tmp_path / "run", data=data)


def test_pairs_are_found_from_every_folder(tmp_path: Path) -> None:
    (tmp_path / "source.txt").write_text("".join(f"{source}\n" for source in SOURCES[:20]))
    (tmp_path / "target.txt").write_text("".join(f"{source}\n" for source in SOURCES[:20]))
    train(tmp_path / "run", data={"source": "source.txt", "target": "target.txt"})
    _, _, config = transduce.load(tmp_path / "run")
    assert (config.data.source, config.data.target) == (str(tmp_path / "source.txt"), str(tmp_path / "target.txt"))
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    transduce.train(tmp_path / "run", overrides=["training.max_steps=5"], resume=True, tell=lambda line: None)


def test_what_an_evaluation_left_out_or_read_as_unknown_is_told(tmp_path: Path) -> None:
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2, "?": 3}, unk_token="?"))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    vocabulary.add_special_tokens(["</s>"])
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    pairs, told = tmp_path / "test.tsv", list[str]()
    pairs.write_text("a\tb\nb\ta\na b\tb b\n")
    level = str(tmp_path / "tokenizer.json")
    data = {"paths": [str(pairs)], "source_tokenizer": level, "target_tokenizer": level}
    train(tmp_path / "run", data=data)
    pairs.write_text("a\ta\n</s>\ta\nqq b\tb q\nb\t</s>\nqq\tb\n")
    results = transduce.evaluate(tmp_path / "run", [str(pairs)], tell=told.append)
    assert (results["sources"], results["pairs"], results["left_out"]) == (3, 3, 2)
    assert told == [
        f"{pairs}:2: left out: source spells out </s>, which is the border of its vocabulary",
        f"{pairs}:4: left out: target spells out </s>, which is the border of its vocabulary",
        "2 of 3 sources to be evaluated (66.7%) hold what is not in the vocabulary, the first, "
        f"{pairs}:3: 'qq' (2); read as unknown",
        "1 of 3 targets to be evaluated (33.3%) hold what is not in the vocabulary, the first, "
        f"{pairs}:3: 'q' (1); read as unknown",
    ]
    pairs.write_text("a\t</s>\n")
    all_left_out = f"{pairs}:1: left out: target spells out </s>, .*, and so are all of the 1 pairs; give others"
    with pytest.raises(DataError, match=all_left_out):
        transduce.evaluate(tmp_path / "run", [str(pairs)])
