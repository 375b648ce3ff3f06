"""A language-model run as a program makes it: its configuration, its text, its evaluation, its faults."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.configuration import read_toml
from throughtime.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PromptError,
    RunFolderError,
    StorageError,
    UsageError,
)
from throughtime.models import LanguageModel
from throughtime.tasks import demo, language
from throughtime.tasks.configuration import LanguageConfiguration
from throughtime.tasks.runs import merged

Train = Callable[..., Path]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


# -- configuration -------------------------------------------------------------------------------------------------


def test_the_configuration_of_a_run_is_complete_and_commented(train: Train) -> None:
    text = (train() / "config.toml").read_text()
    values = tomllib.loads(text)
    lines = text.splitlines()
    for section, field in LanguageConfiguration.model_fields.items():
        for key, about in field.annotation.model_fields.items():  # type: ignore[union-attr]
            unset = "# " if key not in values[section] else ""
            (at,) = [n for n in _section(lines, section) if lines[n].startswith(f"{unset}{key} =")]
            assert about.description
            assert lines[at - 1] == f"# {about.description}"
    assert values["training"]["max_steps"] == 6
    assert values["model"]["hidden_size"] == 16
    assert LanguageConfiguration.model_validate(values).toml() == text


def _section(lines: list[str], name: str) -> range:
    start = lines.index(f"[{name}]")
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("[")), len(lines))
    return range(start, end)


def test_the_configuration_of_a_run_trains_the_same_weights(train: Train) -> None:
    keys = [f"model.{name}=0.2" for name in ("dropout", "weight_dropout", "embedding_dropout")]
    first = train("first", *keys, "data.tokenizer=chars", "training.seed=3")
    again = train("again", data=[], keys=[], config_file=first / "config.toml")
    assert weights(again) == weights(first)
    assert (again / "config.toml").read_text() == (first / "config.toml").read_text()
    other = train("other", "training.seed=4", data=[], keys=[], config_file=first / "config.toml")
    assert weights(other) != weights(first)


def test_what_is_said_later_counts(train: Train, book: Path, other: Path, tmp_path: Path) -> None:
    """--config below --set below the options of their own."""
    file = tmp_path / "own.toml"
    file.write_text('[data]\npaths = ["nowhere.txt"]\ncolumn = "body"\n[model]\nhidden_size = 9\ncell = "gru"\n')
    run = train("run", 'data.paths=["nowhere.md"]', config_file=file, data=[str(other)], valid=[str(book)])
    values = read_toml(run / "config.toml")
    assert values["data"]["paths"] == [str(other)]
    assert values["data"]["valid"] == [str(book)]
    assert values["data"]["column"] == "body"
    assert (values["model"]["hidden_size"], values["model"]["cell"]) == (16, "gru")


@pytest.mark.parametrize(
    ("base", "changes", "result"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}, "b": {"z": 4}}, {"a": {"x": 3, "y": 2}, "b": {"z": 4}}),
        ({"a": 5}, {"a": {"x": 3}}, {"a": 5}),
        ({"a": {"x": 3}}, {"a": 5}, {"a": 5}),
    ],
)
def test_sections_are_laid_over_one_another(base: Any, changes: Any, result: Any) -> None:
    assert merged(base, changes) == result


def test_every_fault_is_told_at_once(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("generation = 3\n[model]\nhiden_size = 9\n[training]\nbatch_size = -1\nbeta1 = 1.5\n[modle]\n")
    with pytest.raises(ConfigError) as caught:
        train("run", "data.tokeniser=chars", "training.learning_rate=0", keys=[], config_file=file)
    message = str(caught.value)
    assert message.startswith(f"{file} with --set: 7 faults: ")
    for fault in (
        "data.tokeniser: unknown key, did you mean tokenizer?",
        "model.hiden_size: unknown key, did you mean hidden_size?",
        "modle: unknown key, did you mean model?",
        "training.batch_size: should be greater than or equal to 1, got -1",
        "training.beta1: should be less than 1, got 1.5",
        "training.learning_rate: should be greater than 0, got 0",
        "generation: should be a valid dictionary or instance of GenerationConfig, got 3",
    ):
        assert fault in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["max_steps=0", "max_epochs=0"])
def test_something_must_end_the_training(train: Train, key: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"training: nothing ends the training: set one of max_steps, max_epochs, max_minutes above 0$",
    ):
        train("run", f"training.{key}", keys=[])


def test_an_engine_that_there_is_none_of(train: Train) -> None:
    with pytest.raises(UsageError, match=r"LSTM: engine must be one of auto, .*, got 'fast'"):
        train("run", "model.engine=fast")


def test_a_tokenizer_that_is_none(train: Train) -> None:
    line = (
        "data.tokenizer: expected one of bytes, chars, words, bpe, or the path of a tokenizer.json, got 'byte', "
        "which is neither"
    )
    with pytest.raises(DataError, match=f"^{re.escape(line)}$"):
        train("run", "data.tokenizer=byte")


def test_a_tokenizer_of_another_run(train: Train) -> None:
    first = train("first", "data.tokenizer=words", "data.vocabulary_size=50")
    second = train("second", f"data.tokenizer={first / 'tokenizer.json'}")
    assert (second / "tokenizer.json").read_text() == (first / "tokenizer.json").read_text()


def test_the_demonstration_is_well_configured() -> None:
    config = demo.configuration(2.5)
    assert config.training.max_minutes == 2.5
    assert config.training.max_epochs == config.training.max_steps == 0
    assert config.data.paths == ["stdlib:"]


def test_a_free_folder_for_the_demonstration(tmp_path: Path) -> None:
    assert demo.free_folder(tmp_path) == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo.free_folder(tmp_path) == tmp_path / "demo-3"


@pytest.mark.slow
def test_a_short_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = demo.configuration(0.05)
    assert full.model.hidden_size == 512
    # Smaller: the held-out text is some megabytes, and is read after so short a training, too.
    small = full.model_copy(update={"model": full.model.model_copy(update={"hidden_size": 64})})
    monkeypatch.setattr(demo, "configuration", {0.05: small}.__getitem__)
    outcome, samples = demo.demo(tmp_path / "demo", 0.05)
    assert outcome.stopped_because == "max_minutes = 0.05 reached"
    assert outcome.best["bits_per_byte"] < 8
    assert [sample.temperature for sample in samples] == [0.5, 0.8, 1.0]
    assert all(sample.text.startswith("def ") for sample in samples)


# -- the run folder ------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(train: Train) -> None:
    run = train()
    assert sorted(entry.name for entry in run.iterdir()) == [
        "checkpoints", "config.json", "config.toml", "curve.png", "data.json", "metrics.jsonl", "model.safetensors",
        "run.json", "tokenizer.json",
    ]  # fmt: skip
    model, tokenizer, config = language.load(run)
    assert model.tokenizer_json == tokenizer.to_json()
    assert (config.model.hidden_size, model.vocabulary_size, model.config.border_id) == (16, 257, 256)
    assert not model.training


def test_the_folder_is_looked_at_before_the_text(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(RunFolderError, match=r"it holds other files; choose a new or empty folder as --run$"):
        train("run", data=["no-such-text"])


def test_a_model_from_a_checkpoint_mends_a_damaged_one(train: Train) -> None:
    """What the message of a damaged model.safetensors says to do."""
    run = train("run", "model.tied=true", "model.embedding_size=16")
    before = language.load(run)[0].state_dict()
    (run / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"such as the model.safetensors of a folder in the run's checkpoints"):
        language.load(run)
    (checkpoint,) = (run / "checkpoints").iterdir()
    (run / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    after = language.load(run)[0].state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_run_without_a_model_yet(train: Train) -> None:
    run = train()
    (run / "model.safetensors").unlink()
    with pytest.raises(
        RunFolderError,
        match=r"expected a trained model, got none yet: the first evaluation writes it \(training.evaluate_every\); "
        "let it train on, with --resume where it has stopped$",
    ):
        language.load(run)


# -- resuming ------------------------------------------------------------------------------------------------------


def test_going_on_is_never_having_stopped(train: Train) -> None:
    keys = ("training.schedule=constant", "model.dropout=0.2", "training.evaluate_every=5")
    whole = train("whole", *keys, "training.max_steps=10")
    train("parts", *keys, "training.max_steps=5")
    parts = train("parts", "training.max_steps=10", keys=[], data=[], resume=True)
    assert weights(parts) == weights(whole)
    assert (parts / "config.toml").read_text() == (whole / "config.toml").read_text()


def test_going_on_with_a_changed_configuration_file(train: Train, tmp_path: Path) -> None:
    """What --config says counts when resuming too; what it leaves out stays as the run has it."""
    train("run")
    (tmp_path / "more.toml").write_text("[training]\nmax_steps = 8\n")
    run = train("run", keys=[], data=[], config_file=tmp_path / "more.toml", resume=True)
    values = read_toml(run / "config.toml")
    assert (values["training"]["max_steps"], values["model"]["hidden_size"]) == (8, 16)


@pytest.mark.parametrize("damage", [None, "{", "[]", '{"train": {}}'])
def test_a_run_that_has_lost_the_note_of_its_text(train: Train, damage: str | None) -> None:
    run = train()
    (run / "data.json").unlink() if damage is None else (run / "data.json").write_text(damage)
    with pytest.raises(RunFolderError, match=r"its data.json is missing or damaged; restore it, or train into another"):
        train("run", "training.max_steps=8", resume=True)


def test_another_text_is_refused(train: Train, book: Path, other: Path) -> None:
    run = train()
    kept = weights(run)
    line = (
        rf"run folder {run}: the train and valid text is not the one that the run was begun with "
        r"\([\d,]+ bytes then, [\d,]+ now\); restore it, or train into another --run"
    )
    with pytest.raises(RunFolderError, match=f"^{line}$"):
        train("run", "training.max_steps=8", data=[str(other)], resume=True)
    with open(book, "a") as file:
        file.write("x")
    with pytest.raises(RunFolderError, match="text is not the one that the run was begun with"):
        train("run", "training.max_steps=8", resume=True)
    assert weights(run) == kept


def test_another_model_is_refused(train: Train) -> None:
    run = train()
    before = files(run)
    line = (
        rf"model.cell: the run in {run} has 'lstm', got 'gru'; model.embedding_size: the run in {run} has 8, got 12; "
        "a run keeps its model: train into another --run"
    )
    with pytest.raises(ConfigError, match=f"^{line}$"):
        train("run", "model.embedding_size=12", "model.cell=gru", resume=True)
    assert files(run) == before
    train("run", "training.max_steps=7", "model.dropout=0.1", "model.engine=reference", keys=[], resume=True)


@pytest.mark.parametrize("written", [(), ("config.toml",), ("config.toml", "tokenizer.json")])
def test_killed_before_training_began(train: Train, written: tuple[str, ...]) -> None:
    """The files of a run appear one after another; the same command with --resume goes on from each of them."""
    whole = train("whole")
    run = train("run")
    for entry in run.iterdir():
        if entry.name not in ("run.json", *written):
            entry.rename(run.parent / f"moved-{entry.name}")
    assert weights(train("run", resume=True)) == weights(whole)


def test_killed_before_its_configuration_was_written(tmp_path: Path, train: Train) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"format": 1, "task": "lm"}')
    with pytest.raises(
        RunFolderError, match="it was stopped before its configuration was written; give the first command again, with"
    ):
        train("run", data=[], keys=[], resume=True)


@pytest.mark.parametrize(
    ("mark", "line"),
    [
        ({"format": 1, "task": "tag"}, "expected a run of lm, got one of tag; name a run of lm"),
        ({"format": 2, "task": "lm"}, "expected format 1 or older, got 2; a newer throughtime wrote it: upgrade"),
        ({"task": "lm"}, "its run.json is damaged; restore that file, or train again"),
    ],
)
def test_folders_of_others(train: Train, book: Path, mark: dict[str, Any], line: str) -> None:
    run = train()
    (run / "run.json").write_text(json.dumps(mark))
    for use in (lambda: train("run", resume=True), lambda: language.evaluate(run, [str(book)])):
        with pytest.raises(RunFolderError, match=f"^run folder {run}: {line}$"):
            use()


# -- evaluation and generation -------------------------------------------------------------------------------------


def test_evaluating_documents(train: Train, tmp_path: Path) -> None:
    run = train("run", "training.batch_size=1")
    rows = ["one", "zwölf", ""]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    found = language.evaluate(run, [str(tmp_path / "rows.jsonl")], column="body")
    model = LanguageModel.load(run)
    total = 0.0
    for row in rows:
        with torch.no_grad():
            total -= float(model.log_prob(torch.tensor([*row.encode(), 256])[:, None]).total)
    assert (found["tokens"], found["bytes"], found["characters"], found["documents"]) == (12, 9, 8, 3)
    assert found["nats_per_token"] * 12 == pytest.approx(total, rel=1e-5)


def test_the_held_out_loss_is_what_evaluating_finds(train: Train, book: Path, other: Path) -> None:
    run = train("run", valid=[str(other)])
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (line,) = [entry for entry in entries if entry["kind"] == "evaluation"]
    found = language.evaluate(run, [str(other)])
    assert found["nats_per_token"] == pytest.approx(line["loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(line["bits_per_byte"], rel=1e-6)


def test_a_prompt_of_characters_never_seen(train: Train) -> None:
    _, tokenizer, _ = language.load(train("run", "data.tokenizer=chars"))
    with pytest.raises(PromptError, match=r"the model has never seen '→' \(U\+2192\); leave them out, or train with"):
        tokenizer.check_prompt("a → b")


def test_a_text_too_short_for_one_window(train: Train) -> None:
    with pytest.raises(
        DataError,
        match=r"the text is too short: 4 rows of one window need 400001 tokens, got \d+; "
        r"lower training.batch_size \(4\) or training.window \(100000\), or give more text$",
    ):
        train("run", "training.window=100000")


def test_a_cache_that_cannot_be_written(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        StorageError,
        match=r"^cannot write .*: Not a directory; .*; it is the cache of prepared texts: THROUGHTIME_CACHE",
    ):
        train()
    assert not (tmp_path / "run").exists()
