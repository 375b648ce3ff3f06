"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation_mode(module: object) -> Iterator[None]:
    """No dropout within the block, and every part of the module in its own mode afterwards.

    What is no `torch.nn.Module` has no modes, and is left alone.
    """
    training = [part for part in module.modules() if part.training] if isinstance(module, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
