from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_task import RecordedProgress, ToyTask

from throughtime.errors import ConfigError, DivergedError, Interrupted, StorageError
from throughtime.training import loop
from throughtime.training.loop import Trainer
from throughtime.training.task import Loss

MakeTrainer = Callable[..., Trainer]


def records(trainer: Trainer, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in trainer.run.metrics.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}


def assert_same(here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert torch.equal(tensor, there[name]), name


def test_it_learns_and_leaves_a_run_folder(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_epochs=20)
    outcome = trainer.fit()
    assert outcome.steps == 160
    assert outcome.stopped_because == "max_epochs = 20 reached"
    evaluations = records(trainer, "evaluation")
    assert [line["step"] for line in evaluations] == list(range(8, 161, 8))
    assert outcome.best["loss"] == min(line["loss"] for line in evaluations) < 1.5
    names = {entry.name for entry in trainer.run.path.iterdir()}
    assert names == {"run.json", "model.safetensors", "config.json", "metrics.jsonl", "curve.png", "checkpoints"}
    first = records(trainer, "train")[0]
    numbers = {"epoch", "loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second", "seconds"}
    assert first.keys() == {"kind", "step"} | numbers
    assert (first["step"], first["epoch"]) == (4, 0.5)


def test_a_step_is_adamw_on_the_clipped_mean(make_trainer: MakeTrainer) -> None:
    keys = {"max_steps": 3, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "gradient_clip": 0.2}
    trainer = make_trainer(lambda: ToyTask(dropout=0.0), **keys)
    task = ToyTask(dropout=0.0)
    task.model.load_state_dict(trainer.task.model.state_dict())
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-2, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    carried, norms = None, []
    for index in range(3):
        loss = task.loss(task.model, task.batch(index), carried)
        (loss.total / loss.count).backward()
        norms.append(float(nn.utils.clip_grad_norm_(task.model.parameters(), 0.2)))
        optimizer.step()
        optimizer.zero_grad()
        carried = loss.carried
    trainer.fit()
    for here, there in zip(trainer.task.model.parameters(), task.model.parameters(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
    (line,) = records(trainer, "train")
    assert line["gradient_norm"] == pytest.approx(norms[-1], rel=1e-4)


class Halves(ToyTask):
    """Each micro-batch is half of the rows of one of the toy's: two of them are one step of the whole."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.batches_per_epoch *= 2

    def batch(self, index: int) -> tuple[Tensor, Tensor, bool]:
        start = index // 2 % 8 * self.window
        rows = slice(0, 1) if index % 2 == 0 else slice(1, 4)  # unequal on purpose: means of means would differ
        part = self.stream[start : start + self.window + 1, rows]
        return part[:-1], part[1:], True


class Wholes(Halves):
    def __init__(self) -> None:
        super().__init__()
        self.batches_per_epoch = 8

    def batch(self, index: int) -> tuple[Tensor, Tensor, bool]:
        start = index % 8 * self.window
        part = self.stream[start : start + self.window + 1]
        return part[:-1], part[1:], True


def test_accumulated_micro_batches_are_one_batch(make_trainer: MakeTrainer) -> None:
    halves = make_trainer(Halves, "halves", max_steps=6, gradient_accumulation=2)
    wholes = make_trainer(Wholes, "wholes", max_steps=6)
    halves.fit()
    wholes.fit()
    for name, tensor in weights(halves).items():
        torch.testing.assert_close(tensor, weights(wholes)[name], rtol=1e-5, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer: MakeTrainer) -> None:
    # A warm-up of more than a tenth of the run would follow its length.
    keys = {"schedule": "constant", "warmup_steps": 1}
    whole = make_trainer(name="whole", max_steps=24, **keys)
    whole.fit()
    make_trainer(max_steps=11, **keys).fit()
    rest = make_trainer(max_steps=24, **keys)
    outcome = rest.fit(resume=True)
    assert outcome.steps == 24
    assert rest._progress.notes[0] == "resuming at step 11"  # type: ignore[union-attr]
    assert_same(weights(rest), weights(whole))
    assert [line["step"] for line in records(rest, "train")] == [4, 8, 11, 12, 16, 20, 24]


def test_a_finished_run_resumed_returns_its_outcome(make_trainer: MakeTrainer) -> None:
    first = make_trainer(max_steps=9)
    outcome = first.fit()
    again = make_trainer(max_steps=9)
    assert again.fit(resume=True) == outcome
    assert_same(weights(again), weights(first))


def test_resuming_without_a_checkpoint_begins_anew(make_trainer: MakeTrainer) -> None:
    whole = make_trainer(name="whole", max_steps=5)
    whole.fit()
    trainer = make_trainer(max_steps=5)
    trainer.fit(resume=True)
    assert trainer._progress.notes[0] == "no checkpoint yet: starting from the beginning"  # type: ignore[union-attr]
    assert_same(weights(trainer), weights(whole))


CHANGED = (
    "the number of processes, the batch size, the window or the number of batches has changed, so the carried state "
    "begins at zero and dropout draws anew; weights and position in the data go on"
)


class Carrying(ToyTask):
    """Keeps the state that was carried to each of its batches."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self.carried: list[tuple[Tensor, ...] | None] = []

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, bool], carried: tuple[Tensor, ...] | None) -> Loss:
        self.carried.append(carried)
        return super().loss(model, batch, carried)


@pytest.mark.parametrize(
    ("task", "keys", "kept"),
    [({}, {}, True), ({}, {"window": 64}, False), ({"window": 3, "windows": 16}, {}, False)],
    ids=["same", "window", "batches_per_epoch"],
)
def test_the_carried_state_is_kept_where_the_batches_are_the_same(
    make_trainer: MakeTrainer, task: dict[str, Any], keys: dict[str, Any], kept: bool
) -> None:
    make_trainer(max_steps=4).fit()
    trainer = make_trainer(lambda: Carrying(**task), max_steps=5, **keys)
    trainer.fit(resume=True)
    assert (trainer.task.carried[0] is not None) == kept  # type: ignore[attr-defined]
    notice = "resuming at step 4" if kept else f"resuming at step 4: {CHANGED}"
    assert trainer._progress.notes[0] == notice  # type: ignore[union-attr]


@pytest.mark.parametrize(("before", "after"), [("adamw", "sgd"), ("sgd", "adamw")])
def test_another_optimizer_begins_anew(make_trainer: MakeTrainer, before: str, after: str) -> None:
    make_trainer(max_steps=4, optimizer=before).fit()
    trainer = make_trainer(Carrying, max_steps=6, optimizer=after)
    trainer.fit(resume=True)
    told = f"resuming at step 4: the optimizer is another one, so the state of {after} begins anew"
    assert trainer._progress.notes[0] == told  # type: ignore[union-attr]
    assert trainer.task.carried[0] is not None  # type: ignore[attr-defined]
    saved = trainer.store.load_latest()
    assert saved is not None
    assert saved.state["optimizer"] == after
    counts = [int(tensor) for name, tensor in saved.optimizer.items() if name.endswith(".step")]
    assert set(counts) == ({2} if after == "adamw" else set())


def test_sgd_resumed_is_sgd_uninterrupted(make_trainer: MakeTrainer) -> None:
    keys = {"optimizer": "sgd", "learning_rate": 0.5, "schedule": "constant", "warmup_steps": 0}
    whole = make_trainer(name="whole", max_steps=80, **keys)
    outcome = whole.fit()
    assert outcome.best["loss"] < 2.2 < records(whole, "train")[0]["loss"]
    make_trainer(max_steps=37, **keys).fit()
    rest = make_trainer(max_steps=80, **keys)
    rest.fit(resume=True)
    assert_same(weights(rest), weights(whole))


def test_another_batch_size_drops_the_carried_state_and_keeps_the_position(make_trainer: MakeTrainer) -> None:
    make_trainer(max_steps=12).fit()
    trainer = make_trainer(lambda: ToyTask(rows=2, windows=16), max_steps=13, batch_size=2)
    trainer.fit(resume=True)
    assert CHANGED in trainer._progress.notes[0]  # type: ignore[union-attr]
    # 12 of 8 batches an epoch are 1.5 epochs: 24 of 16, and one more step.
    assert trainer.store.load_latest().state["position"] == 25  # type: ignore[union-attr]


def test_another_model_is_refused(make_trainer: MakeTrainer) -> None:
    class Wider(ToyTask):
        def __init__(self) -> None:
            super().__init__()
            self.model.readout = nn.Linear(8, 11, bias=False)

    make_trainer(max_steps=2).fit()
    with pytest.raises(
        ConfigError, match=r"model: the checkpoint has readout\.\w+ of shape .*; resume with the \[model\]"
    ):
        make_trainer(Wider, max_steps=4).fit(resume=True)


def test_the_best_model_is_the_published_one(make_trainer: MakeTrainer) -> None:
    class Worsening(ToyTask):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            self.evaluations += 1
            return {"loss": [3.0, 2.0, 2.5, 2.7, 1.0][self.evaluations - 1]}

    trainer = make_trainer(
        Worsening, max_steps=100, evaluate_every=3, early_stopping=2, checkpoint_every=0, keep_checkpoints=1
    )
    outcome = trainer.fit()
    assert outcome.stopped_because == "early_stopping: 2 evaluations without improvement"
    assert (outcome.steps, outcome.best_step, outcome.best) == (12, 6, {"loss": 2.0})
    assert trainer.store.steps() == [6, 12]
    best = load_file(trainer.store.path(6) / "model.safetensors")
    published = load_file(trainer.run.model)
    for name, tensor in published.items():
        assert torch.equal(tensor, best[name])


def test_plateau_lowers_the_learning_rate(make_trainer: MakeTrainer) -> None:
    class Stuck(ToyTask):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            return {"loss": 1.0}

    keys = {"schedule": "plateau", "warmup_steps": 0, "evaluate_every": 2, "log_every": 2, "plateau_patience": 2}
    trainer = make_trainer(Stuck, max_steps=10, **keys)
    trainer.fit()
    rates = [line["learning_rate"] for line in records(trainer, "train")]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3, 5e-3])


def test_evaluating_does_not_change_the_training(make_trainer: MakeTrainer) -> None:
    often = make_trainer(name="often", max_steps=10, evaluate_every=1)
    never = make_trainer(name="never", max_steps=10, evaluate_every=10)
    often.fit()
    never.fit()
    assert_same(weights(often), weights(never))


def test_minutes_end_the_training(make_trainer: MakeTrainer) -> None:
    outcome = make_trainer(max_minutes=0.001).fit()
    assert outcome.stopped_because == "max_minutes = 0.001 reached"
    assert outcome.steps >= 1


class Diverging(ToyTask):
    """The loss of batch 7 is NaN."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, bool], carried: tuple[Tensor, ...] | None) -> Loss:
        loss = super().loss(model, batch, carried)
        self.seen = getattr(self, "seen", 0) + 1
        return Loss(loss.total * float("nan"), loss.count, loss.carried) if self.seen == 7 else loss


def test_a_loss_that_is_not_finite_stops_and_names_the_way_back(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(Diverging, max_steps=20)
    good = re.escape(str(trainer.store.path(5)))
    with pytest.raises(
        DivergedError,
        match=f"training: the loss or its gradient is not finite at step 7; the last good checkpoint is {good}; lower "
        r"training.learning_rate or training.gradient_clip, or set training.precision=fp32, and go on with --resume",
    ):
        trainer.fit()
    loaded = trainer.store.load_latest()
    assert loaded is not None
    assert all(tensor.isfinite().all() for tensor in loaded.model.values())
    assert make_trainer(max_steps=20).fit(resume=True).steps == 20


def test_divergence_before_any_checkpoint(make_trainer: MakeTrainer) -> None:
    with pytest.raises(DivergedError, match=r"at step 7; there is no checkpoint yet; .* and begin again with --resume"):
        make_trainer(Diverging, max_steps=20, checkpoint_every=0).fit()


def test_an_evaluation_that_is_not_finite(make_trainer: MakeTrainer) -> None:
    class Lost(ToyTask):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            return {"loss": float("inf")}

    trainer = make_trainer(Lost, max_steps=20)
    with pytest.raises(DivergedError, match="not finite at step 8"):
        trainer.fit()
    assert not trainer.run.model.exists()


def test_bf16_keeps_fp32_weights_and_gives_the_model_back(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=40, precision="bf16")
    seen: set[torch.dtype] = set()
    model = trainer.task.model
    hook = model.readout.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))  # type: ignore[union-attr]
    outcome = trainer.fit()
    hook.remove()
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights(trainer).values()} == {torch.float32}
    assert outcome.best["loss"] < 2.3
    logits, _ = model(torch.zeros(2, 3, dtype=torch.int64), None)
    assert logits.dtype == torch.float32


class Signalling(ToyTask):
    """Sends its own process a signal at batch 3, and another at batch 4 when the first was not heeded."""

    number = signal.SIGTERM
    times = 1

    def batch(self, index: int) -> tuple[Tensor, Tensor, bool]:
        for _ in range(self.times if index == 3 else 0):
            os.kill(os.getpid(), self.number)
        return super().batch(index)


def test_a_signal_ends_after_the_step_with_everything_saved(make_trainer: MakeTrainer) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(Signalling, max_steps=20)
    text = f"training: stopped by SIGTERM at step 4; all is saved in {trainer.run.path}: go on with the same command"
    with pytest.raises(Interrupted, match=re.escape(text)) as caught:
        trainer.fit()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert trainer.store.steps() == [4]
    assert trainer.run.model.exists()
    assert trainer._progress.closed  # type: ignore[union-attr]


def test_a_second_ctrl_c_leaves_at_once(make_trainer: MakeTrainer, capfd: pytest.CaptureFixture[str]) -> None:
    class Insisting(Signalling):
        number, times = signal.SIGINT, 2

    with pytest.raises(KeyboardInterrupt):
        make_trainer(Insisting, max_steps=20).fit()
    assert "stopping after this step; Ctrl-C again leaves at once, without saving" in capfd.readouterr().err


def test_a_trainer_in_a_thread_leaves_signals_alone(make_trainer: MakeTrainer) -> None:
    trainer, steps = make_trainer(max_steps=2), []
    thread = threading.Thread(target=lambda: steps.append(trainer.fit().steps))
    thread.start()
    thread.join()
    assert steps == [2]


def test_progress_goes_from_nothing_to_all(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=8)
    trainer.fit()
    updates = trainer._progress.updates  # type: ignore[union-attr]
    assert [step for _, step, _ in updates] == [1, 4, 8]
    assert updates[-1][0] == 1.0
    assert updates[-1][2]["tokens_per_second"] > 0


def test_evaluating_and_saving_do_not_count_in_tokens_per_second(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **options: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*args, **options)

        return slow

    trainer = make_trainer(max_steps=16)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(trainer.task, "loss", taking(1, trainer.task.loss))
    monkeypatch.setattr(trainer.task, "evaluate", taking(100, trainer.task.evaluate))
    monkeypatch.setattr(trainer.store, "save", taking(10, trainer.store.save))
    trainer.fit()
    assert [line["tokens_per_second"] for line in records(trainer, "train")] == [24.0] * 4


def test_the_terminal_is_not_taken_when_the_log_cannot_be_opened(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_steps=4)
    trainer._progress = None
    taken: list[object] = []
    monkeypatch.setattr(loop, "make_progress", lambda **keys: taken.append(keys))
    trainer.run.metrics.mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        trainer.fit()
    assert not taken
    trainer.run.metrics.rmdir()  # and the folder is held no more
    trainer._progress = RecordedProgress()
    assert trainer.fit().steps == 4


def test_tensorboard_is_written_when_asked(make_trainer: MakeTrainer) -> None:
    pytest.importorskip("tensorboard")
    trainer = make_trainer(max_steps=4, tensorboard=True)
    trainer.fit()
    assert any(Path(trainer.run.tensorboard).iterdir())
