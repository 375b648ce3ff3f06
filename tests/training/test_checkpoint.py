from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from throughtime.errors import CheckpointError, RunFolderError
from throughtime.training import distributed
from throughtime.training.checkpoint import CheckpointStore, find_fault, model_tensors
from throughtime.training.config import TrainingConfig

FILES = ["model.safetensors", "optimizer.safetensors", "rank-00000.safetensors", "state.json", "manifest.json"]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(
        tmp_path / "checkpoints", 2, distributed.start(TrainingConfig(device="cpu", precision="fp32"))
    )


def save(store: CheckpointStore, step: int, best: int | None = None) -> None:
    store.save(
        step,
        model={"w": torch.full((3,), float(step))},
        optimizer={"0.step": torch.tensor(float(step))},
        rank={"carried.0": torch.arange(4).view(2, 2).mT},
        state={"step": step},
        best=best,
    )


def test_what_was_saved_is_loaded(store: CheckpointStore) -> None:
    assert store.load_latest() is None
    save(store, 5)
    save(store, 12)
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.rank is not None
    assert loaded.state == {"step": 12, "world_size": 1}
    assert loaded.model["w"].tolist() == [12, 12, 12]
    assert loaded.optimizer["0.step"] == 12
    assert loaded.rank["carried.0"].tolist() == [[0, 2], [1, 3]]


def test_the_newest_and_the_best_are_kept(store: CheckpointStore) -> None:
    for step in range(1, 7):
        save(store, step, best=2 if step >= 2 else None)
    assert store.steps() == [2, 5, 6]


def test_a_step_saved_again_is_replaced(store: CheckpointStore) -> None:
    save(store, 5, best=None)
    store.save(5, model={}, optimizer={}, rank={}, state={"step": 5, "again": True}, best=5)
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state["again"]
    assert [entry.name for entry in store.folder.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("name", FILES)
def test_damage_names_the_file_and_the_way_back(store: CheckpointStore, name: str) -> None:
    save(store, 5)
    save(store, 12)
    newest = store.path(12)
    content = bytearray((newest / name).read_bytes())
    fault = "is damaged" if name == "manifest.json" else "is truncated: expected"
    (newest / name).write_bytes(content[:-2])
    rename = f"mv {newest} {newest}.damaged"
    way_back = re.escape(f"the last good one is step-00000005: to go on from there, `{rename}`, then --resume")
    with pytest.raises(CheckpointError, match=f"{re.escape(str(newest))}: {name} {fault}.*; {way_back}"):
        store.load_latest()
    content[-5] ^= 1
    (newest / name).write_bytes(content)
    fault = "is (altered|damaged)|is truncated|cannot be read"  # a changed manifest misjudges another file
    with pytest.raises(CheckpointError, match=f"({fault}).*; {way_back}"):
        store.load_latest()
    (newest / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(No such file or directory\); {way_back}"):
        store.load_latest()
    subprocess.run(rename, shell=True, check=True)  # what the message says
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state["step"] == 5
    # What was put aside is no checkpoint, and stays.
    save(store, 12)
    save(store, 13)
    assert store.steps() == [12, 13]
    assert store.path(12).with_name("step-00000012.damaged").is_dir()


def test_the_way_back_can_be_typed_whatever_the_folder_is_called(store: CheckpointStore) -> None:
    store.folder = store.folder / "my run's; $HOME"
    for step in (5, 12):
        save(store, step)
    (store.path(12) / "state.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is truncated") as caught:
        store.load_latest()
    subprocess.run(str(caught.value).split("`")[1], shell=True, check=True)
    assert store.steps() == [5]
    assert store.path(12).with_name("step-00000012.damaged").is_dir()


def test_two_damaged_ones_are_both_named(store: CheckpointStore) -> None:
    store.keep_last = 3
    for step in (1, 2, 3):
        save(store, step)
    for step in (2, 3):
        (store.path(step) / "model.safetensors").write_bytes(b"")
    renames = " && ".join(f"mv {store.path(step)} {store.path(step)}.damaged" for step in (2, 3))
    with pytest.raises(CheckpointError, match=re.escape(f"`{renames}`")):
        store.load_latest()
    (store.path(1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no earlier good one is left: train again into another --run"):
        store.load_latest()


def test_a_newer_format_is_no_damage(store: CheckpointStore) -> None:
    save(store, 5)
    manifest = store.path(5) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(
        RunFolderError, match="expected format 1 or older, got 2; a newer throughtime wrote it: upgrade"
    ):
        store.load_latest()


def test_what_a_kill_left_is_put_right(store: CheckpointStore) -> None:
    save(store, 5)
    # Killed while step 5 was being replaced: the old folder stands aside, the new one is half-written.
    aside = store.folder / ".step-00000005.abc.old"
    aside.mkdir()
    store.path(5).rename(aside / "step-00000005")
    (store.folder / ".step-00000005.abc.partial").mkdir()
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded.state["step"] == 5
    assert [entry.name for entry in store.folder.iterdir()] == ["step-00000005"]
    assert find_fault(store.path(5)) is None


def test_of_tied_weights_one_is_kept() -> None:
    weight = torch.zeros(3, 2)
    state = {
        "a": weight,
        "b": weight,
        "c": weight.clone(),
        "row": weight[0],
        "none": torch.empty(0),
        "no": torch.empty(0),
    }
    assert list(model_tensors(state)) == ["a", "c", "row", "none", "no"]
