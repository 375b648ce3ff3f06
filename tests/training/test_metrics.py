from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from throughtime.errors import ConfigError
from throughtime.training.curve import draw_curve
from throughtime.training.metrics import MetricsLog, read_metrics


def write(path: Path, *steps: int, after_step: int = 0) -> None:
    log = MetricsLog(path, after_step=after_step)
    for step in steps:
        log.write("train", step, {"loss": 1 / step})
    log.close()


def test_lines_are_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, after_step=0)
    log.write("evaluation", 7, {"loss": 0.5})
    assert read_metrics(path) == [{"kind": "evaluation", "step": 7, "loss": 0.5}]
    log.close()


def test_resuming_drops_what_lies_past_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2, 3, 4)
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    write(path, 3, 5, after_step=2)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 5]
    assert path.read_text().count("\n") == 4


def test_a_new_training_begins_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    write(path, 1)
    assert [record["step"] for record in read_metrics(path)] == [1]
    assert read_metrics(tmp_path / "missing") == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl", after_step=0, tensorboard=tmp_path / "board")
    log.write("train", 3, {"loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    (event,) = events.Scalars("train/loss")
    assert (event.step, event.value) == (3, 0.25)


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"TensorBoard is not installed; pip install 'throughtime\[tensorboard\]'"):
        MetricsLog(tmp_path / "metrics.jsonl", after_step=0, tensorboard=tmp_path / "board")


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    records: list[dict[str, Any]] = [{"kind": "train", "step": step, "loss": 3 / step} for step in range(1, 9)]
    records += [{"kind": "evaluation", "step": 4, "loss": 1.0, "bits_per_byte": 1.44}]
    for chosen in (records, records[:8], records[8:]):
        draw_curve(chosen, tmp_path / "curve.png")
        with Image.open(tmp_path / "curve.png") as picture:
            assert picture.size == (1050, 630)
            shades = picture.convert("L").getextrema()
        assert shades == (0, 255)


def test_without_records_there_is_no_curve(tmp_path: Path) -> None:
    draw_curve([], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
