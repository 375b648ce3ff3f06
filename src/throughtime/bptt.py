"""Backpropagation through time, to be trained with and looked at.

The names are handed on when they are first asked for, from the floors where they live.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ClippedGradients": "recurrence.gradients",
    "Derivation": "recurrence.derivation",
    "Flow": "recurrence.flow",
    "MemoryBudget": "recurrence",
    "OnlineState": "recurrence.online",
    "RealTimeRecurrentLearning": "recurrence.online",
    "SequenceGradients": "recurrence.gradients",
    "StepGradients": "recurrence.gradients",
    "Truncated": "recurrence",
    "clip_by_sequence": "recurrence.gradients",
    "explain": "recurrence.derivation",
    "flow": "inspection.flow",
    "information_flow": "recurrence.regulariser",
    "sequence_gradients": "recurrence.gradients",
    "step_gradients": "recurrence.gradients",
    "truncated": "recurrence",
}

__all__ = [  # noqa: F822  # handed on lazily
    "ClippedGradients",
    "Derivation",
    "Flow",
    "MemoryBudget",
    "OnlineState",
    "RealTimeRecurrentLearning",
    "SequenceGradients",
    "StepGradients",
    "Truncated",
    "clip_by_sequence",
    "explain",
    "flow",
    "information_flow",
    "sequence_gradients",
    "step_gradients",
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
