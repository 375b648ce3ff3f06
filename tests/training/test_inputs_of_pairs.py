"""The policies of what a network sees in training, with pairs of sequences: each learns to copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.training.inputs import (
    FreeRunning,
    MixedLosses,
    ProfessorForcing,
    ScheduledSampling,
    TeacherForcing,
)

POLICIES: dict[str, Any] = {
    "teacher forcing": lambda model: TeacherForcing(),
    "free running": lambda model: FreeRunning(),
    "free running on samples": lambda model: FreeRunning("sample"),
    "mixed losses": lambda model: MixedLosses(),
    "scheduled sampling": lambda model: ScheduledSampling("linear", 100),
    "scheduled sampling of sequences": lambda model: ScheduledSampling("exponential", 0.9, per="sequence"),
    "professor forcing": lambda model: ProfessorForcing(model, hidden_size=8),
}


class Batch(NamedTuple):
    """Pairs: x with its lengths, y, and the lengths of y."""

    x: tuple[Tensor, Tensor]
    targets: Tensor
    lengths: Tensor


def copies(rows: int, seed: int) -> Batch:
    """Sequences of one to three tokens, each its own target."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4, (rows,), generator=generator)
    y = torch.randint(1, 5, (3, rows), generator=generator)
    return Batch((y, lengths), y, lengths)


def made(**keys: Any) -> Any:
    torch.manual_seed(1)
    return tt.models.EncoderDecoder(source_vocabulary_size=5, target_vocabulary_size=5, hidden_size=16, cell="gru",
                                    embedding_size=16, max_length=3, **keys)  # fmt: skip


@pytest.mark.parametrize("stop", ["end_symbol", "bernoulli_halt", "predicted_length"])
@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_trains_pairs(name: str, stop: str) -> None:
    model = made(stop=stop)
    policy = POLICIES[name](model)
    optimizer = torch.optim.Adam([*model.parameters(), *policy.parameters()], lr=0.02)
    held_out = copies(100, 0)
    before = float(TeacherForcing()(model, held_out, 0).detach())
    for index in range(25):
        optimizer.zero_grad()
        (policy(model, copies(32, index + 1), index) / 32).backward()
        optimizer.step()
    assert float(TeacherForcing()(model, held_out, 0).detach()) < 0.8 * before


def test_teacher_forcing_is_the_likelihood() -> None:
    model, batch = made(), copies(6, 3)
    expected = -model.log_prob(batch.targets, batch.x, lengths=batch.lengths).total.sum()
    torch.testing.assert_close(TeacherForcing()(model, batch, 0), expected)


def test_free_running_reads_its_own_means_from_the_second_step_on() -> None:
    model, batch = made(input_feeding=True), copies(6, 3)
    free = FreeRunning()(model, batch, 0)
    own = torch.ones(4, 6, dtype=torch.bool)
    own[0] = False
    torch.testing.assert_close(free, model(batch.x, targets=batch.targets, lengths=batch.lengths, own=own).sum())
    assert not torch.allclose(free, TeacherForcing()(model, batch, 0))


def test_scheduled_sampling_begins_as_teacher_forcing() -> None:
    model, batch = made(), copies(6, 3)
    policy = ScheduledSampling("linear", 10)
    torch.testing.assert_close(policy(model, batch, 0), TeacherForcing()(model, batch, 0))
    torch.manual_seed(0)
    late = policy(model, batch, 10)
    torch.manual_seed(0)
    torch.rand(4, 6)  # who sees what
    noise = model.distribution.noise(4, 6, like=late)
    own = torch.ones(4, 6, dtype=torch.bool)
    right = model(batch.x, targets=batch.targets, lengths=batch.lengths, own=own, feedback="sample", noise=noise)
    torch.testing.assert_close(late, right.sum())


def test_professor_forcing_tells_the_two_ways_of_running_apart() -> None:
    model, batch = made(), copies(16, 3)
    policy = ProfessorForcing(model, hidden_size=8)
    policy(model, batch, 0).backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
