"""The global random generators of torch, NumPy and Python as tensors, so that a checkpoint can hold them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed torch (every device), NumPy's global generator and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The state of every global generator that code on `device` may draw from."""
    _, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert kind == "MT19937"
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "gauss": torch.tensor([cached, float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set every generator to the state that `random_tensors` gave.

    A run that moved between a CPU and a CUDA device has no state of the new device's generator; that one stays.
    """
    torch.set_rng_state(tensors["torch"].cpu())
    cached, gauss = tensors["gauss"].tolist()
    position, has_gauss = tensors["numpy_position"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), None if gauss != gauss else gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].cpu(), device)


@contextmanager
def preserved_random(device: torch.device) -> Iterator[None]:
    """Whatever the block draws, the generators stand afterwards as they stood before."""
    before = random_tensors(device)
    try:
        yield
    finally:
        restore_random(before, device)
