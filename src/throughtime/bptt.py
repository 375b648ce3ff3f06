"""Backpropagation through time, to be trained with and looked at.

The names are handed on when they are first asked for, from the floors where they live.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Derivation": "recurrence.derivation",
    "Flow": "recurrence.flow",
    "MemoryBudget": "recurrence",
    "OnlineState": "recurrence.online",
    "RealTimeRecurrentLearning": "recurrence.online",
    "Truncated": "recurrence",
    "explain": "recurrence.derivation",
    "flow": "inspection.flow",
    "information_flow": "recurrence.regulariser",
    "truncated": "recurrence",
}

__all__ = [  # noqa: F822  # handed on lazily
    "Derivation",
    "Flow",
    "MemoryBudget",
    "OnlineState",
    "RealTimeRecurrentLearning",
    "Truncated",
    "explain",
    "flow",
    "information_flow",
    "truncated",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"throughtime.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
