"""Uniform numbers for the rows of a batch, each row with a stream of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import ConfigError

_AT_ONCE = 64


def new_seed() -> int:
    """A seed from the system's entropy, short enough to be typed again."""
    return int(np.random.SeedSequence().generate_state(1)[0])


class RowUniforms:
    """Uniform numbers in [0, 1) for each of `rows` rows, in float64.

    Row i's numbers depend on the seed and on i alone: not on how many rows there are, not on the device. A
    `torch.Generator` as seed gives one number, which is the seed.

    Raises:
        ConfigError: a seed that is no whole number, or below zero.
    """

    def __init__(self, rows: int, seed: int | torch.Generator) -> None:
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise ConfigError(f"decoding: a seed must be a whole number >= 0, or a torch.Generator, got {seed!r}")
        streams = [np.random.SeedSequence(seed, spawn_key=(row,)) for row in range(rows)]
        self._generators = [np.random.Generator(np.random.PCG64(stream)) for stream in streams]
        self._block = np.empty((rows, 0))
        self._used = 0

    def draw(self) -> Tensor:
        """The next number of each row, (B,)."""
        if self._used == self._block.shape[1]:
            self._block = np.stack([generator.random(_AT_ONCE) for generator in self._generators])
            self._used = 0
        self._used += 1
        return torch.from_numpy(self._block[:, self._used - 1].copy())

    def block(self, steps: int) -> Tensor:
        """The next `steps` numbers of each row, (B, steps): what as many calls of `draw` would give."""
        held = self._block[:, self._used : self._used + steps]
        self._used += held.shape[1]
        fresh = [generator.random(steps - held.shape[1]) for generator in self._generators]
        return torch.from_numpy(np.concatenate([held, np.stack(fresh)], axis=1))
