"""metrics.jsonl: one JSON object a line, and the same numbers for TensorBoard when asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from throughtime.errors import ConfigError
from throughtime.storage import storage_errors, write_file

Record = dict[str, Any]


class MetricsLog:
    """Appends records to `path`; only the main process has one.

    A record has "kind" ("train", "evaluation", "flow"), "step", and numbers. Every line is flushed when it is written.
    """

    def __init__(self, path: Path, *, after_step: int, tensorboard: Path | None = None) -> None:
        """Open the log for steps past `after_step`: lines that a killed run wrote beyond its checkpoint go."""
        self.path = path
        self._board = None if tensorboard is None else _summary_writer(tensorboard, after_step)
        kept = [record for record in read_metrics(path) if record["step"] <= after_step] if after_step else []
        write_file(path, "".join(json.dumps(record) + "\n" for record in kept))
        with storage_errors(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Append one record.

        Raises:
            StorageError: the disk is full, read-only or gone.
        """
        with storage_errors(self.path):
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        with storage_errors(self.path):
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records: list[Record] = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "kind" in record and "step" in record:
            records.append(record)
    return records


def _summary_writer(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "training.tensorboard: TensorBoard is not installed; pip install 'throughtime[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=after_step + 1)
