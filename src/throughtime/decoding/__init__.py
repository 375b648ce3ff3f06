"""From probabilities to sequences: greedy, random and beam search on any model that has `step`, and text on top of it.

The names are handed on when they are first asked for: reading a configuration costs no import of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.decoding.beam import beam_search
    from throughtime.decoding.conditioned import Conditioned, given
    from throughtime.decoding.config import GenerationConfig
    from throughtime.decoding.engines import explain
    from throughtime.decoding.ensemble import Ensemble
    from throughtime.decoding.filters import Filters
    from throughtime.decoding.hypotheses import Hypotheses
    from throughtime.decoding.lengths import LengthError, length_error
    from throughtime.decoding.of_source import OfSource
    from throughtime.decoding.protocol import Attending, Masking, Ranked, Ranking, Reading, Reordering, Steppable
    from throughtime.decoding.sampling import Decoded, greedy, sample, stream
    from throughtime.decoding.search import Search
    from throughtime.decoding.search_config import SearchConfig
    from throughtime.decoding.stop import BernoulliHalt, EndSymbol, PredictedLength
    from throughtime.decoding.text import Piece, Text, prompt_text, stream_text, write_texts

_HOMES = {
    "Ensemble": "ensemble",
    "Attending": "protocol",
    "Masking": "protocol",
    "Ranked": "protocol",
    "Ranking": "protocol",
    "OfSource": "of_source",
    "BernoulliHalt": "stop",
    "Conditioned": "conditioned",
    "GenerationConfig": "config",
    "Filters": "filters",
    "Hypotheses": "hypotheses",
    "LengthError": "lengths",
    "PredictedLength": "stop",
    "Reading": "protocol",
    "Reordering": "protocol",
    "Search": "search",
    "SearchConfig": "search_config",
    "Steppable": "protocol",
    "beam_search": "beam",
    "given": "conditioned",
    "length_error": "lengths",
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
    "Attending",
    "BernoulliHalt",
    "Conditioned",
    "Decoded",
    "EndSymbol",
    "Ensemble",
    "Filters",
    "GenerationConfig",
    "Hypotheses",
    "LengthError",
    "Masking",
    "OfSource",
    "Piece",
    "PredictedLength",
    "Ranked",
    "Ranking",
    "Reading",
    "Reordering",
    "Search",
    "SearchConfig",
    "Steppable",
    "Text",
    "beam_search",
    "explain",
    "given",
    "greedy",
    "length_error",
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
