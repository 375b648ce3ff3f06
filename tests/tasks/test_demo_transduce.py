"""The demonstration of sequence to sequence, in small: its files, its questions, its examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from throughtime.data.pairs import read_pairs
from throughtime.errors import RunFolderError
from throughtime.tasks import demo_transduce
from throughtime.tasks.dates import DatePairs, date_pairs
from throughtime.tasks.transduce import transducer
from throughtime.tasks.transducer import Answer, Answered

pytest.importorskip("babel")


@pytest.fixture(scope="module")
def pairs() -> DatePairs:
    return date_pairs(train=400, held_out=120)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, pairs: DatePairs) -> None:
    """A demonstration of few pairs, six steps and a tiny model."""
    full = demo_transduce.configuration(Path("demo-pairs"), 0.5)
    keys = {
        "max_minutes": 0.0,
        "max_steps": 6,
        "warmup_steps": 2,
        "batch_size": 16,
        "precision": "fp32",
        "device": "cpu",
    }
    tiny = full.model_copy(
        update={
            "training": full.training.model_copy(update=keys),
            "model": full.model.model_copy(update={"hidden_size": 8, "embedding_size": 4}),
        }
    )
    monkeypatch.setattr(demo_transduce, "configuration", lambda folder, minutes: tiny)
    monkeypatch.setattr(demo_transduce, "date_pairs", lambda train, held_out: pairs)
    monkeypatch.setattr(demo_transduce, "_VALID", 20)
    monkeypatch.setattr(demo_transduce, "_ASKED", 100)


def test_the_configuration_reads_the_pairs_and_ends_by_the_clock(tmp_path: Path) -> None:
    config = demo_transduce.configuration(tmp_path, 3.4)
    assert config.data.paths == [str(tmp_path / "train.tsv")]
    assert config.data.valid == [str(tmp_path / "valid.tsv")]
    assert config.training.max_minutes == 3.4
    assert config.training.max_epochs == config.training.max_steps == 0


@pytest.mark.usefixtures("small")
def test_pairs_are_files_that_every_command_reads(tmp_path: Path, pairs: DatePairs) -> None:
    questions = demo_transduce.write_pairs(pairs, tmp_path)
    assert list(questions) == ["days", "forms", "languages"]
    read = {
        path.stem: [(pair.source, pair.target) for pair in read_pairs([path])] for path in sorted(tmp_path.iterdir())
    }
    assert sorted(read) == ["days", "forms", "languages", "train", "valid"]
    assert read["train"] == [pair[:2] for pair in pairs.train]
    assert read["valid"] + read["days"] == [pair[:2] for pair in pairs.days]
    for name, asked in questions.items():
        assert read[name] == [pair[:2] for pair in asked]
        assert len(asked) == 100


@pytest.mark.usefixtures("small")
def test_a_short_demonstration(tmp_path: Path) -> None:
    told: list[str] = []
    shown = demo_transduce.demo(tmp_path / "demo", 0.5, told.append)
    assert shown.outcome.steps == 6
    assert told[0].startswith("400 pairs to train on, 20 held out")
    assert [(question.name, question.asked) for question in shown.questions] == [
        ("days", 100), ("forms", 100), ("languages", 100)
    ]  # fmt: skip
    assert all(0 <= question.exact <= 1 for question in shown.questions)
    assert 0 < shown.new_patterns.asked < 100
    ask = transducer(tmp_path / "demo")
    for name, count in (("days", 10), ("forms", 3), ("languages", 3)):
        examples = [example for example in shown.examples if example.question == name]
        assert 3 <= len(examples) <= count
        for example in examples:
            (again,) = ask.answer([example.answered.source])
            assert again.answers[0].text == example.answered.answers[0].text
            assert example.right == (again.answers[0].text == example.target)
    with pytest.raises(RunFolderError, match="a run is there already"):
        demo_transduce.demo(tmp_path / "demo", 0.5)


def test_what_is_right_is_counted(pairs: DatePairs) -> None:
    asked = pairs.languages
    answers = {
        pair.source: _answered(pair.source, pair.target if row % 4 else "1066-10-14") for row, pair in enumerate(asked)
    }
    question = demo_transduce._question("languages", asked, answers, pairs)
    assert question == ("languages", 120, 0.75, pairs.months_seen(asked))


def _answered(source: str, text: str) -> Answered:
    answer = Answer(text, 0.0, 0.0, True, (), (), None)
    return Answered(source, (), (answer,), (), 0)
