"""The package hands its names on, and costs nothing before one of them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import throughtime.data


def test_every_name_is_there() -> None:
    for name in throughtime.data.__all__:
        assert getattr(throughtime.data, name) is not None
    assert set(throughtime.data.__all__) <= set(dir(throughtime.data))
    with pytest.raises(AttributeError, match=r"^module 'throughtime.data' has no attribute 'nothing'$"):
        _ = throughtime.data.nothing


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("throughtime.data", ["numpy", "torch", "tokenizers"]),
        ("throughtime.data.sources", ["numpy", "torch", "pyarrow", "platformdirs"]),
        ("throughtime.data.tokens", ["torch", "tokenizers", "pyarrow", "filelock"]),
    ],
)
def test_heavy_modules_wait_until_they_are_needed(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
