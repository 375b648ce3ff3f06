"""Watching operations costs what watching costs, and no more."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from typing import NamedTuple

import torch
import throughtime as tt


class State(NamedTuple):
    h: torch.Tensor


class Cell(tt.Cell):
    State = State

    def __init__(self):
        super().__init__(3, 3)
        self.W = torch.nn.Linear(3, 3)

    def step(self, projected, state):
        return State(torch.tanh(projected + self.W(state.h)))


cell, inputs = Cell(), torch.randn(20, 2, 3)
tt.unfold(cell, inputs)
tt.unfold(cell, inputs, checkpoint=tt.bptt.MemoryBudget(100_000))
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_a_first_look_into_a_step_does_not_import_the_compiler() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
