"""What every model can do: be saved to a folder and loaded from it, without unpickling anything."""

from __future__ import annotations

import json
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
        write_file(folder / "model.safetensors", safetensors.torch.save(tensors))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The model that was saved to `folder`, on the CPU, in evaluation mode.

        Raises:
            RunFolderError: no model there, one of another class, or one of a newer version.
            CheckpointError: the weights are truncated, altered, or of other shapes.
        """
        folder = Path(folder)
        model = cls(cls._read_config(folder))
        try:
            tensors = safetensors.torch.load_file(folder / "model.safetensors")
        except FileNotFoundError:
            raise RunFolderError(
                f"{folder}: no model.safetensors; the run has saved no model yet: go on with --resume"
            ) from None
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"{folder / 'model.safetensors'}: damaged ({error}); "
                "go on with --resume from the last checkpoint to write it anew"
            ) from None
        model.load_tensors(tensors, origin=folder / "model.safetensors")
        tokenizer = folder / "tokenizer.json"
        model.tokenizer_json = tokenizer.read_text("utf-8") if tokenizer.exists() else None
        return model.eval()

    def load_tensors(self, tensors: dict[str, Tensor], *, origin: str | Path) -> None:
        """Take over the values of `tensors`, which must be exactly this model's.

        Raises:
            CheckpointError: names or shapes differ; nothing is taken over.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys())
        wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
        if wrong:
            raise CheckpointError(f"{origin}: does not fit the model of config.json, first in {wrong[0]}; "
                                  "was one of the two files changed by hand?")  # fmt: skip
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    @classmethod
    def _read_config(cls, folder: Path) -> Section:
        path = folder / "config.json"
        try:
            description = json.loads(path.read_text("utf-8"))
            version, name, values = description["format"], description["model"], description["config"]
        except FileNotFoundError:
            raise RunFolderError(f"{folder}: not a run folder: no config.json there; check the path") from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path}: not a throughtime configuration: {error!r}; restore the file") from None
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
