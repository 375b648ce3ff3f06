"""What compiled code takes on trust, as it is handed addresses: types, shapes, layout and place of tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from throughtime.errors import ShapeError


def check_tensor(who: str, tensor: Tensor, shape: Iterable[int], dtype: torch.dtype = torch.float32) -> None:
    """See that a tensor is what compiled code expects.

    Raises:
        ShapeError: `tensor`, called `who`, is of another shape or type, not contiguous, or not on the CPU.
    """
    shape = tuple(shape)
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
        raise ShapeError(
            f"{who} must be {shape} {dtype}, contiguous, on the CPU, got {tuple(tensor.shape)} {tensor.dtype} "
            f"{'' if tensor.is_contiguous() else 'not contiguous '}on {tensor.device}"
        )


def float_tensor(*shape: int) -> Tensor:
    """An uninitialised float32 tensor on the CPU, whatever the defaults of type and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
