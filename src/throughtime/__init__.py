"""Recurrent sequence modelling: RNN, LSTM and GRU, trained through time, correct, fast and open to the eye.

Names are handed on lazily, so that `import throughtime` costs nothing until one is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from throughtime import bptt, decoding, inspection, kernels, models, nn, tasks, universal
    from throughtime.cells import Cell
    from throughtime.errors import ThroughtimeError
    from throughtime.recurrence import unfold

_MODULES = ("bptt", "decoding", "inspection", "kernels", "models", "nn", "tasks", "universal")
_NAMES = {
    "Cell": "throughtime.cells",
    "ThroughtimeError": "throughtime.errors",
    "unfold": "throughtime.recurrence",
}

__all__ = [
    "Cell",
    "ThroughtimeError",
    "bptt",
    "decoding",
    "inspection",
    "kernels",
    "models",
    "nn",
    "tasks",
    "unfold",
    "universal",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"throughtime.{name}")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'throughtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
