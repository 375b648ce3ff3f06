"""What a network that feeds its outputs back sees in training: targets, its own outputs, or some of each.

Teacher forcing shows it the target y(t-1) at every step; when it runs freely it meets its own outputs, which it has
never seen (section 10.2.1). The other policies close that gap, each in its own way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from throughtime.data.sequences import Sequences
from throughtime.errors import UsageError
from throughtime.models import FeedbackModel, Model
from throughtime.models.feedback import Feedback, Prepared, Run
from throughtime.nn import GRU


class TrainingInput(nn.Module, ABC):
    """A policy: which loss of a batch a model is trained on. Draws are from torch's own generator, as dropout's are.

    feedback: what of its own outputs a network sees, here and when it is evaluated.
    """

    feedback: Feedback = "sample"

    def held_out(self, results: Mapping[str, float]) -> float:
        """By which of the losses of `tt.tasks.design.evaluate` the best model is chosen: that of teacher forcing."""
        return results["loss"]

    @abstractmethod
    def forward(self, model: Model, batch: Sequences, index: int) -> Tensor:
        """The loss of a batch, summed over steps and sequences, in nats; `index` counts batches from training's start.

        Raises:
            UsageError: the model feeds no outputs back, and the policy needs that.
        """


class TeacherForcing(TrainingInput):
    """Every step sees the target y(t-1): maximum likelihood (Williams & Zipser 1989). For every design."""

    def forward(self, model: Model, batch: Sequences, index: int) -> Tensor:
        """L = −Σ log p(y(t) | y(1..t-1), x)."""
        total: Tensor = model(batch.x, targets=batch.targets, lengths=batch.lengths).sum()
        return total


class FreeRunning(TrainingInput):
    """Every step sees what the network put out itself; with `feedback="mean"` gradients flow through it."""

    def __init__(self, feedback: Feedback = "mean") -> None:
        super().__init__()
        self.feedback = feedback

    def held_out(self, results: Mapping[str, float]) -> float:
        """That of running freely."""
        return results["free_running"]

    def extra_repr(self) -> str:
        """What it sees."""
        return f"feedback={self.feedback!r}"

    def forward(self, model: Model, batch: Sequences, index: int) -> Tensor:
        """−Σ log p(y(t) | ŷ(1..t-1), x)."""
        design, sequences = _prepared(self, model, batch)
        own = torch.ones(sequences.external.shape[:2], dtype=torch.bool, device=sequences.external.device)
        return design.losses(sequences, _run(design, sequences, own, self.feedback)).sum()


class MixedLosses(TrainingInput):
    """(1 - w) times the loss of teacher forcing plus w times that of running freely.

    Raises:
        UsageError: w is not between 0 and 1.
    """

    def __init__(self, weight: float = 0.5, feedback: Feedback = "mean") -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise UsageError(f"MixedLosses: weight must be in [0, 1], got {weight}")
        self.weight, self.feedback = weight, feedback
        self.forced, self.free = TeacherForcing(), FreeRunning(feedback)

    def held_out(self, results: Mapping[str, float]) -> float:
        """The weighted sum."""
        return (1 - self.weight) * results["loss"] + self.weight * results["free_running"]

    def extra_repr(self) -> str:
        """The weight of running freely."""
        return f"weight={self.weight:g}"

    def forward(self, model: Model, batch: Sequences, index: int) -> Tensor:
        """The weighted sum."""
        forced, free = self.forced(model, batch, index), self.free(model, batch, index)
        total: Tensor = (1 - self.weight) * forced + self.weight * free
        return total


class ScheduledSampling(TrainingInput):
    """A step sees the target with probability ε(i) at batch i, else the network's own output (Bengio et al. 2015).

    decay: "linear", ε = max(minimum, start - i / k); "exponential", ε = max(minimum, start · kⁱ), k below 1;
        "inverse_sigmoid", ε = max(minimum, start · k / (k + exp(i / k))), k at least 1.
    per: one draw for each "step", or one for a whole "sequence".

    Raises:
        UsageError: k or a probability out of range.
    """

    def __init__(
        self,
        decay: Literal["linear", "exponential", "inverse_sigmoid"] = "inverse_sigmoid",
        k: float = 1000.0,
        *,
        start: float = 1.0,
        minimum: float = 0.0,
        per: Literal["step", "sequence"] = "step",
        feedback: Feedback = "sample",
    ) -> None:
        super().__init__()
        if decay not in ("linear", "exponential", "inverse_sigmoid") or per not in ("step", "sequence"):
            raise UsageError(
                "ScheduledSampling: decay must be linear, exponential or inverse_sigmoid, and per step or sequence, "
                f"got {decay!r} and {per!r}"
            )
        sound = 0 < k < 1 if decay == "exponential" else k >= 1
        if not sound:
            form = "between 0 and 1" if decay == "exponential" else "at least 1 batch"
            raise UsageError(f"ScheduledSampling: k must be {form} for {decay} decay, got {k}")
        if not 0 <= minimum <= start <= 1:
            raise UsageError(f"ScheduledSampling: expected 0 <= minimum <= start <= 1, got {minimum} and {start}")
        self.decay, self.k, self.start, self.minimum, self.per = decay, k, start, minimum, per
        self.feedback = feedback

    def held_out(self, results: Mapping[str, float]) -> float:
        """That of running freely, for which a network is made ready here."""
        return results["free_running"]

    def probability(self, index: int) -> float:
        """ε(i), the probability that a step of batch i sees the target."""
        if self.decay == "linear":
            value = self.start - index / self.k
        elif self.decay == "exponential":
            value = self.start * self.k**index
        else:
            # k / (k + exp(i / k)), without overflow.
            value = self.start * float(torch.sigmoid(torch.tensor(self.k).log() - index / self.k))
        return max(self.minimum, value)

    def extra_repr(self) -> str:
        """The schedule."""
        return (
            f"{self.decay!r}, k={self.k:g}, start={self.start:g}, minimum={self.minimum:g}, per={self.per!r}, "
            f"feedback={self.feedback!r}"
        )

    def forward(self, model: Model, batch: Sequences, index: int) -> Tensor:
        """−Σ log p(y(t) | what was seen of steps 1..t-1, x)."""
        design, sequences = _prepared(self, model, batch)
        steps, rows, _ = sequences.external.shape
        shape = (steps, rows) if self.per == "step" else (1, rows)
        own = (torch.rand(shape, device=sequences.external.device) >= self.probability(index)).expand(steps, rows)
        return design.losses(sequences, _run(design, sequences, own, self.feedback)).sum()


class ProfessorForcing(TrainingInput):
    """Teacher forcing, and a discriminator that the network must not let tell its two ways of running apart.

    The behaviour of a run, h(1..τ) with the means of its outputs, is read by a bidirectional GRU, which learns to say
    whether the run was free. The network minimises −log p and `weight` times −log of the probability that its free runs
    pass as taught ones. The discriminator learns only while it is less than 99 % right, the network from it only while
    it is more than 75 % right, as in the paper. For one process: with several, each would have its own share of right.

    Source: Lamb et al. 2016, eqs. 2-4 and section 3.
    """

    def __init__(self, model: FeedbackModel, *, weight: float = 1.0, hidden_size: int = 64) -> None:
        super().__init__()
        if not isinstance(model, FeedbackModel):
            raise UsageError(_no_feedback(self, model))
        self.weight = weight
        self.width = width = model.config.hidden_size + model.distribution.feedback_size
        self.discriminator = _Discriminator(width, hidden_size)

    def forward(self, model: Model, batch: Sequences, index: int) -> Tensor:
        """−Σ log p, plus the discriminator's loss and the network's, one of each for each sequence."""
        design, sequences = _prepared(self, model, batch)
        taught = design.run(sequences)
        own = torch.ones(sequences.external.shape[:2], dtype=torch.bool, device=sequences.external.device)
        free = _run(design, sequences, own, "sample")
        if free.hidden.shape[-1] + design.distribution.feedback_size != self.width:
            raise UsageError(
                "ProfessorForcing: expected the model it was made for, got another; make one for each model"
            )
        behaviours = [_behaviour(design, run, sequences) for run in (taught, free)]
        # Logits of being a taught run, (B,) each; what the discriminator learns stays out of the network.
        of_taught, of_free = (self.discriminator(seen.detach(), sequences.lengths) for seen in behaviours)
        right = float(torch.cat([of_taught > 0, of_free < 0]).float().mean())
        total = design.losses(sequences, taught).sum()
        if right < 0.99:
            total = total - (functional.logsigmoid(of_taught) + functional.logsigmoid(-of_free)).sum()
        if right > 0.75:
            # And what the network learns of it stays out of the discriminator.
            fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            passing = functional_call(self.discriminator, fixed, (behaviours[1], sequences.lengths))
            total = total - self.weight * functional.logsigmoid(passing).sum()
        return total


class _Discriminator(nn.Module):
    """Reads the behaviour of a run and gives the logit of its having been taught."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.reader = GRU(width, hidden_size, bidirectional=True)
        self.verdict = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, behaviour: Tensor, lengths: Tensor | None) -> Tensor:
        """(T, B, W) → (B,)."""
        read, _ = self.reader(behaviour, lengths=lengths)  # (T, B, 2 H)
        steps = len(behaviour) if lengths is None else lengths.clamp(min=1)[:, None]
        verdict: Tensor = self.verdict(read.sum(0) / steps)[:, 0]
        return verdict


def _behaviour(design: FeedbackModel, run: Run, sequences: Prepared) -> Tensor:
    """h(t) beside what the outputs say of y(t), zero behind a sequence's end, (T, B, H + F)."""
    seen = torch.cat([run.hidden, design.distribution.mean(run.outputs[..., : design.distribution.size])], -1)
    return seen if sequences.inside is None else torch.where(sequences.inside[..., None], seen, 0.0)


def _prepared(policy: TrainingInput, model: Model, batch: Sequences) -> tuple[FeedbackModel, Prepared]:
    if not isinstance(model, FeedbackModel):
        raise UsageError(_no_feedback(policy, model))
    return model, model.prepare(batch.x, batch.targets, batch.lengths)


def _no_feedback(policy: TrainingInput, model: object) -> str:
    return (
        f"{type(policy).__name__}: expected a model that feeds its outputs back (OutputRecurrent, ContextToSequence, "
        f"ConditionalRecurrent, EncoderDecoder), got {type(model).__name__}; train it with TeacherForcing"
    )


def _run(design: FeedbackModel, sequences: Prepared, own: Tensor, feedback: Feedback) -> Run:
    """A run in which some steps see the network's own outputs, the noise for samples drawn here."""
    noise = None
    if feedback == "sample":
        noise = design.distribution.noise(*own.shape, like=sequences.external)
    return design.run(sequences, own=own, feedback=feedback, noise=noise)
