from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from throughtime.training.random_state import preserved_random, random_tensors, restore_random, seed_everything

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [
        *torch.rand(3).tolist(),
        *torch.randn(5).tolist(),
        random.random(),
        random.gauss(0, 1),
        *np.random.rand(2).tolist(),
        float(np.random.standard_normal()),
    ]


@given(st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_every_generator_goes_on_where_it_was(seed: int, before: int) -> None:
    seed_everything(seed)
    for _ in range(before):
        draws()
    random.gauss(0, 1)  # an odd number: half of a pair stays in the generator
    np.random.standard_normal()
    kept = load(save(random_tensors(CPU)))
    expected = [draws(), draws()]
    seed_everything(seed + 1)
    restore_random(kept, CPU)
    assert [draws(), draws()] == expected


def test_the_same_seed_gives_the_same_draws() -> None:
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first


def test_what_a_block_draws_is_not_noticed_after_it() -> None:
    seed_everything(3)
    expected = draws()
    seed_everything(3)
    with preserved_random(CPU):
        draws()
    assert draws() == expected
