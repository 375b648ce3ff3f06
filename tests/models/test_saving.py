"""Saving and loading: to the bit, without unpickling, and every fault of a folder in one line."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch

from throughtime.configuration import Section
from throughtime.errors import CheckpointError, RunFolderError, StorageError
from throughtime.models import LanguageModel, Model

KEYS: dict[str, Any] = {"vocabulary_size": 7, "hidden_size": 6, "embedding_size": 4}
TOKENS = torch.arange(14).reshape(7, 2) % 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LanguageModel(**KEYS).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("something was pickled or unpickled")

    for module, names in ((torch, ("load", "save")), (pickle, ("load", "loads", "dump", "dumps", "Unpickler"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"cell": "gru", "num_layers": 2, "hidden_size": [6, 5]},
        {"cell": "rnn", "layer_norm": True},
        {"tied": True, "embedding_size": 6, "dropout": 0.3, "weight_dropout": 0.2, "zoneout": 0.1},
    ],
    ids=["lstm", "gru", "rnn", "tied"],
)
def test_a_model_comes_back_to_the_bit(tmp_path: Path, keys: dict[str, Any]) -> None:
    model = LanguageModel(**KEYS | keys).eval()
    model.tokenizer_json = '{"ä": 1}\n'
    model.save(tmp_path)
    loaded = LanguageModel.load(tmp_path)
    assert loaded.config == model.config
    assert loaded.tokenizer_json == model.tokenizer_json
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_tied_weights_are_one_tensor_saved_once(tmp_path: Path) -> None:
    LanguageModel(**KEYS | {"tied": True, "embedding_size": 6}).save(tmp_path)
    names = safetensors.torch.load_file(tmp_path / "model.safetensors").keys()
    assert "embedding.weight" in names
    assert "readout.weight_ho" not in names
    loaded = LanguageModel.load(tmp_path)
    assert loaded.embedding.weight is loaded.readout.weight_ho


def test_saving_again_replaces(folder: Path) -> None:
    torch.manual_seed(1)
    other = LanguageModel(**KEYS)
    other.save(folder)
    assert torch.equal(LanguageModel.load(folder).embedding.weight, other.embedding.weight)


def test_weights_of_others_need_no_checksum(folder: Path) -> None:
    """safetensors files that other programs wrote, such as a checkpoint's, are taken as they are."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    assert LanguageModel.load(folder).config.hidden_size == 6


def test_it_cannot_be_saved_below_a_file(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*: (Not a directory|File exists); "):
        LanguageModel(**KEYS).save(folder / "config.json" / "below")


# -- faults --------------------------------------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of config.json; those of its "config" by the name `config`."""
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["config"].update(changes.pop("config", {}))
    path.write_text(json.dumps(description | changes))


def fails(folder: Path, kind: type[Exception], line: str) -> None:
    with pytest.raises(kind) as caught:
        LanguageModel.load(folder)
    message = str(caught.value)
    assert re.search(line, message), message
    assert "\n" not in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        (
            lambda path: (path / "config.json").unlink(),
            RunFolderError,
            r"expected a saved LanguageModel, got no config\.json; check the path, or train first$",
        ),
        (
            lambda path: (path / "config.json").write_text("{"),
            RunFolderError,
            r"config\.json: expected a model's configuration: JSONDecodeError.*; restore the file$",
        ),
        (
            lambda path: (path / "config.json").write_text("[1]"),
            RunFolderError,
            r"config\.json: expected a model's configuration: TypeError.*; restore the file$",
        ),
        (
            lambda path: (path / "config.json").write_bytes(b"\xff\xfe"),
            RunFolderError,
            r"config\.json: expected a model's configuration: UnicodeDecodeError.*; restore the file$",
        ),
        (lambda path: edit(path, format="x"), RunFolderError, r"config\.json: expected a model's configuration: Value"),
        (
            lambda path: edit(path, format=2),
            RunFolderError,
            r"written by a newer throughtime \(format 2, this one reads up to 1\); upgrade$",
        ),
        (
            lambda path: edit(path, model="Tagger"),
            RunFolderError,
            r"holds a Tagger, expected a LanguageModel; use the command for that task$",
        ),
        (
            lambda path: edit(path, config={"hiden_size": 3, "dropout": 2}),
            RunFolderError,
            r"2 faults: .*dropout: should be less than 1, got 2; .*unknown key, did you mean hidden_size\?$",
        ),
        (
            lambda path: edit(path, config={"hidden_size": 8}),
            CheckpointError,
            r"does not fit the model of config\.json: .*: expected .*, got .*; put the two files back",
        ),
        (
            lambda path: edit(path, config={"num_layers": 2}),
            CheckpointError,
            r"does not fit .*_l1: expected \(.*\), got none; put the two files back",
        ),
        (
            lambda path: (path / "model.safetensors").unlink(),
            RunFolderError,
            r"no model\.safetensors: the run has not come to its first evaluation; go on with --resume$",
        ),
        (
            lambda path: (path / "tokenizer.json").write_bytes(b"\xff"),
            RunFolderError,
            r"tokenizer\.json: cannot be read: .*; restore the file$",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_fault_is_one_line(folder: Path, change: Callable[[Path], object], kind: type[Exception], line: str) -> None:
    change(folder)
    fails(folder, kind, line)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_truncated_weights(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    fails(
        folder, CheckpointError, r"damaged \(.*\); put a sound one in its place, such as .* in the run's checkpoints$"
    )


@pytest.mark.parametrize("place", [0.4, 0.7, 1.0])
def test_one_altered_bit_is_found(folder: Path, place: float) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    fails(folder, CheckpointError, r"altered: its SHA-256 is not the one it was written with; put a sound one")


def test_a_model_of_another_class(folder: Path) -> None:
    class Tagger(Model):
        Config = Section

    with pytest.raises(RunFolderError, match="holds a LanguageModel, expected a Tagger; use the command for that task"):
        Tagger.load(folder)


def test_nothing_is_taken_over_from_weights_that_do_not_fit() -> None:
    model, other = LanguageModel(**KEYS), LanguageModel(**KEYS | {"embedding_size": 5})
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    with pytest.raises(
        CheckpointError, match=r"^here: does not fit .*embedding\.weight: expected \(7, 4\), got \(7, 5\)"
    ):
        model.load_tensors(other.tensors(), origin="here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
