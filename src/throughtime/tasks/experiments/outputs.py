"""What a design puts out for whole sequences, a part of them at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.data.sequences import Sequences
from throughtime.layers import in_evaluation_mode
from throughtime.models import Design

# Sequences that are computed at once.
_ROWS = 256


def outputs(model: Design, data: Sequences) -> Tensor:
    """o(1..T) of each sequence, (T, N, O), without dropout and without gradients."""
    with torch.no_grad(), in_evaluation_mode(model):
        parts = []
        for rows in torch.split(torch.arange(len(data)), _ROWS):
            part = data.select(rows)
            o = model(part.x, lengths=part.lengths)  # (T of this part, rows, O)
            parts.append(torch.nn.functional.pad(o, (0, 0, 0, 0, 0, len(data.targets) - len(o))))
    return torch.cat(parts, 1)
