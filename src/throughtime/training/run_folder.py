"""A run folder: all that a training leaves, and all that is needed to use it or to go on.

- run.json: the task and the format, so that the folder can be told from any other
- config.toml: the complete configuration, written by the task
- model.safetensors, config.json, tokenizer.json: the best model so far
- metrics.jsonl, curve.png: how the training went
- checkpoints/: what --resume goes on from
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from throughtime.errors import RunFolderError
from throughtime.storage import storage_errors, sync_folder, write_file

FORMAT = 1
_MARK = "run.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """The places in the run folder at `path`."""

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.path / "config.toml"

    @property
    def model(self) -> Path:
        """The best model's weights."""
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """The training curve."""
        return self.path / "curve.png"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @classmethod
    def create(cls, path: str | Path, task: str) -> RunFolder:
        """Make `path`, new or empty so far, the folder of a run of `task`; with several processes, the main one does.

        Raises:
            RunFolderError: it is a file, a run already, or holds other files.
            StorageError: the disk is full, read-only or gone.
        """
        cls.check_free(path)
        write_file(Path(path) / _MARK, json.dumps({"format": FORMAT, "task": task}, indent=2) + "\n")
        return cls(Path(path))

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Whether a run may be made at `path`; nothing is written.

        Raises:
            RunFolderError: it is a file, a run already, or holds other files.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"run folder {path}: expected a folder, got a file; choose another --run")
        if (path / _MARK).exists():
            raise RunFolderError(
                f"run folder {path}: a run is there already; go on with --resume, or choose another --run"
            )
        if path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise RunFolderError(f"run folder {path}: it holds other files; choose a new or empty folder as --run")

    @classmethod
    def open(cls, path: str | Path, task: str | None = None) -> RunFolder:
        """The run folder at `path`, of `task` where one is named.

        Raises:
            RunFolderError: there is none, it is no run folder, of another task, or of a newer version.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"run folder {path}: expected a folder, got a file; name the folder of a run")
        if not path.is_dir():
            raise RunFolderError(f"run folder {path}: no such folder; check the path, or train into it first")
        found, version = _read_mark(path)
        if version > FORMAT:
            raise RunFolderError(
                f"run folder {path}: expected format {FORMAT} or older, got {version}; "
                "a newer throughtime wrote it: upgrade"
            )
        if task is not None and found != task:
            raise RunFolderError(
                f"run folder {path}: expected a run of {task}, got one of {found}; name a run of {task}"
            )
        return cls(path)

    @staticmethod
    def task_of(path: str | Path) -> str:
        """What `throughtime train` calls the task of the run at `path`, for example "lm".

        Raises:
            RunFolderError: there is none, it is no run folder, or of a newer version.
        """
        return _read_mark(RunFolder.open(path).path)[0]

    def publish(self, save: Callable[[Path], None]) -> None:
        """Let `save` write a model into an empty folder, then put each of its files in place, whole.

        Raises:
            StorageError: the disk is full, read-only or gone; the model published before is untouched.
        """
        with storage_errors(self.path):
            fresh = Path(tempfile.mkdtemp(prefix=".model.", suffix=".partial", dir=self.path))
            try:
                save(fresh)
                files = sorted(fresh.iterdir())
                for file in files:
                    with open(file, "rb") as opened:
                        os.fsync(opened.fileno())
                for file in files:
                    os.replace(file, self.path / file.name)
                sync_folder(self.path)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which no other training may be at work here; it ends with the process, however that ends.

        Raises:
            RunFolderError: another training is at work.
            StorageError: the disk is read-only or gone.
        """
        from filelock import FileLock, Timeout

        place = self.path / _LOCK
        lock = FileLock(place)
        with storage_errors(self.path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunFolderError(
                    f"run folder {self.path}: another training is at work in {self.path}; wait for it or stop it"
                ) from None
        try:
            yield
        finally:
            # Before the release: afterwards it may be another's. Windows removes no open file, and needs not.
            with suppress(OSError):
                place.unlink()
            lock.release()

    def tidy(self) -> None:
        """Clear the half-written models that a killed process left."""
        for partial in self.path.glob(".*.partial"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


def _read_mark(path: Path) -> tuple[str, int]:
    mark = path / _MARK
    try:
        content = json.loads(mark.read_bytes())
        return str(content["task"]), int(content["format"])
    except FileNotFoundError:
        raise RunFolderError(f"run folder {path}: not a run folder, it has no {_MARK}; check the path") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(f"run folder {path}: its {_MARK} is damaged; restore that file, or train again") from None
