"""The training loop: step, log, evaluate, save; stop when it is done, when asked to, or when the loss is lost."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import ConfigError, DivergedError, Interrupted
from throughtime.training.checkpoint import Checkpoint, CheckpointStore, model_tensors
from throughtime.training.config import TrainingConfig
from throughtime.training.curve import draw_curve
from throughtime.training.distributed import Distribution
from throughtime.training.metrics import MetricsLog, read_metrics
from throughtime.training.optimizer import load_optimizer_tensors, optimizer_tensors
from throughtime.training.progress import Progress, describe, make_progress
from throughtime.training.random_state import preserved_random, seed_everything
from throughtime.training.run_folder import RunFolder
from throughtime.training.schedule import learning_rate_factor, progress
from throughtime.training.signals import StopSignals
from throughtime.training.state import TrainingState, load_model_tensors, load_rank_tensors, rank_tensors
from throughtime.training.stepper import Gradients, Stepper
from throughtime.training.task import MeasuresFlow, Task

# The live line reads the loss back at most this often, as that waits for an accelerator.
_SHOW_SECONDS = 0.5


class Outcome(NamedTuple):
    """How a training ended.

    steps: updates done, those before a resume included.
    best: the results of the best evaluation, "loss" in nats per target among them; best_step is its step.
    stopped_because: which limit was reached.
    """

    steps: int
    best: dict[str, float]
    best_step: int
    stopped_because: str


class _Window:
    """Sums since the last line of the log."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.norm: Tensor | None = None
        self.count = 0
        self.started = time.monotonic()

    def add(self, gradients: Gradients, count: int, norm: Tensor) -> None:
        self.total = gradients.total.double() if self.total is None else self.total + gradients.total
        self.count += count
        self.norm = norm


class Trainer:
    """Trains a task's model into a run folder; every process of a distributed run has one.

    `progress` shows how far it is; by default a live line on a terminal and plain lines elsewhere.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        run: RunFolder,
        distribution: Distribution,
        progress: Progress | None = None,
    ) -> None:
        self.task = task
        self.config = config
        self.run = run
        self.distribution = distribution
        self.store = CheckpointStore(run.checkpoints, config.keep_checkpoints, distribution)
        self._progress = progress

    def fit(self, *, resume: bool = False) -> Outcome:
        """Train until a limit is reached; with `resume`, from the newest checkpoint on.

        The best model is in the run folder from the first evaluation on. A run that has ended already, resumed with
        the same limits, returns its outcome at once.

        Raises:
            RunFolderError: another training is at work in the run folder; nothing in it was changed.
            ConfigError: `training.flow_every` for a task that measures no flow.
            DivergedError: the loss or the gradient is no longer finite.
            Interrupted: SIGINT or SIGTERM came; all is saved. Its exit code is 128 + the signal's number.
            CheckpointError: the newest checkpoint is damaged.
            StorageError: the disk is full, read-only or gone; what was saved before is whole.
        """
        with ExitStack() as held:
            self.distribution.on_main(lambda: held.enter_context(self.run.held()))
            model = self.distribution.prepare(self.task.model)
            try:
                with StopSignals(insistent=self.distribution.world_size == 1) as signals:
                    return _Fit(self, model, signals, resume=resume).run()
            finally:
                self.distribution.release(self.task.model)


class _Fit:
    """One call of `fit`."""

    def __init__(self, trainer: Trainer, model: nn.Module, signals: StopSignals, *, resume: bool) -> None:
        self.trainer = trainer
        self.task, self.config, self.folder = trainer.task, trainer.config, trainer.run
        self.distribution, self.store = trainer.distribution, trainer.store
        self.signals = signals
        self.model = model
        if self.config.flow_every and not isinstance(self.task, MeasuresFlow):
            raise ConfigError(
                f"training.flow_every: task {self.task.name} does not measure the flow of gradients; set it to 0"
            )
        self.stepper = Stepper(self.task, model, self.config, self.distribution)
        self.state = TrainingState(
            self.task.batches_per_epoch, self.config.batch_size, self.config.window, self.config.optimizer
        )
        self.stop_asked = False
        self.saved = False
        if self.distribution.is_main:
            self.folder.tidy()
        self.notice = self._begin(self.store.load_latest() if resume else None, resume=resume)
        self.log: MetricsLog | None = None
        if self.distribution.is_main:
            board = self.folder.tensorboard if self.config.tensorboard else None
            self.log = MetricsLog(self.folder.metrics, after_step=self.state.step, tensorboard=board)
        self.window = _Window()
        self.shown = 0.0
        self.factor = 1.0
        # Last, as it takes the terminal, which `run` gives back.
        self.progress = trainer._progress or make_progress(is_main=self.distribution.is_main, done=self._done())

    def _begin(self, checkpoint: Checkpoint | None, *, resume: bool) -> str | None:
        """Take up a checkpoint, or start anew; what the user should know about that."""
        rank = self.distribution.rank
        if checkpoint is None:
            seed_everything(self.config.seed + 7919 * (rank + 1))
            return "no checkpoint yet: starting from the beginning" if resume else None
        load_model_tensors(self.task.model, checkpoint.model)
        changed = self.state.take_up(checkpoint.state)
        self.saved = True
        notes = [f"resuming at step {self.state.step}"]
        if "optimizer" in changed:
            notes.append(f"the optimizer is another one, so the state of {self.config.optimizer} begins anew")
        else:
            load_optimizer_tensors(self.stepper.optimizer, checkpoint.optimizer)
        # The carried state belongs to the rows and the place where those batches ended.
        if checkpoint.rank is not None and not changed - {"optimizer"}:
            self.stepper.carried = load_rank_tensors(checkpoint.rank, self.distribution.device)
        else:
            seed_everything(self.config.seed + 7919 * (rank + 1) + self.state.step)
            notes.append(
                "the number of processes, the batch size, the window or the number of batches has changed, so the "
                "carried state begins at zero and dropout draws anew; weights and position in the data go on"
            )
        return ": ".join(notes)

    def run(self) -> Outcome:
        """Steps until a limit; see `Trainer.fit`."""
        began = time.monotonic() - self.state.seconds
        try:
            if self.notice:
                self.progress.note(self.notice)
            self.model.train()
            while True:
                if self.stop_asked:
                    self._interrupt()
                if self.state.evaluation_due(self.config):
                    self._evaluate()
                reason = self.state.finished(self.config)
                if reason is not None:
                    return self._finish(reason)
                every = self.config.checkpoint_every
                if every and self.state.step % every == 0 and self.state.step and not self.saved:
                    self._save()
                self._step(began)
        finally:
            self.progress.close()
            if self.log is not None:
                self.log.close()

    def _step(self, began: float) -> None:
        state, main = self.state, self.distribution.is_main
        gradients = self.stepper.backward(state.position)
        asked = float(self.signals.received is not None)
        count, asked, seconds = self.distribution.sum(
            [gradients.count, asked, time.monotonic() - began if main else 0.0]
        )
        # The schedule may follow the clock: all processes take the main one's, or their weights would part.
        state.seconds = seconds
        self.stop_asked = asked > 0
        self.factor = learning_rate_factor(self.config, step=state.step, progress=self._done(), plateau=state.plateau)
        norm = self.stepper.update(state.step + 1, int(count), self.factor)
        state.step += 1
        state.position += self.config.gradient_accumulation
        self.saved = False
        self.window.add(gradients, int(count), norm)
        if self.distribution.device.type == "cpu":
            self._check_finite()
        if self.config.flow_every and state.step % self.config.flow_every == 0 and main:
            self._measure_flow()
        if state.step % self.config.log_every == 0:
            self._log()
        elif main and time.monotonic() - self.shown >= _SHOW_SECONDS:
            assert self.window.total is not None
            self._show(float(self.window.total) * self.distribution.world_size)

    def _done(self) -> float:
        return progress(self.config, step=self.state.step, epochs=self.state.epochs, minutes=self.state.seconds / 60)

    def _numbers(self, total: float) -> dict[str, float]:
        """The numbers of the window, given its loss summed over all processes."""
        window = self.window
        loss = total / max(window.count, 1)
        return {
            "epoch": self.state.epochs,
            "loss": loss,
            **self.task.describe(loss),
            "learning_rate": self.config.learning_rate * self.factor,
            "gradient_norm": math.nan if window.norm is None else float(window.norm),
            "tokens_per_second": window.count / max(time.monotonic() - window.started, 1e-9),
            "seconds": self.state.seconds,
        }

    def _show(self, total: float) -> None:
        self.shown = time.monotonic()
        self.progress.update(self._done(), self.state.step, self._numbers(total))

    def _log(self) -> None:
        if self.window.total is None:
            return
        self._check_finite()
        (total,) = self.distribution.sum([float(self.window.total)])
        if not math.isfinite(total):
            raise self._diverged(self.state.step)
        if self.log is not None:
            self.log.write("train", self.state.step, self._numbers(total))
        self._show(total)
        self.window = _Window()

    def _measure_flow(self) -> None:
        """One line of how gradients flow back through time, over the batch that is next."""
        assert isinstance(self.task, MeasuresFlow)
        batch = self.distribution.place(self.task.batch(self.state.position))
        values = self.task.flow(batch, self.stepper.carried)
        if self.log is not None:
            self.log.write("flow", self.state.step, values)

    def _check_finite(self) -> None:
        bad = self.stepper.first_bad_step()
        if bad is not None:
            raise self._diverged(bad)

    def _diverged(self, step: int) -> DivergedError:
        steps = self.store.steps()
        kept = f"the last good checkpoint is {self.store.path(steps[-1])}" if steps else "there is no checkpoint yet"
        go_on = "and go on with --resume" if steps else "and begin again with --resume"
        return DivergedError(
            f"training: the loss or its gradient is not finite at step {step}; {kept}; lower training.learning_rate "
            f"or training.gradient_clip, or set training.precision=fp32, {go_on}"
        )

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Time in the block does not count in tokens per second."""
        started, before = self.window.started, time.monotonic()
        yield
        # From where the clock stood before: a block within this one has moved it already.
        self.window.started = started + time.monotonic() - before

    def _evaluate(self) -> None:
        self._check_finite()
        with self._paused():
            # Not the distributed wrapper: its processes may have different numbers of evaluation batches.
            self.model.eval()
            with preserved_random(self.distribution.device), torch.no_grad():
                results = self.task.evaluate(self.task.model)
            self.model.train()
            if not math.isfinite(results["loss"]):
                raise self._diverged(self.state.step)
            improved = self.state.take_evaluation(results, self.config)
            self.saved = False
            mark = "  (best so far)" if improved else ""
            if self.log is not None:
                self.log.write("evaluation", self.state.step, {**results, "seconds": self.state.seconds})
            self.progress.note(f"step {self.state.step:>6}  held-out  {describe(results)}{mark}")
            if improved:
                # The model before the checkpoint: a kill between them repeats this evaluation, and publishes again.
                self._publish()
                self._save()

    def _publish(self) -> None:
        self.distribution.on_main(lambda: self.folder.publish(self.task.save_model))

    def _save(self) -> None:
        self._check_finite()
        with self._paused():
            self.store.save(
                self.state.step,
                model=model_tensors(self.task.model.state_dict()),
                optimizer=optimizer_tensors(self.stepper.optimizer),
                rank=rank_tensors(self.stepper.carried, self.distribution.device),
                state=self.state.to_json(),
                best=self.state.best_step,
            )
            self.saved = True

    def _draw(self) -> None:
        if self.distribution.is_main:
            draw_curve(read_metrics(self.folder.metrics), self.folder.curve)

    def _interrupt(self) -> None:
        if not self.saved:
            self._save()
        if not self.state.best:
            self._publish()
        self._draw()
        number = self.signals.received or signal.SIGTERM
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        error = Interrupted(
            f"training: stopped by {name} at step {self.state.step}; all is saved in {self.folder.path}: "
            "go on with the same command and --resume"
        )
        error.exit_code = 128 + number
        raise error

    def _finish(self, reason: str) -> Outcome:
        self._log()
        if self.state.evaluated_step != self.state.step:
            self._evaluate()
        if not self.saved:
            self._save()
        self._draw()
        assert self.state.best_step is not None
        return Outcome(self.state.step, self.state.best, self.state.best_step, reason)
