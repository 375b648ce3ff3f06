"""Memory that the engine keeps: fresh pages cost more than the step that fills them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from throughtime.kernels.native import library

# Elements of a tensor below which new memory costs no more than taking up memory of earlier calls by way of DLPack.
_WORTH_KEEPING = 1 << 15


def kept_memory(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of the type of `like`, large ones on the CPU in memory of earlier calls.

    Without the native engine, and elsewhere, it is an ordinary one.
    """
    kind = {torch.float32: "float32", torch.float64: "float64"}.get(like.dtype)
    if math.prod(shape) < _WORTH_KEEPING or kind is None or not like.is_cpu or library.missing_reason():
        return like.new_empty(shape)
    tensor: Tensor = torch.utils.dlpack.from_dlpack(library.load().workspace(kind, shape))
    return tensor
