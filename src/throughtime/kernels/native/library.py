"""The compiled code of the native engine: which instruction sets there are, and the one that this processor gets.

Each is a Python module, built from the same C++ sources with other flags; nothing is loaded before it is asked for.
The environment variable `THROUGHTIME_ISA`, read once, names one, for tests and comparisons; `none` switches it off.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

from throughtime.errors import EngineError

# Fastest first. The levels are those of the x86-64 psABI; v4_vnni is v4 with AVX512-VNNI, v4_bf16 has AVX512-BF16 too.
ISAS = ("v4_bf16", "v4_vnni", "v4", "v3", "v2", "neon")

_VARIABLE = "THROUGHTIME_ISA"
_NOT_BUILT = (
    "the native engine is not built; where a C++20 compiler and Python's headers are: "
    "pip install --force-reinstall --no-deps --no-cache-dir throughtime"
)


@functools.cache
def _asked() -> str:
    return os.environ.get(_VARIABLE, "")


@functools.cache
def built_isas() -> tuple[str, ...]:
    """The instruction sets that this installation has code for, fastest first."""
    return tuple(isa for isa in ISAS if _is_built(f"_native_{isa}"))


@functools.cache
def available_isas() -> tuple[str, ...]:
    """The instruction sets that are built and that this processor runs, fastest first.

    Raises:
        EngineError: the file that tells the processor's is damaged.
    """
    if not built_isas():
        return ()
    return tuple(isa for isa in _import("_cpu").supported_isas() if isa in built_isas())


@functools.cache
def load_isa(isa: str) -> ModuleType:
    """The engine's code for the instruction set of that name.

    Raises:
        EngineError: there is no such instruction set, it is not built, this processor does not run it, or its file is
            damaged.
    """
    if isa not in ISAS:
        raise EngineError(f"native engine: the instruction set must be one of {', '.join(ISAS)}, got {isa!r}")
    if not built_isas():
        raise EngineError(_NOT_BUILT)
    if isa not in built_isas():
        raise EngineError(
            f"native engine: {isa} was asked for, {', '.join(built_isas())} is built; "
            "reinstall throughtime with THROUGHTIME_NATIVE_ISAS=all"
        )
    if isa not in available_isas():
        there = ", ".join(available_isas()) or "nothing that is built"
        raise EngineError(f"native engine: {isa} was asked for, this processor runs {there}")
    return _import(f"_native_{isa}")


@functools.cache
def load() -> ModuleType:
    """The engine's code for the fastest instruction set here, or for the one that `THROUGHTIME_ISA` names.

    Raises:
        EngineError: there is none, or the one named cannot be had.
    """
    if _asked() == "none":
        raise EngineError(f"{_VARIABLE}=none switches the native engine off")
    if _asked():
        try:
            return load_isa(_asked())
        except EngineError as error:
            raise EngineError(f"{_VARIABLE}={_asked()}: {error}; without the variable the fastest is taken") from error
    if not built_isas():
        raise EngineError(_NOT_BUILT)
    if not available_isas():
        raise EngineError(f"the native engine is built for {', '.join(built_isas())}; this processor runs none of them")
    return load_isa(available_isas()[0])


@functools.cache
def missing_reason() -> str | None:
    """Why the native engine cannot be used here, in one line; None where it can.

    Raises:
        EngineError: `THROUGHTIME_ISA` names an instruction set that cannot be had: another is never taken in its place.
    """
    try:
        load()
    except EngineError as error:
        if _asked() not in ("", "none"):
            raise
        return str(error)
    return None


def _is_built(module: str) -> bool:
    spec = importlib.util.find_spec(f"{__package__}.{module}")
    # An editable installation also names what only an earlier build had.
    return spec is not None and spec.origin is not None and os.path.exists(spec.origin)


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__package__}.{module}")
    except ImportError as error:
        raise EngineError(f"native engine: {module} cannot be loaded ({error}); reinstall throughtime") from error
