"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import throughtime
from throughtime.kernels.native import library


def describe() -> dict[str, Any]:
    """Processor, threads, versions, and the native engine's instruction set or why there is none."""
    missing = library.missing_reason()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "throughtime": throughtime.__version__,
        "native": library.load().__name__.rpartition("_native_")[2] if missing is None else None,
        "native_missing": missing,
    }


@contextmanager
def threads(number: int | None) -> Iterator[int]:
    """Compute with so many threads, by default with as many as torch does; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
