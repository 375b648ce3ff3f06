"""A run folder with a tiny model, and ways to call the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Called(NamedTuple):
    """What a command line left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes under a relative path stays out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Call `main` in this process."""
    from throughtime.cli.main import main

    def run(*arguments: object) -> Called:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Called(code, *capfd.readouterr())

    return run


@pytest.fixture
def typed() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `python -m throughtime` as a user does."""

    def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "throughtime", *(str(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, timeout=300, check=False, **settings)  # type: ignore[call-overload, no-any-return]

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an untrained byte model."""
    import torch

    from throughtime.data import Tokenizer
    from throughtime.models import LanguageModel
    from throughtime.storage import write_file
    from throughtime.tasks.configuration import LanguageConfiguration
    from throughtime.training.run_folder import RunFolder

    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "tiny", "lm")
    tokenizer = Tokenizer.train("bytes")
    torch.manual_seed(0)
    model = LanguageModel(
        vocabulary_size=tokenizer.vocabulary_size, border_id=tokenizer.border_id, hidden_size=16, embedding_size=8
    )
    with torch.no_grad():
        # Letters mostly, so that texts can be read; and no end, so that they run until they are stopped.
        model.readout.bias_ho[97:123] += 6
        model.readout.bias_ho[tokenizer.border_id] -= 100
    model.tokenizer_json = tokenizer.to_json()
    model.save(folder.path)
    values = {
        "model": {"hidden_size": 16, "embedding_size": 8},
        "training": {"max_steps": 1},
        "generation": {"length": 30},
    }
    write_file(folder.config, LanguageConfiguration.model_validate(values).toml())
    return folder.path
