"""A short real text and the keys of a model small enough to train in a test."""

from __future__ import annotations

import inspect
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KEYS = (
    "model.hidden_size=16", "model.embedding_size=8", "training.batch_size=4", "training.window=16",
    "training.warmup_steps=2", "training.max_steps=6", "training.precision=fp32", "training.device=cpu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written under a relative path stays out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Some thousand bytes of Python."""
    path = tmp_path / "book.txt"
    path.write_text(inspect.getsource(shlex), "utf-8")
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another text."""
    path = tmp_path / "other.txt"
    path.write_text(inspect.getsource(textwrap), "utf-8")
    return path


@pytest.fixture
def train(book: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train a tiny model on the book into a folder of that name; further "section.key=value" come last."""
    from throughtime.tasks import language

    def run(name: str = "run", *overrides: str, **options: Any) -> Path:
        data = options.pop("data", [str(book)])
        language.train(data, tmp_path / name, overrides=[*options.pop("keys", KEYS), *overrides], **options)
        return tmp_path / name

    return run
