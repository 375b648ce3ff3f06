"""The lengths of sequences and their borders, checked at the door."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.errors import ShapeError


def checked_lengths(lengths: Tensor | Sequence[int] | None, inputs: Tensor, *, who: str) -> Tensor | None:
    """`lengths` as an integer tensor (B,) on the inputs' device; inputs are (T, B, ...).

    Raises:
        ShapeError: not one whole number for each sequence, or one outside 0..T.
    """
    if lengths is None:
        return None
    steps, batch = inputs.shape[:2]
    if isinstance(lengths, Tensor):
        tensor = lengths
    else:
        try:
            tensor = torch.as_tensor(lengths)
        except (TypeError, ValueError, RuntimeError):
            raise ShapeError(f"{who}: lengths must be {batch} whole numbers, got {lengths!r}") from None
        # An empty list becomes a tensor of floats.
        tensor = tensor if tensor.numel() else tensor.to(torch.int64)
    if tensor.shape != (batch,) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ShapeError(
            f"{who}: lengths must be {batch} whole numbers, one for each sequence of the batch, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if torch.compiler.is_compiling():
        # A graph is made without the numbers: it sees to them itself, when it runs.
        within = ((tensor >= 0) & (tensor <= steps)).all()
        torch._assert_async(within, f"{who}: lengths must lie in 0..T, the time steps of the inputs")
    elif batch and (int(tensor.min()) < 0 or int(tensor.max()) > steps):
        raise ShapeError(
            f"{who}: lengths must lie in 0..{steps}, the time steps of the inputs, "
            f"got {int(tensor.min())}..{int(tensor.max())}"
        )
    return tensor.to(device=inputs.device, dtype=torch.int64)


def checked_resets(resets: Tensor | None, inputs: Tensor, *, who: str, lengths: Tensor | None = None) -> Tensor | None:
    """`resets` as a boolean tensor (T, B) on the inputs' device; those behind a sequence's length are left out.

    Raises:
        ShapeError: not boolean, or not of the inputs' first two axes.
    """
    if resets is None:
        return None
    if resets.dtype != torch.bool or resets.shape != inputs.shape[:2]:
        raise ShapeError(
            f"{who}: resets must be boolean of shape {tuple(inputs.shape[:2])}, one for each step and sequence, "
            f"got {resets.dtype} of shape {tuple(resets.shape)}"
        )
    resets = resets.to(inputs.device)
    if lengths is None:
        return resets
    return resets & inside(lengths, inputs)  # (T, B)


def inside(lengths: Tensor | None, inputs: Tensor) -> Tensor:
    """Whether step t is one of sequence b, (T, B); all are, where there are no lengths. Inputs are (T, B, ...)."""
    steps, batch = inputs.shape[:2]
    t = torch.arange(steps, device=inputs.device)[:, None]  # (T, 1)
    return (t < steps).expand(steps, batch) if lengths is None else t < lengths
