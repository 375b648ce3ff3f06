"""Checkpoints: all that a run needs to go on as if it had never stopped, in files that are never half-written.

A checkpoint is a folder `step-00001000` of

    model.safetensors, optimizer.safetensors    the same on every process
    rank-00000.safetensors, ...                 each process's carried state and random generators
    state.json                                  counters: the step, the position in the data, the best evaluation
    manifest.json                               size and SHA-256 of each of the others

The folder is written beside its place, synced, and renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from throughtime.errors import CheckpointError, RunFolderError
from throughtime.storage import replacing_folder, storage_errors
from throughtime.training.distributed import Distribution

FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    state: counters, as JSON has them.
    model, optimizer: the tensors that every process shares.
    rank: this process's own tensors; None when the checkpoint was written by another number of processes.
    """

    state: dict[str, Any]
    model: Tensors
    optimizer: Tensors
    rank: Tensors | None


class CheckpointStore:
    """The checkpoints of one run: the newest `keep_last`, and the best."""

    def __init__(self, folder: Path, keep_last: int, distribution: Distribution) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.distribution = distribution

    def path(self, step: int) -> Path:
        """The folder of the checkpoint at `step`."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps at which there are checkpoints, oldest first; nothing is verified."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def save(
        self,
        step: int,
        *,
        model: Tensors,
        optimizer: Tensors,
        rank: Tensors,
        state: Mapping[str, Any],
        best: int | None,
    ) -> None:
        """Write the checkpoint of `step`; every process calls this, the main one writes.

        `best` is the step of the best evaluation, whose checkpoint outlives the others.

        Raises:
            StorageError: the disk is full, read-only or gone; earlier checkpoints are untouched.
        """
        parts = self.distribution.gather(_to_bytes(rank))

        def write() -> None:
            assert parts is not None
            files = {"model.safetensors": _to_bytes(model), "optimizer.safetensors": _to_bytes(optimizer)}
            files |= {_rank_file(number): part for number, part in enumerate(parts)}
            files[_STATE] = _json_bytes({**state, "world_size": len(parts)})
            manifest = {name: {"size": len(data), "sha256": _sha256(data)} for name, data in files.items()}
            files[_MANIFEST] = _json_bytes({"format": FORMAT, "files": manifest})
            with replacing_folder(self.path(step)) as fresh:
                for name, data in files.items():
                    (fresh / name).write_bytes(data)
            self._prune(best)

        self.distribution.on_main(write)

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint, verified; None when there is none yet.

        Raises:
            CheckpointError: it is truncated or altered; names the file, and how to go on from the one before.
            RunFolderError: a newer version wrote it.
        """
        self.distribution.on_main(self._tidy)
        steps = self.steps()
        if not steps:
            return None
        newest = self.path(steps[-1])
        fault = find_fault(newest)
        if fault is not None:
            raise CheckpointError(self._damage(newest, fault, steps[:-1]))
        return self._read(newest)

    def _read(self, path: Path) -> Checkpoint:
        from safetensors.torch import load

        state = json.loads((path / _STATE).read_bytes())
        own = path / _rank_file(self.distribution.rank)
        same_world = state["world_size"] == self.distribution.world_size
        return Checkpoint(
            state=state,
            model=load((path / "model.safetensors").read_bytes()),
            optimizer=load((path / "optimizer.safetensors").read_bytes()),
            rank=load(own.read_bytes()) if same_world else None,
        )

    def _damage(self, newest: Path, fault: str, earlier: list[int]) -> str:
        good = next((step for step in reversed(earlier) if find_fault(self.path(step)) is None), None)
        bad = [self.path(step) for step in earlier if good is None or step > good] + [newest]
        # Renamed, nothing is lost; under such a name it is no checkpoint any more.
        rename = " && ".join(shlex.join(["mv", str(path), f"{path}.damaged"]) for path in bad)
        if good is None:
            return f"checkpoint {newest}: {fault}; no earlier good one is left: train again into another --run"
        return (
            f"checkpoint {newest}: {fault}; the last good one is {self.path(good).name}: "
            f"to go on from there, `{rename}`, then --resume"
        )

    def _prune(self, best: int | None) -> None:
        for step in self.steps()[: -self.keep_last]:
            if step != best:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def _tidy(self) -> None:
        """Clear what a killed process left: half-written folders, and a whole one that was being replaced."""
        if not self.folder.is_dir():
            return
        with storage_errors(self.folder):
            for aside in self.folder.glob(".step-*.old"):
                for whole in aside.glob("step-*"):
                    if not (self.folder / whole.name).exists():
                        whole.rename(self.folder / whole.name)
                shutil.rmtree(aside, ignore_errors=True)
            for partial in self.folder.glob(".step-*.partial"):
                shutil.rmtree(partial, ignore_errors=True)


def find_fault(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, or None when every byte is as it was written.

    Raises:
        RunFolderError: a newer version wrote it.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        version, files = int(manifest["format"]), dict(manifest["files"])
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except OSError as error:
        return f"{_MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{_MANIFEST} is damaged"
    if version > FORMAT:
        raise RunFolderError(
            f"checkpoint {path}: expected format {FORMAT} or older, got {version}; "
            "a newer throughtime wrote it: upgrade"
        )
    for name, (size, digest) in expected.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if len(data) != size:
            return f"{name} is truncated: expected {size} bytes, got {len(data)}"
        if _sha256(data) != digest:
            return f"{name} is altered: its SHA-256 is not the one it was written with"
    return None


def model_tensors(state: Mapping[str, Tensor]) -> Tensors:
    """A state dict with each tensor once: of names that share a tensor (tied weights) the first stays."""
    seen: set[tuple[Any, ...]] = set()
    unique: Tensors = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            unique[name] = tensor
    return unique


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # Written through Python's own files, so that a full disk is an OSError as everywhere else.
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
