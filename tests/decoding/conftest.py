"""Models that are no networks: decoding knows them by `Steppable` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from throughtime.decoding import beam
from throughtime.kernels.native import library


@pytest.fixture(scope="module", params=["native", "torch"])
def bookkeeping(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which a beam is kept, one after the other; the second is the one of a machine without compiler."""
    if request.param == "native":
        if reason := library.missing_reason():
            pytest.skip(reason)
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "library", SimpleNamespace(missing_reason=lambda: "switched off"))
        yield


class FixedModel:
    """The same distribution at every step; counts what is asked of it."""

    border_id = 0

    def __init__(self, probabilities: list[float]) -> None:
        self.logits = torch.tensor([math.log(p) if p else -math.inf for p in probabilities], dtype=torch.float64)
        self.vocabulary_size = len(probabilities)
        self.fed: list[list[int]] = []

    def initial_state(self, batch_size: int) -> int:
        return 0

    def step(self, tokens: Tensor, state: int) -> tuple[Tensor, int]:
        self.fed.append(tokens.tolist())
        return self.logits.expand(len(tokens), -1), state + 1


class CountingModel(FixedModel):
    """After token n comes n + 1; the state counts the tokens read, and a prompt can be read at once."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__([1 / vocabulary_size] * vocabulary_size)
        self.reads: list[int] = []

    def step(self, tokens: Tensor, state: int) -> tuple[Tensor, int]:
        super().step(tokens, state)
        return self._after(tokens), state + 1

    def read(self, tokens: Tensor, state: int) -> tuple[Tensor, int]:
        self.reads.append(len(tokens))
        return self._after(tokens[-1]), state + len(tokens)

    def _after(self, tokens: Tensor) -> Tensor:
        following = (tokens + 1) % self.vocabulary_size
        return torch.nn.functional.one_hot(following, self.vocabulary_size).double() * 50


@pytest.fixture
def fixed() -> type[FixedModel]:
    return FixedModel


@pytest.fixture
def counting() -> type[CountingModel]:
    return CountingModel
