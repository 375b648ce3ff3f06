"""Which of the engine's compiled modules is taken, and what is said when none can be."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from throughtime.errors import EngineError
from throughtime.kernels.native import library

Installation = Callable[..., None]

CACHED = (
    library._asked,
    library.built_isas,
    library.available_isas,
    library.load_isa,
    library.load,
    library.missing_reason,
)


def forget() -> None:
    for function in CACHED:
        function.cache_clear()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that another test found out is remembered, before or after."""
    monkeypatch.delenv("THROUGHTIME_ISA", raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Installation:
    """`installation(built, runs)` pretends that these are built and that the processor runs these."""

    def pretend(*, built: tuple[str, ...], runs: tuple[str, ...]) -> None:
        def load(name: str) -> ModuleType:
            module = ModuleType(name)
            module.supported_isas = lambda: list(runs)
            return module

        monkeypatch.setattr(library, "_is_built", lambda name: name.removeprefix("_native_") in built)
        monkeypatch.setattr(library, "_import", load)

    return pretend


needs_build = pytest.mark.skipif(not library.built_isas(), reason="the native engine is not built here")


@needs_build
def test_the_fastest_that_this_processor_runs() -> None:
    assert library.missing_reason() is None
    assert library.load() is library.load_isa(library.available_isas()[0])
    assert library.load().__name__ == f"throughtime.kernels.native._native_{library.available_isas()[0]}"


@needs_build
def test_what_the_processor_runs_agrees_with_the_system() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the system's list is read from /proc/cpuinfo")
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        listed = next((set(line.split()) for line in file if line.startswith(("flags", "Features"))), set())
    needed = {"v4_bf16": "avx512_bf16", "v4_vnni": "avx512_vnni", "v4": "avx512vl", "v3": "avx2", "v2": "sse4_2"}
    needed["neon"] = "asimd"
    assert set(library.available_isas()) <= {isa for isa in library.ISAS if needed[isa] in listed}


@needs_build
@pytest.mark.parametrize("isa", library.ISAS)
def test_every_instruction_set_by_name(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHTIME_ISA", isa)
    if isa in library.available_isas():
        assert library.missing_reason() is None
        assert library.load().__name__.endswith(f"._native_{isa}")
    else:
        with pytest.raises(EngineError, match=f"^THROUGHTIME_ISA={isa}: native engine: {isa} was asked for, "):
            library.missing_reason()


def test_the_fastest_of_what_is_built_and_runs(installation: Installation) -> None:
    installation(built=("v2", "v3", "v4_bf16"), runs=("v4", "v3", "v2"))
    assert library.built_isas() == ("v4_bf16", "v3", "v2")
    assert library.available_isas() == ("v3", "v2")
    assert library.load().__name__ == "_native_v3"
    assert library.missing_reason() is None


def test_not_built(installation: Installation) -> None:
    installation(built=(), runs=("v3",))
    reason = (
        "the native engine is not built; where a C++20 compiler and Python's headers are: "
        "pip install --force-reinstall --no-deps --no-cache-dir throughtime"
    )
    assert library.available_isas() == ()
    assert library.missing_reason() == reason
    with pytest.raises(EngineError) as raised:
        library.load()
    assert str(raised.value) == reason
    with pytest.raises(EngineError) as raised:
        library.load_isa("v3")
    assert str(raised.value) == reason


def test_built_for_other_processors(installation: Installation) -> None:
    installation(built=("v4_bf16", "v4"), runs=("v3", "v2"))
    assert library.missing_reason() == "the native engine is built for v4_bf16, v4; this processor runs none of them"


def test_switched_off(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    installation(built=("v3",), runs=("v3",))
    monkeypatch.setenv("THROUGHTIME_ISA", "none")
    assert library.missing_reason() == "THROUGHTIME_ISA=none switches the native engine off"
    with pytest.raises(EngineError, match="THROUGHTIME_ISA=none switches"):
        library.load()
    assert library.load_isa("v3").__name__ == "_native_v3"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("v5", "native engine: the instruction set must be one of v4_bf16, v4_vnni, v4, v3, v2, neon, got 'v5'"),
        (
            "v2",
            "native engine: v2 was asked for, v4, v3 is built; reinstall throughtime with THROUGHTIME_NATIVE_ISAS=all",
        ),
        ("v4", "native engine: v4 was asked for, this processor runs v3"),
    ],
)
def test_one_that_cannot_be_had(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, asked: str, message: str
) -> None:
    installation(built=("v4", "v3"), runs=("v3", "v2"))
    monkeypatch.setenv("THROUGHTIME_ISA", asked)
    for function in (library.load, library.missing_reason):
        with pytest.raises(EngineError) as raised:
            function()
        assert str(raised.value) == f"THROUGHTIME_ISA={asked}: {message}; without the variable the fastest is taken"


def test_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        raise ImportError(f"{name}.so: invalid ELF header")

    monkeypatch.setattr(library, "_is_built", lambda name: True)
    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", import_module)
        reason = library.missing_reason()
    assert reason == (
        "native engine: _cpu cannot be loaded (throughtime.kernels.native._cpu.so: invalid ELF header); "
        "reinstall throughtime"
    )


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    program = (
        "import sys, throughtime as tt; tt.nn.LSTM, tt.kernels.explain;"
        "print([name for name in sys.modules if name.startswith('throughtime.kernels.native._')])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
