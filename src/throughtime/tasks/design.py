"""Training a design: a model of chapter 10, sequences, and what it sees of its own outputs, into a run folder.

from throughtime.tasks import design
design.train(model, TensorSource(sequences, 32), held_out, Path("runs/mine"), max_epochs=20)
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import throughtime.models as models
from throughtime.configuration import to_toml, validate
from throughtime.data.sequences import Sequences, Source
from throughtime.decoding.lengths import length_error
from throughtime.errors import ConfigError, DataError, RunFolderError, UsageError
from throughtime.layers import in_evaluation_mode
from throughtime.models import ContextToSequence, Design, FeedbackDesign
from throughtime.models.feedback import Feedback
from throughtime.models.flow import model_flow
from throughtime.storage import write_file
from throughtime.tasks.trainee import Trainee
from throughtime.training import distributed
from throughtime.training.config import TrainingConfig
from throughtime.training.distributed import Distribution
from throughtime.training.inputs import TeacherForcing, TrainingInput
from throughtime.training.loop import Outcome, Trainer
from throughtime.training.run_folder import RunFolder
from throughtime.training.task import Loss

NAME = "design"
# Sequences that are evaluated at once.
_ROWS = 256
# Sequences that a run folder keeps.
_HELD_OUT = "held-out.safetensors"
_KEPT = 16


class DesignConfiguration(BaseModel):
    """The config.toml of a design's run: how it was trained. The model's own configuration is config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig.model_validate({}), description="Training.")


class DesignTask:
    """A design with its sequences, as the training loop wants it."""

    name = NAME

    def __init__(
        self,
        design: Design,
        train: Source,
        valid: Sequences,
        policy: TrainingInput,
        distribution: Distribution,
        *,
        seed: int = 0,
    ) -> None:
        if not len(valid):
            raise DataError("design: expected held-out sequences, got none; give at least one")
        self.design = design
        self.policy = policy
        self.model: nn.Module = Trainee(design, policy)
        self.train = train
        self.valid = valid
        self.distribution = distribution
        self.seed = seed
        self.batches_per_epoch = max(1, train.batches_per_epoch // distribution.world_size)

    def batch(self, index: int) -> tuple[Sequences, int]:
        """Batch `index` of this process, and its number."""
        place = index * self.distribution.world_size + self.distribution.rank
        return self.train.batch(place).to(self.distribution.device), index

    def loss(self, model: nn.Module, batch: tuple[Sequences, int], carried: tuple[Tensor, ...] | None) -> Loss:
        """The policy's loss of a batch; whole sequences carry nothing."""
        return Loss(model(*batch), batch[0].predictions, None)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """See `evaluate`; "loss" is the one by which the policy chooses the best model."""
        valid = self.valid.to(self.distribution.device)
        results = evaluate(self.design, valid, seed=self.seed, feedback=self.policy.feedback)
        return {**results, "loss": self.policy.held_out(results), "teacher_forced": results["loss"]}

    def flow(self, batch: tuple[Sequences, int], carried: tuple[Tensor, ...] | None) -> dict[str, float]:
        """How the gradients of a few of a batch's losses flow back through time; see `Flow.summary`."""
        few = batch[0].select(torch.arange(min(4, len(batch[0])), device=batch[0].targets.device))
        return model_flow(self.design, few.x, targets=few.targets, lengths=few.lengths, at=4).summary()

    def describe(self, loss: float) -> dict[str, float]:
        """The loss in bits."""
        return {"bits": loss / math.log(2)}

    def save_model(self, folder: Path) -> None:
        """model.safetensors and config.json of the design."""
        self.design.save(folder)


def train(
    model: Design,
    data: Source,
    valid: Sequences,
    run: str | Path,
    *,
    policy: TrainingInput | None = None,
    resume: bool = False,
    **training: Any,
) -> Outcome:
    """Train a design into the folder `run`, or go on with one (`resume`, given the same model, data and policy).

    Args:
        model: any of `tt.models`' designs; training begins with the weights it has.
        data: where training batches come from: a `TensorSource`, a `GeneratedSource`, or a `Source` of one's own.
        valid: held-out sequences; the model that is best on them, by the policy's own measure, is saved.
        run: the run folder.
        policy: what a design that feeds outputs back sees in training; teacher forcing when missing.
        resume: go on from the newest checkpoint.
        training: keys of the section [training], such as max_steps, learning_rate, gradient_clip, seed; but for
            batch_size, which is the source's, and window, as whole sequences are trained on.

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        UsageError: `policy` is none, or needs a design that feeds outputs back.
        RunFolderError: `run` is taken, or is no run of a design.
        DivergedError, Interrupted, CheckpointError, StorageError: see `Trainer.fit`.
    """
    run = Path(run)
    for key in sorted(training.keys() & {"batch_size", "window"}):
        remedy = "give it to the source" if key == "batch_size" else "cut the sequences, or train without"
        raise ConfigError(f"design.train: {key} is not a setting of whole sequences; {remedy}")
    if policy is not None and not isinstance(policy, TrainingInput):
        raise UsageError(f"design.train: policy must be a TrainingInput such as TeacherForcing(), got {policy!r}")
    config = validate(DesignConfiguration, {"training": training}, where="design.train")
    distribution = distributed.start(config.training)
    try:
        task = DesignTask(model, data, valid, policy or TeacherForcing(), distribution, seed=config.training.seed)

        def make() -> None:
            folder = RunFolder.open(run, NAME) if resume else RunFolder.create(run, NAME)
            used = task.policy
            heading = f"A throughtime run: {type(model).__name__} by {type(used).__name__}({used.extra_repr()})"
            heading += "\nThe batches were its source's, of whole sequences: batch_size and window played no part."
            write_file(folder.config, to_toml(config, heading=heading))
            _keep_some(valid, folder)

        distribution.on_main(make)
        return Trainer(task, config.training, RunFolder.open(run, NAME), distribution).fit(resume=resume)
    finally:
        distribution.close()


def load(run: str | Path, **parts: Any) -> Design:
    """The design of a run folder; `cell` where it has a cell of one's own.

    Raises:
        RunFolderError: no run folder, one of another task, or one without a model yet.
        CheckpointError: the weights are damaged.
    """
    folder = RunFolder.open(run, NAME)
    try:
        name = json.loads((folder.path / "config.json").read_text("utf-8"))["model"]
        kind = getattr(models, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunFolderError(
            f"run folder {folder.path}: expected a trained design, got none yet, or a damaged config.json; "
            "let it train to its first evaluation"
        ) from None
    loaded: Design = kind.load(folder.path, **parts)
    return loaded


def _keep_some(valid: Sequences, folder: RunFolder) -> None:
    """Leave a few held-out sequences in the run folder, to look at the model with."""
    part = valid.select(torch.arange(min(len(valid), _KEPT)))
    named = {"targets": part.targets, "inputs": part.inputs, "context": part.context, "lengths": part.lengths}
    tensors = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
    write_file(folder.path / _HELD_OUT, safetensors.torch.save(tensors, {"summary": str(int(part.summary))}))


def held_out(run: str | Path) -> Sequences:
    """A few of the sequences that a run was evaluated on, as its folder keeps them.

    Raises:
        RunFolderError: no run folder of a design, or one whose file of them is missing or damaged.
    """
    path = RunFolder.open(run, NAME).path / _HELD_OUT
    try:
        with safetensors.safe_open(path, "pt") as file:
            summary = (file.metadata() or {})["summary"] == "1"
            return Sequences(**{name: file.get_tensor(name) for name in file.keys()}, summary=summary)  # noqa: SIM118
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}; restore the file, or train again") from None


def evaluate(model: Design, sequences: Sequences, *, seed: int = 0, feedback: Feedback = "sample") -> dict[str, float]:
    """How well a design predicts sequences, nats per target; of categories the accuracy, of numbers the squared error.

    Of a design that feeds outputs back, `loss` is that of teacher forcing, `free_running` that of the same targets
    when the network has seen its own outputs (`feedback`: draws of them by `seed`, or their means) in place of
    y(1..t-1), and `exposure_gap` is the difference. Not all of it is the cost of mistakes: draws that are as good as
    the targets tell less of the targets than these do. Of a `ContextToSequence` that chooses its lengths,
    `length_error` and `expected_length_error` are those of `tt.decoding.length_error`.
    """
    sums: dict[str, float] = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), in_evaluation_mode(model):
        for rows in torch.split(torch.arange(len(sequences), device=sequences.targets.device), _ROWS):
            for name, value in _sums(model, sequences.select(rows), generator, feedback).items():
                sums[name] = sums.get(name, 0.0) + value
    results = {name: value / max(sequences.predictions, 1) for name, value in sums.items()}
    if "free_running" in results:
        results["exposure_gap"] = results["free_running"] - results["loss"]
    if getattr(model.config, "stop", "given") != "given":
        assert isinstance(model, ContextToSequence)
        results |= _length_errors(model, sequences, seed)
    return results


def _length_errors(model: ContextToSequence, sequences: Sequences, seed: int) -> dict[str, float]:
    steps = sequences.targets.shape[0]
    lengths = (
        torch.full((len(sequences),), steps, device=sequences.targets.device)
        if sequences.lengths is None
        else sequences.lengths
    )
    sums = [0.0, 0.0]
    # Many draws of each: fewer rows at once.
    for rows in torch.split(torch.arange(len(sequences), device=lengths.device), _ROWS // 16):
        context = None if sequences.context is None else sequences.context[rows]
        found = length_error(model, lengths[rows], context, max_length=2 * steps + 10, seed=seed + int(rows[0]))
        sums = [total + len(rows) * error for total, error in zip(sums, found, strict=True)]
    return {"length_error": sums[0] / len(sequences), "expected_length_error": sums[1] / len(sequences)}


def _sums(model: Design, part: Sequences, generator: torch.Generator, feedback: Feedback) -> dict[str, float]:
    """Sums over the targets of a part."""
    if not isinstance(model, FeedbackDesign):
        o = model(part.x, lengths=part.lengths)
        return {
            "loss": float(model(part.x, targets=part.targets, lengths=part.lengths).sum()),
            **_errors(model, o, part),
        }
    sequences = model.prepare(part.x, part.targets, part.lengths)
    taught = model.run(sequences)
    own = torch.ones(sequences.external.shape[:2], dtype=torch.bool, device=sequences.external.device)
    noise = model.distribution.noise(*own.shape, like=sequences.external, generator=generator)
    free = model.run(sequences, own=own, feedback=feedback, noise=noise)
    return {
        "loss": float(model.losses(sequences, taught).sum()),
        "free_running": float(model.losses(sequences, free).sum()),
        **_errors(model, taught.outputs, part),
        **{f"free_{name}": value for name, value in _errors(model, free.outputs, part).items()},
    }


def _errors(model: Design, o: Tensor, part: Sequences) -> dict[str, float]:
    """The right guesses among categories, or the mean squared error of the means, summed over targets."""
    if not part.summary:
        o = o[: len(part.targets), :, : model.distribution.size]
    targets, inside = part.targets, torch.ones(o.shape[:-1], dtype=torch.bool, device=o.device)
    if part.lengths is not None and not part.summary:
        inside = torch.arange(len(o), device=o.device)[:, None] < part.lengths
    if not targets.is_floating_point():
        return {"accuracy": float((model.distribution.mode(o) == targets)[inside].sum())}
    return {"squared_error": float((model.distribution.mean(o) - targets).square().mean(-1)[inside].sum())}
