"""What every model can do: be saved to a folder and loaded from it, without unpickling anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from throughtime.configuration import Section, to_json, validate
from throughtime.errors import CheckpointError, ConfigError, RunFolderError
from throughtime.storage import write_file

FORMAT = 1
_CHECKSUM = "sha256"
_REMEDY = "put a sound one in its place, such as the model.safetensors of a folder in the run's checkpoints"


class Model(nn.Module):
    """A network with its configuration.

    `save(folder)` writes `model.safetensors`, `config.json` and, where the model has one, `tokenizer.json`;
    `load(folder)` reads them back. Each file is replaced whole or not at all.
    """

    Config: ClassVar[type[Section]]

    def __init__(self, config: Section) -> None:
        super().__init__()
        self.config: Any = config
        # The text of tokenizer.json: a model keeps it, though only the data floor can read it.
        self.tokenizer_json: str | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name; one that is shared stands once."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def save(self, folder: str | Path) -> None:
        """Write the model to `folder`.

        Raises:
            StorageError: the disk is full, read-only or gone; the files that were there are as they were.
        """
        folder = Path(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        description = {"format": FORMAT, "model": type(self).__name__, "config": json.loads(to_json(self.config))}
        write_file(folder / "config.json", json.dumps(description, indent=2) + "\n")
        if self.tokenizer_json is not None:
            write_file(folder / "tokenizer.json", self.tokenizer_json)
        write_file(folder / "model.safetensors", safetensors.torch.save(tensors, {_CHECKSUM: _digest(tensors)}))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The model that was saved to `folder`, on the CPU, in evaluation mode.

        Raises:
            RunFolderError: no model there, one of another class, one of a newer version, or files that cannot be read.
            CheckpointError: the weights are truncated, altered, or of other shapes.
        """
        return cls._load(folder)

    @classmethod
    def _load(cls, folder: str | Path, **parts: Any) -> Self:
        """`load`, with what a configuration cannot hold handed to the constructor."""
        folder = Path(folder)
        model = cls(cls._read_config(folder), **parts)
        model.load_tensors(_read_tensors(folder), origin=folder / "model.safetensors")
        try:
            model.tokenizer_json = (folder / "tokenizer.json").read_text("utf-8")
        except FileNotFoundError:
            model.tokenizer_json = None
        except (OSError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{folder / 'tokenizer.json'}: cannot be read: {error}; restore the file") from None
        return model.eval()

    def load_tensors(self, tensors: dict[str, Tensor], *, origin: str | Path) -> None:
        """Take over the values of `tensors`, which must be exactly this model's.

        Raises:
            CheckpointError: names or shapes differ; nothing is taken over.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
        if wrong:
            expected, got = (tuple(there[wrong[0]].shape) if wrong[0] in there else "none" for there in (own, tensors))
            raise CheckpointError(
                f"{origin}: does not fit the model of config.json: {wrong[0]}: expected {expected}, got {got}; "
                "put the two files back that were saved together"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    @classmethod
    def _read_config(cls, folder: Path) -> Section:
        path = folder / "config.json"
        try:
            description = json.loads(path.read_text("utf-8"))
            version, name, values = int(description["format"]), description["model"], description["config"]
        except FileNotFoundError:
            raise RunFolderError(
                f"{folder}: expected a saved {cls.__name__}, got no config.json; check the path, or train first"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path}: expected a model's configuration: {error!r}; restore the file") from None
        if version > FORMAT:
            raise RunFolderError(
                f"{path}: written by a newer throughtime (format {version}, this one reads up to {FORMAT}); upgrade"
            )
        if name != cls.__name__:
            raise RunFolderError(f"{folder}: holds a {name}, expected a {cls.__name__}; use the command for that task")
        try:
            return validate(cls.Config, values, where=str(path))
        except ConfigError as error:
            raise RunFolderError(str(error)) from None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, verified where the file carries a checksum."""
    path = folder / "model.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            expected = (file.metadata() or {}).get(_CHECKSUM)
    except FileNotFoundError:
        raise RunFolderError(
            f"{folder}: no model.safetensors: the run has not come to its first evaluation; go on with --resume"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {_REMEDY}") from None
    if expected not in (None, _digest(tensors)):
        raise CheckpointError(f"{path}: altered: its SHA-256 is not the one it was written with; {_REMEDY}")
    return tensors
