"""How good a language model is on a text: nats, bits and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from throughtime.data.streams import EvaluationStreams
from throughtime.data.tokens import TokenFile
from throughtime.errors import DataError


class TextSize(NamedTuple):
    """How much text a stream of tokens stands for."""

    tokens: int
    bytes: int
    characters: int

    @classmethod
    def of(cls, stream: TokenFile) -> TextSize:
        """The predicted tokens of a stream (the ends of documents among them), its bytes and characters.

        Raises:
            DataError: there are no characters in it.
        """
        if not stream.bytes:
            raise DataError(f"data: expected text to predict, got {stream.n_documents} empty documents; give more text")
        return cls(len(stream.tokens) - 1, stream.bytes, stream.characters)


def units(nats_per_token: float, size: TextSize) -> dict[str, float]:
    """A loss in every unit that people compare by.

    bits per byte and per character spread the whole loss over the text's own bytes and characters, so that they
    compare models with different tokenizers; perplexity is e to the nats per token.
    """
    bits = nats_per_token * size.tokens / math.log(2)
    return {
        "bits_per_byte": bits / size.bytes,
        "bits_per_character": bits / size.characters,
        "perplexity": math.exp(min(nats_per_token, 700.0)),
    }


def nats(
    model: nn.Module,
    stream: TokenFile,
    *,
    batch_size: int,
    window: int,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Sequence[float]], list[float]] = list,
) -> float:
    """−log p of the whole stream under the model, per token, in nats; every token is predicted once.

    `total` sums numbers over processes, each of which reads its own part.
    """
    streams = EvaluationStreams(stream, batch_size, window, rank=rank, world_size=world_size)
    device = next(model.parameters()).device
    state, summed, count = None, 0.0, 0
    with torch.inference_mode():
        for batch in streams:
            resets = None if batch.resets is None else batch.resets.to(device)
            losses, state = model(batch.inputs.to(device), state, targets=batch.targets.to(device), resets=resets)
            summed += float(losses.sum())
            count += batch.count
    summed, count_all = total([summed, float(count)])
    return summed / count_all
