"""What the runs of all tasks share: data that came through standard input."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from throughtime.errors import DataError
from throughtime.tasks import language, transduce
from throughtime.tasks.pair_texts import names
from throughtime.tasks.runs import reading
from throughtime.tasks.transduce_configuration import TransduceConfiguration

SMALL = ("model.hidden_size=8", "model.embedding_size=4", "training.precision=fp32", "training.device=cpu")
PAIRS = "".join(f"{left}{right}\t{right}{left}\n" for left, right in itertools.product("abcdef", repeat=2)).encode()
AGAIN = "the data of this run came from standard input: pipe the same into it once more$"


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def into(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return into


def of_pairs(run: Path, steps: int, *, resume: bool) -> None:
    data = {} if resume else {"paths": ["-"]}
    keys = (*SMALL, f"training.max_steps={steps}", "training.evaluate_sources=0")
    transduce.train(run, data=data, overrides=keys, resume=resume, tell=lambda line: None)


def of_text(run: Path, steps: int, *, resume: bool) -> None:
    keys = (*SMALL, f"training.max_steps={steps}", "training.batch_size=2", "training.window=8")
    language.train([] if resume else ["-"], run, overrides=keys, resume=resume)


@pytest.mark.parametrize("train", [of_pairs, of_text])
def test_what_was_piped_is_piped_again(
    tmp_path: Path, pipe: Callable[[bytes], None], train: Callable[..., None]
) -> None:
    content = PAIRS * (1 if train is of_pairs else 20)
    pipe(content)
    train(tmp_path / "run", 1, resume=False)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    pipe(b"")
    with pytest.raises(DataError, match=f"^standard input: it is empty; {AGAIN}"):
        train(tmp_path / "run", 2, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    pipe(content)
    train(tmp_path / "run", 2, resume=True)


def test_nobody_is_waited_for_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    told = f"^data: expected a pipe, got a terminal; {AGAIN}"
    with pytest.raises(DataError, match=told), reading(["a", "-"], again=True, processes=1):
        pass
    with reading(["a", "-"], again=False, processes=1), reading(["a"], again=True, processes=2):
        pass


def test_other_faults_of_the_data_stay_what_they_are() -> None:
    with (
        pytest.raises(DataError, match=r"^a\.tsv: the file is empty$"),
        reading(["-", "a.tsv"], again=True, processes=1),
    ):
        raise DataError("a.tsv: the file is empty")


@pytest.mark.parametrize(
    "data",
    [
        {"paths": ["-"]},
        {"paths": ["a"], "valid": ["-"]},
        {"source": "-", "target": "a"},
        {"paths": ["a"], "valid_source": "a", "valid_target": "-"},
    ],
)
def test_standard_input_is_for_one_process(data: dict[str, object]) -> None:
    config = TransduceConfiguration.model_validate({"data": data})
    told = "^data: standard input can be read by one process only; give several processes a file$"
    with pytest.raises(DataError, match=told), reading(names(config.data), again=False, processes=2):
        pass
