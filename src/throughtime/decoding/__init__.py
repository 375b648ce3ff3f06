"""From probabilities to sequences: greedy and random decoding of any model that has `step`, and text on top of it.

The names are handed on when they are first asked for: reading a configuration costs no import of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.decoding.config import GenerationConfig
    from throughtime.decoding.engines import explain
    from throughtime.decoding.filters import Filters
    from throughtime.decoding.protocol import Reading, Steppable
    from throughtime.decoding.sampling import Decoded, greedy, sample, stream
    from throughtime.decoding.stop import EndSymbol
    from throughtime.decoding.text import Piece, Text, prompt_text, stream_text, write_texts

_HOMES = {
    "GenerationConfig": "config",
    "Filters": "filters",
    "Reading": "protocol",
    "Steppable": "protocol",
    "Decoded": "sampling",
    "greedy": "sampling",
    "sample": "sampling",
    "stream": "sampling",
    "EndSymbol": "stop",
    "Piece": "text",
    "Text": "text",
    "explain": "engines",
    "prompt_text": "text",
    "stream_text": "text",
    "write_texts": "text",
}

__all__ = [
    "Decoded",
    "EndSymbol",
    "Filters",
    "GenerationConfig",
    "Piece",
    "Reading",
    "Steppable",
    "Text",
    "explain",
    "greedy",
    "prompt_text",
    "sample",
    "stream",
    "stream_text",
    "write_texts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
