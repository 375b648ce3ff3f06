"""What every test may use: the real data where it is, and a profile for hypothesis that suits shared machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

_jaxtyped = jaxtyping.jaxtyped
_made: set[CodeType] = set()


def jaxtyped_once(*, typechecker: Any) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped`; of a function within a function, the first that is made is checked, and no other.

    Such a function is made at every call of the one around it, and each time its check would be compiled: a
    millisecond, more than most of them compute.
    """

    def decorate(function: Any) -> Any:
        if "<locals>" in getattr(function, "__qualname__", "") and isinstance(function, FunctionType):
            if function.__code__ in _made:
                return function
            _made.add(function.__code__)
        return _jaxtyped(function, typechecker=typechecker)

    return decorate


# Shapes and types of the tensor floors are checked in every call of every test (not in programs that tests start).
jaxtyping.jaxtyped = jaxtyped_once  # what the hook puts before every function
jaxtyping.install_import_hook(
    [f"throughtime.{name}" for name in ("kernels", "cells", "recurrence", "layers", "nn")], "beartype.beartype"
)

# Tests run side by side: more threads than cores wait for each other, a hundred times longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Timing never decides a test: a shared machine may be slow at any moment.
settings.register_profile("throughtime", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("throughtime")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (or $THROUGHTIME_DATA); tests that need it skip without it."""
    folder = Path(os.environ.get("THROUGHTIME_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set THROUGHTIME_DATA to its folder")
    return folder


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts run without coverage, for those that are sent a signal.

    An exception that a signal raises in the midst of coverage's tracer leaves its lock taken: they would hang.
    """
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test session prepares texts in a cache of its own, never in the user's."""
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Annotations are not checked: for tests of what a function itself says to arguments that do not fit."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
