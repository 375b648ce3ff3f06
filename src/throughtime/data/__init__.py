"""Text in: sources, tokenizers, memory-mapped tokens, and streams of batches; sequences of numbers for the designs.

The names are handed on when they are first asked for, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.data.cache import cache_root
    from throughtime.data.pair_batches import PairBatch, PairSource, PairTokens
    from throughtime.data.pairs import Pair, TextsSource, read_pairs, read_parallel, read_sources, split_by_source
    from throughtime.data.paths import stdlib_files
    from throughtime.data.sequences import GeneratedSource, Sequences, TensorSource
    from throughtime.data.sources import Document, TextSource
    from throughtime.data.streaming import StreamDecoder
    from throughtime.data.streams import Batch, EvaluationStreams, TokenStreams
    from throughtime.data.tokenizers import KINDS, Prompt, Tokenizer
    from throughtime.data.tokens import TokenFile, prepare

_HOMES = {
    "cache_root": "cache",
    "PairBatch": "pair_batches",
    "PairSource": "pair_batches",
    "PairTokens": "pair_batches",
    "Pair": "pairs",
    "TextsSource": "pairs",
    "read_pairs": "pairs",
    "read_parallel": "pairs",
    "read_sources": "pairs",
    "split_by_source": "pairs",
    "stdlib_files": "paths",
    "GeneratedSource": "sequences",
    "Sequences": "sequences",
    "TensorSource": "sequences",
    "Document": "sources",
    "TextSource": "sources",
    "StreamDecoder": "streaming",
    "Batch": "streams",
    "EvaluationStreams": "streams",
    "TokenStreams": "streams",
    "KINDS": "tokenizers",
    "Prompt": "tokenizers",
    "Tokenizer": "tokenizers",
    "TokenFile": "tokens",
    "prepare": "tokens",
}

__all__ = [
    "KINDS",
    "Batch",
    "Document",
    "EvaluationStreams",
    "GeneratedSource",
    "Pair",
    "PairBatch",
    "PairSource",
    "PairTokens",
    "Prompt",
    "Sequences",
    "StreamDecoder",
    "TensorSource",
    "TextSource",
    "TextsSource",
    "TokenFile",
    "TokenStreams",
    "Tokenizer",
    "cache_root",
    "prepare",
    "read_pairs",
    "read_parallel",
    "read_sources",
    "split_by_source",
    "stdlib_files",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
