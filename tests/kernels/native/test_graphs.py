"""The native engine in the graphs of torch.compile and torch.export; the cases are in graphs.py, a program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from throughtime.kernels.native import library

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))
PROGRAM = Path(__file__).parent / "graphs.py"
# How many cases each group has.
GROUPS = {
    "compiled_into_one_graph": 13,
    "one_graph_for_all_sizes": 3,
    "lengths_are_checked_when_it_runs": 2,
    "autocast": 3,
    "random_masks": 3,
    "exported": 7,
    "the_operator_itself": 6,
}


def run(*names: str) -> dict[str, dict[str, str | None]]:
    """For each group and case, what went wrong, or None."""
    result = subprocess.run([sys.executable, str(PROGRAM), *names], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, dict[str, str | None]] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str | None]]:
    return run(*GROUPS, *(["compiled_to_machine_code"] if shutil.which("g++") else []))


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_in_a_graph(group: str, outcomes: dict[str, dict[str, str | None]]) -> None:
    failed = [f"{case}: {error}" for case, error in outcomes[group].items() if error is not None]
    assert not failed, "\n".join(failed)
    assert len(outcomes[group]) == GROUPS[group]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: no g++ here")
def test_compiled_to_machine_code(outcomes: dict[str, dict[str, str | None]]) -> None:
    assert outcomes["compiled_to_machine_code"] == {"LSTM with a readout": None}
