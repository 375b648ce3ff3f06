"""The same time steps, fast: engines, and one dispatch that can explain itself."""

from throughtime.kernels.dispatch import Choice, Explanation, check_engine_name, engine_names, explain, run
from throughtime.kernels.recurrence import Engine, Lookup, Recurrence, StepEquations, Unfolded

__all__ = [
    "Choice",
    "Engine",
    "Explanation",
    "Lookup",
    "Recurrence",
    "StepEquations",
    "Unfolded",
    "check_engine_name",
    "engine_names",
    "explain",
    "run",
]
