"""One recurrent layer against `torch.nn`'s, with the same weights, over a grid of sizes.

Before anything is timed, both sides' outputs and gradients are compared: a wrong result has no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime import kernels, nn
from throughtime.errors import FailureError
from throughtime.tasks.benchmarks.timing import Contest, compete, multiply_add_peak

FORWARD, TRAINING = "forward", "forward+backward"

_SEED = 0
# The norm of the difference to torch.nn's fp32 result, by that of the result.
_TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class _Cell:
    ours: Callable[[int, int], nn.RecurrentLayer]
    theirs: Callable[[int, int], torch.nn.Module]
    blocks: int  # of H rows in each weight matrix


_CELLS = {
    "rnn": _Cell(nn.RNN, torch.nn.RNN, 1),
    "lstm": _Cell(nn.LSTM, torch.nn.LSTM, 4),
    "gru": _Cell(nn.GRU, torch.nn.GRU, 3),
}
CELLS = tuple(_CELLS)


@dataclass(frozen=True)
class Case:
    """One layer of H units with as many inputs, on B sequences of T steps; ragged: of 1 to T steps, in no order."""

    cell: str
    hidden: int
    batch: int
    steps: int = 100
    passes: str = TRAINING
    precision: str = "fp32"
    ragged: bool = False

    def __str__(self) -> str:
        ragged = ", ragged" if self.ragged else ""
        return f"{self.cell.upper()} H {self.hidden} B {self.batch}, {self.passes}, {self.precision}{ragged}"

    def lengths(self) -> Tensor:
        """The steps of each sequence, (B,)."""
        if not self.ragged:
            return torch.full((self.batch,), self.steps)
        return torch.randint(1, self.steps + 1, (self.batch,), generator=torch.Generator().manual_seed(_SEED))

    def operations(self) -> float:
        """Multiplications and additions of the matrix products; the backward pass has twice those of the forward."""
        steps = int(self.lengths().sum())
        forward = 2.0 * steps * _CELLS[self.cell].blocks * self.hidden * (2 * self.hidden)
        return forward if self.passes == FORWARD else 3 * forward


@dataclass(frozen=True)
class Row:
    """What was measured of a case. Errors are against `torch.nn` in fp32, the peak is in operations per second."""

    case: Case
    engine: str
    contest: Contest
    peak: float | None
    error: float
    theirs_error: float

    @property
    def speeds(self) -> tuple[float, float]:
        """Operations per second, ours and theirs."""
        return self.case.operations() / self.contest.ours, self.case.operations() / self.contest.theirs

    @property
    def shares(self) -> tuple[float, float] | None:
        """Both speeds as shares of the peak."""
        return None if self.peak is None else (self.speeds[0] / self.peak, self.speeds[1] / self.peak)

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        ours, theirs = self.shares or (None, None)
        return {
            **asdict(self.case),
            "engine": self.engine,
            "ours_seconds": self.contest.ours,
            "torch_seconds": self.contest.theirs,
            "ratio": self.contest.ratio,
            "lowest_ratio": self.contest.lowest,
            "highest_ratio": self.contest.highest,
            "rounds": self.contest.rounds,
            "ours_gflops": self.speeds[0] / 1e9,
            "torch_gflops": self.speeds[1] / 1e9,
            "peak_gflops": None if self.peak is None else self.peak / 1e9,
            "ours_share_of_peak": ours,
            "torch_share_of_peak": theirs,
            "ours_error": self.error,
            "torch_error": self.theirs_error,
        }


class Side:
    """One implementation of a case: its layer, and a step that can be repeated."""

    def __init__(self, case: Case, layer: torch.nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        self.case = case
        self.layer = layer
        self.inputs = inputs.requires_grad_(case.passes == TRAINING)  # (T, B, I)
        self.lengths = case.lengths()  # (B,)
        # Of the outputs, (T, B, H), in the type that they may have.
        self.gradients = {dtype: gradient.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        self.leaves = {"inputs": inputs, **dict(layer.named_parameters())}

    def step(self, precision: str | None = None) -> tuple[Tensor, ...]:
        """The outputs, and in training the gradients of inputs and parameters; in the case's precision or another."""
        with torch.set_grad_enabled(self.case.passes == TRAINING), self.autocast(precision):
            outputs = self._outputs()
        if self.case.passes == FORWARD:
            return (outputs,)
        leaves = tuple(self.leaves.values())
        return (outputs, *torch.autograd.grad(outputs, leaves, self.gradients[outputs.dtype]))

    def named_step(self, precision: str | None = None) -> dict[str, Tensor]:
        """`step`, its results by name."""
        names = ["outputs", *[f"gradient of {name}" for name in self.leaves if self.case.passes == TRAINING]]
        return {name: result.detach() for name, result in zip(names, self.step(precision), strict=True)}

    def autocast(self, precision: str | None = None) -> torch.autocast:
        """As the case's precision, or another one, wants it."""
        return torch.autocast("cpu", torch.bfloat16, enabled=(precision or self.case.precision) == "bf16")

    def _outputs(self) -> Tensor:
        outputs: Tensor
        if not self.case.ragged:
            outputs, _ = self.layer(self.inputs)
        elif isinstance(self.layer, nn.RecurrentLayer):
            outputs, _ = self.layer(self.inputs, lengths=self.lengths)
        else:
            packed, _ = self.layer(pack_padded_sequence(self.inputs, self.lengths, enforce_sorted=False))
            outputs, _ = pad_packed_sequence(packed, total_length=self.case.steps)
        return outputs


def sides(case: Case) -> tuple[Side, Side]:
    """Ours and `torch.nn`'s, with the same weights, inputs and gradient of the outputs."""
    cell, size = _CELLS[case.cell], case.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        theirs, ours = cell.theirs(size, size), cell.ours(size, size)
        inputs = torch.randn(case.steps, case.batch, size)
        gradient = torch.randn(case.steps, case.batch, size)
    ours.load_state_dict(theirs.state_dict())
    return Side(case, ours, inputs.clone(), gradient), Side(case, theirs, inputs, gradient)


def engine(side: Side) -> str:
    """The engine that runs our side."""
    lengths = side.lengths if side.case.ragged else None
    with torch.set_grad_enabled(side.case.passes == TRAINING), side.autocast():
        (name,) = kernels.explain(side.layer, side.inputs, lengths=lengths).engines
    return name


def measure(case: Case, *, rounds: int, seconds: float) -> Row:
    """Compare both sides' results, then their speed, for so many rounds and seconds at least.

    Raises:
        FailureError: our result is not torch.nn's.
    """
    ours, theirs = sides(case)
    expected = theirs.named_step("fp32")
    error = _checked_error(case, ours.named_step(), expected)
    theirs_error = max(_errors(theirs.named_step(), expected).values())
    del expected
    threads = torch.get_num_threads()
    before = multiply_add_peak(case.precision, threads)
    contest = compete(ours.step, theirs.step, rounds=rounds, seconds=seconds)
    after = multiply_add_peak(case.precision, threads)
    peak = None if before is None or after is None else (before + after) / 2
    return Row(case, engine(ours), contest, peak, error, theirs_error)


def _errors(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """The norm of each difference, by that of the tensor expected."""
    smallest = torch.finfo(torch.float32).tiny
    return {
        name: float((got[name].float() - value).norm() / value.norm().clamp(min=smallest))
        for name, value in expected.items()
    }


def _checked_error(case: Case, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    errors = _errors(got, expected)
    tolerance = _TOLERANCES[case.precision]
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        told = ", ".join(f"{name} by {error:.2g}" for name, error in wrong.items())
        raise FailureError(
            f"bench recurrence: {case}: ours differs from torch.nn's in {told}, expected {tolerance:g} at most; "
            "nothing was timed; please report it with the output of throughtime.kernels.explain"
        )
    return max(errors.values())


def cases(
    cells: Iterable[str],
    hidden: Iterable[int],
    batch: Iterable[int],
    passes: Iterable[str],
    precisions: Iterable[str],
    *,
    steps: int,
    ragged: bool = False,
) -> list[Case]:
    """Every combination, those of one table together."""
    return [
        Case(cell, size, rows, steps, which, precision, ragged)
        for precision, which, cell, size, rows in product(precisions, passes, cells, hidden, batch)
    ]


def bf16_missing() -> str | None:
    """Why bf16 is not worth measuring on this processor; None where it is."""
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return None
    return "this processor has no bf16 instructions (AVX512-BF16 or AMX)"
