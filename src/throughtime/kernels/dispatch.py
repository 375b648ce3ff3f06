"""Which engine runs a recurrence, and an account of why not a faster one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from throughtime.errors import EngineError, UsageError
from throughtime.kernels.aten import TorchEngine
from throughtime.kernels.native.engine import NativeEngine
from throughtime.kernels.recurrence import Engine, Recurrence, Unfolded
from throughtime.kernels.reference import ReferenceEngine

# Fastest first. `auto` takes the first that does not refuse; the reference refuses nothing.
ENGINES: tuple[Engine, ...] = (NativeEngine(), TorchEngine(), ReferenceEngine())


def engine_names() -> tuple[str, ...]:
    """The values that `engine=` takes."""
    return ("auto", *(engine.name for engine in ENGINES))


def check_engine_name(name: str, *, who: str) -> str:
    """`name`, when there is such an engine.

    Raises:
        EngineError: there is none of that name.
    """
    if name != "auto" and name not in engine_names():
        raise EngineError(f"{who}: engine must be one of {', '.join(engine_names())}, got {name!r}")
    return name


def run(call: Recurrence, engine: str = "auto") -> Unfolded:
    """Run a recurrence on the engine of that name, or on the fastest that can.

    Raises:
        EngineError: an engine asked for by name cannot run it; nothing else is tried.
        UsageError: the call has resets in a direction that reads sequences from their end.
    """
    chosen, refused = _choose(call, check_engine_name(engine, who="kernels.run"))
    if chosen is None:
        raise EngineError(
            f"engine={engine!r} cannot run this: {dict(refused)[engine]}; engine='auto' takes one that can"
        )
    return chosen.run(call)


def _choose(call: Recurrence, engine: str) -> tuple[Engine | None, list[tuple[str, str]]]:
    """The first engine that may and can run the call, and the name and reason of each that was passed over."""
    if call.reverse and call.resets is not None:
        raise UsageError(
            "resets: a sequence cannot begin anew in a direction that reads it from its end; "
            "use lengths, one sequence to a row"
        )
    refused: list[tuple[str, str]] = []
    for candidate in ENGINES:
        if engine not in ("auto", candidate.name):
            reason: str | None = f"engine={engine!r} was asked for"
        else:
            reason = candidate.refusal(call)
        if reason is None:
            return candidate, refused
        refused.append((candidate.name, reason))
    return None, refused


@dataclass(frozen=True)
class Choice:
    """For one layer and direction: the engine that would run, and why each faster one would not."""

    where: str
    engine: str
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons = "".join(f"\n    not {name}: {reason}" for name, reason in self.refused)
        return f"{self.where}: {self.engine}{reasons}"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found, a `Choice` for each layer and direction; printed, it is a short table."""

    choices: tuple[Choice, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that would run, in the order of layers and directions."""
        return tuple(choice.engine for choice in self.choices)

    def __str__(self) -> str:
        return "\n".join(str(choice) for choice in self.choices)


def explain(layer: Any, inputs: Any, *, engine: str | None = None, **arguments: Any) -> Explanation:
    """Which engine would run `layer(inputs, **arguments)`, and why not a faster one; nothing is computed.

    `layer` is any of `tt.nn.RNN`, `LSTM`, `GRU`, or a `tt.Cell` (then `inputs` are (T, B, I), as for `tt.unfold`).
    `engine` asks what would happen with another `engine=` than the layer's own. No random number is used up.

    Raises:
        UsageError: `layer` is neither.
        EngineError: there is no engine of that name.
    """
    if not hasattr(layer, "recurrences"):
        raise UsageError(
            f"explain: expected a tt.nn layer or a tt.Cell, got {type(layer).__name__}; "
            "tt.nn.replace_torch_layers(module) makes tt.nn layers of torch's"
        )
    wanted = check_engine_name(layer.engine if engine is None else engine, who="explain")
    device = inputs.data.device  # of a tensor, and of a PackedSequence
    # Masks are drawn as for a real call; the generators are put back, so that asking changes no result.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        named: list[tuple[str, Recurrence]] = list(layer.recurrences(inputs, **arguments))
    return Explanation(tuple(_choice(where, call, wanted) for where, call in named))


def _choice(where: str, call: Recurrence, engine: str) -> Choice:
    chosen, refused = _choose(call, engine)
    return Choice(where, "none" if chosen is None else chosen.name, tuple(refused))
