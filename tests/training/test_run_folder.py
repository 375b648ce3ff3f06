from __future__ import annotations

import re
from pathlib import Path

import pytest

from throughtime.errors import RunFolderError
from throughtime.training import run_folder
from throughtime.training.run_folder import RunFolder


def refused(path: Path, text: str) -> str:
    return re.escape(f"run folder {path}: {text}")


def test_create_then_open(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "run", "lm")
    assert RunFolder.open(tmp_path / "a" / "run", "lm") == run
    assert RunFolder.open(tmp_path / "a" / "run") == run


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    assert RunFolder.create(tmp_path, "lm").path == tmp_path


def test_create_refuses_what_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RunFolderError, match=refused(file, "expected a folder, got a file; choose another --run")):
        RunFolder.create(file, "lm")
    with pytest.raises(RunFolderError, match=refused(tmp_path, "it holds other files; choose a new or empty folder")):
        RunFolder.create(tmp_path, "lm")
    run = RunFolder.create(tmp_path / "run", "lm").path
    with pytest.raises(
        RunFolderError, match=refused(run, "a run is there already; go on with --resume, or choose another --run")
    ):
        RunFolder.create(run, "lm")


def test_open_refuses_what_is_no_such_run(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(RunFolderError, match=refused(missing, "no such folder; check the path")):
        RunFolder.open(missing)
    with pytest.raises(RunFolderError, match=refused(tmp_path, "not a run folder, it has no run.json")):
        RunFolder.open(tmp_path)
    run = RunFolder.create(tmp_path / "run", "tag").path
    with pytest.raises(RunFolderError, match=refused(run, "expected a run of lm, got one of tag; name a run of lm")):
        RunFolder.open(run, "lm")
    (run / "run.json").write_text('{"format": 2, "task": "tag"}')
    with pytest.raises(
        RunFolderError,
        match=refused(run, "expected format 1 or older, got 2; a newer throughtime wrote it: upgrade"),
    ):
        RunFolder.open(run)
    (run / "run.json").write_text('{"form')
    with pytest.raises(RunFolderError, match=refused(run, "its run.json is damaged; restore that file")):
        RunFolder.open(run)


def test_publish_replaces_files_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "lm")
    run.publish(lambda folder: void((folder / "model.safetensors").write_bytes(b"one")))

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"tw")
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        run.publish(fail)
    assert run.model.read_bytes() == b"one"
    run.publish(lambda folder: void((folder / "model.safetensors").write_bytes(b"three")))
    assert run.model.read_bytes() == b"three"
    assert sorted(entry.name for entry in run.path.iterdir()) == ["model.safetensors", "run.json"]


def test_a_published_model_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path / "run", "lm")
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(run_folder, "sync_folder", lambda path: synced.append((path, run.model.exists())))
    run.publish(lambda folder: void((folder / "model.safetensors").write_bytes(b"one")))
    assert synced == [(run.path, True)]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "lm")
    told = refused(run.path, f"another training is at work in {run.path}; wait for it or stop it")
    for _ in range(2):
        with run.held(), pytest.raises(RunFolderError, match=told) as caught, RunFolder(run.path).held():
            pass
        assert caught.value.exit_code == 2
        assert [entry.name for entry in run.path.iterdir()] == ["run.json"]


def test_tidy_clears_what_a_kill_left(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "lm")
    (run.path / ".model.abc.partial").mkdir()
    (run.path / ".curve.png.abc.partial").touch()
    run.tidy()
    assert [entry.name for entry in run.path.iterdir()] == ["run.json"]


def void(_: object) -> None:
    """Drop a result."""
