"""The commands as a user types them, in a folder of their own with real text in it."""

from __future__ import annotations

import inspect
import random
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SET = (
    "--set", "model.hidden_size=16", "model.embedding_size=8", "model.dropout=0.1", "training.batch_size=4",
    "training.window=16", "training.warmup_steps=5", "training.precision=fp32", "training.device=cpu",
)  # fmt: skip


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def start(*arguments: object, launcher: tuple[str, ...] = (), **options: object) -> subprocess.Popen[bytes]:
    """`python -m throughtime ...`, under `launcher` where one is given.

    The `--` is for torchrun, which otherwise takes our --run for an abbreviation of an option of its own.
    """
    command = [sys.executable, *launcher, "-m", *(["--"] if launcher else []), "throughtime", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **options)  # type: ignore[call-overload, no-any-return]


def typed(*arguments: object, text: str = "", launcher: tuple[str, ...] = ()) -> Done:
    """Type a command line and wait for its end; `text` is its standard input."""
    process = start(*arguments, launcher=launcher)
    out, err = process.communicate(text.encode(), timeout=300)
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture(name="start", scope="session")
def start_fixture() -> Callable[..., subprocess.Popen[bytes]]:
    """`start`, which see."""
    return start


@pytest.fixture(name="typed", scope="session")
def typed_fixture() -> Callable[..., Done]:
    """`typed`, which see."""
    return typed


@pytest.fixture(scope="session")
def settings() -> tuple[str, ...]:
    """`--set` and the keys of a model that trains in a moment; more keys may follow."""
    return SET


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: Path) -> None:
    """Relative paths are those of a fresh folder with texts in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(texts, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache of every test, for the fixtures that live longer than one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THROUGHTIME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, session_cache: None) -> Path:
    """A folder with two texts."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "book.txt").write_text(inspect.getsource(shlex) + inspect.getsource(random), "utf-8")
    (folder / "other.txt").write_text(inspect.getsource(textwrap), "utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A run of 40 steps."""
    folder = tmp_path_factory.mktemp("trained")
    done = typed(
        "train", "lm", "--run", folder / "run", *SET, "training.max_steps=40", "training.learning_rate=0.01",
        "training.evaluate_every=20", "training.checkpoint_every=10", "--data", texts / "book.txt",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert re.fullmatch(
        r".*/run: 40 steps \(max_steps = 40 reached\); best at step [24]0: loss .*, bits per byte .*\n", done.out
    )
    assert done.err.count("held-out") == 2
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged or gone on with."""
    shutil.copytree(trained, tmp_path / "run")
    return Path("run")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Type a command line into this process."""
    from throughtime.cli.main import main

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return run
