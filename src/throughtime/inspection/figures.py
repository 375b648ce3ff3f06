"""Figures as files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.storage import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What would say when the file was made.
_DATES: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the ending of `path` says; the same figure is the same file.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "throughtime", "svg.fonttype": "path"}):
        figure.savefig(picture, format=kind, metadata=_DATES.get(kind))
    write_file(path, picture.getvalue())
