"""Sequences that begin in the middle of a batch, for engines that know only whole ones.

Cutting the batch at every step where some row begins anew, and clearing that row's state there, gives the same
result: a sequence split in two with its state carried over is one sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from throughtime.kernels.recurrence import Recurrence, Unfolded


def run_in_pieces(call: Recurrence, run: Callable[[Recurrence], Unfolded]) -> Unfolded:
    """Run a call that has `resets` by an engine's `run` that takes none."""
    assert call.resets is not None
    steps = call.inputs.shape[0]
    starts = sorted({0, *call.resets.any(dim=1).nonzero().flatten().tolist()})
    outputs, state = [], call.state
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        fresh = call.resets[start][:, None]  # (B, 1)
        state = type(state)(*(torch.where(fresh, 0, field) for field in state))
        lengths = None if call.lengths is None else (call.lengths - start).clamp(0, end - start)
        piece = run(replace(call, inputs=call.inputs[start:end], state=state, lengths=lengths, resets=None))
        outputs.append(piece.outputs)
        state = piece.final_state
    return Unfolded(torch.cat(outputs), state)
