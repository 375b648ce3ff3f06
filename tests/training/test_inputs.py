"""What a network sees of its own outputs in training: each policy is what its paper says, for every such design."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import throughtime as tt
from throughtime.data.sequences import Sequences
from throughtime.errors import UsageError
from throughtime.models import FeedbackDesign
from throughtime.training.inputs import (
    FreeRunning,
    MixedLosses,
    ProfessorForcing,
    ScheduledSampling,
    TeacherForcing,
    TrainingInput,
)

DESIGNS = ("ConditionalRecurrent", "OutputRecurrent", "ContextToSequence", "ContextToSequence halting")
T, B = 6, 3


def made(name: str, output: str = "categorical", cell: str = "gru") -> tuple[FeedbackDesign, Sequences]:
    torch.manual_seed(0)
    common: dict[str, Any] = {"output": output, "output_size": 4, "cell": cell, "hidden_size": 5}
    targets = torch.randint(4, (T, B)) if output == "categorical" else torch.rand(T, B, 4).round()
    lengths = torch.tensor([6, 2, 0])
    if name.startswith("ContextToSequence"):
        stop = "bernoulli_halt" if "halting" in name else "given"
        model: Any = tt.models.ContextToSequence(context_size=2, stop=stop, **common)
        return model, Sequences(targets, context=torch.randn(B, 2), lengths=lengths)
    model = getattr(tt.models, name)(input_size=2, **common)
    return model, Sequences(targets, torch.randn(T, B, 2), lengths=lengths)


def policies(model: FeedbackDesign) -> list[TrainingInput]:
    return [
        TeacherForcing(),
        FreeRunning(),
        FreeRunning("sample"),
        MixedLosses(),
        ScheduledSampling("linear", 10),
        ScheduledSampling("exponential", 0.9, per="sequence", feedback="mean"),
        ProfessorForcing(model, hidden_size=4),
    ]


@pytest.mark.parametrize("output", ["categorical", "bernoulli", "learned_gaussian", "mixture_density"])
@pytest.mark.parametrize("name", DESIGNS)
def test_every_policy_trains_every_design_that_feeds_outputs_back(name: str, output: str) -> None:
    model, batch = made(name, output)
    for policy in policies(model):
        model.zero_grad()
        loss = policy(model, batch, 5)
        loss.backward()
        assert loss.isfinite()
        gradient = model.recurrent.get_parameter("weight_ih_l0").grad
        assert gradient is not None
        assert gradient.abs().sum() > 0, policy


def test_teacher_forcing_is_the_likelihood() -> None:
    model, batch = made("ConditionalRecurrent")
    expected = -model.log_prob(batch.targets, batch.inputs, lengths=batch.lengths).total.sum()
    torch.testing.assert_close(TeacherForcing()(model, batch, 0), expected)


def by_hand(model: Any, batch: Sequences) -> torch.Tensor:
    """−log p of the targets by a network that sees its own ŷ, one step after the other, for the first sequence."""
    fed, state, total = torch.zeros(1, 4), None, torch.zeros(())
    for t in range(T):
        h, state = model.recurrent(torch.cat([batch.inputs[t, :1], fed], -1)[None], state)
        o = model.readout(h[0])
        total = total - o.log_softmax(-1)[0, batch.targets[t, 0]]
        fed = o.softmax(-1)
    return total


def test_free_running_sees_its_own_outputs() -> None:
    model, batch = made("ConditionalRecurrent")
    loss = FreeRunning()(model, batch.select(torch.tensor([0])), 0)
    expected = by_hand(model, batch)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, model.readout.weight_ho)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, model.readout.weight_ho)[0])


def test_mixed_losses_are_the_weighted_sum() -> None:
    model, batch = made("ConditionalRecurrent")
    forced, free = TeacherForcing()(model, batch, 0), FreeRunning()(model, batch, 0)
    torch.testing.assert_close(MixedLosses(0.25)(model, batch, 0), 0.75 * forced + 0.25 * free)
    with pytest.raises(UsageError, match=r"MixedLosses: weight must be in \[0, 1\], got 2"):
        MixedLosses(2)


def test_scheduled_sampling_begins_as_teacher_forcing_and_ends_as_free_running() -> None:
    model, batch = made("ConditionalRecurrent")
    policy = ScheduledSampling("linear", 10, feedback="mean")
    torch.testing.assert_close(policy(model, batch, 0), TeacherForcing()(model, batch, 0))
    torch.testing.assert_close(policy(model, batch, 10), FreeRunning()(model, batch, 0))


def test_the_decays_are_those_of_the_paper() -> None:
    linear = ScheduledSampling("linear", 100, minimum=0.2)
    assert [linear.probability(i) for i in (0, 50, 1000)] == [1.0, 0.5, 0.2]
    exponential = ScheduledSampling("exponential", 0.9)
    assert exponential.probability(7) == pytest.approx(0.9**7)
    inverse = ScheduledSampling("inverse_sigmoid", 50)
    for i in (0, 100, 500):
        assert inverse.probability(i) == pytest.approx(50 / (50 + math.exp(i / 50)), rel=1e-5)
    assert inverse.probability(10**6) == 0


def test_draws_are_for_each_step_or_for_a_whole_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made("ConditionalRecurrent")
    batch = Sequences(torch.randint(4, (20, 40)), torch.randn(20, 40, 2))
    seen: list[torch.Tensor] = []
    run = type(model).run

    def watched(self: Any, sequences: Any, *, own: torch.Tensor, **how: Any) -> Any:
        seen.append(own)
        return run(self, sequences, own=own, **how)

    monkeypatch.setattr(type(model), "run", watched)
    for per in ("step", "sequence"):
        ScheduledSampling("linear", 10, per=per)(model, batch, 7)  # type: ignore[arg-type]
    by_step, by_sequence = seen
    assert 0.6 < by_step.float().mean() < 0.8
    assert (by_sequence == by_sequence[0]).all()
    assert 0 < by_sequence.float().mean() < 1
    assert not (by_step == by_step[0]).all()


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="k must be between 0 and 1 for exponential decay, got 2"):
        ScheduledSampling("exponential", 2)
    with pytest.raises(UsageError, match=r"k must be at least 1 batch for linear decay, got 0\.5"):
        ScheduledSampling("linear", 0.5)
    with pytest.raises(UsageError, match=r"expected 0 <= minimum <= start <= 1, got 0\.5 and 0\.2"):
        ScheduledSampling("linear", 10, minimum=0.5, start=0.2)
    with pytest.raises(UsageError, match="decay must be linear, exponential or inverse_sigmoid, and per step or"):
        ScheduledSampling("cosine", 10)  # type: ignore[arg-type]


def test_professor_forcing_keeps_the_two_players_apart() -> None:
    model, batch = made("ConditionalRecurrent")
    policy = ProfessorForcing(model, hidden_size=4)
    # A discriminator that is sure of everything, and right about nothing or all, moves one player alone.
    last = policy.discriminator.verdict[2]
    torch.nn.init.zeros_(last.weight)

    def gradients(bias: float) -> tuple[float, float]:
        torch.nn.init.constant_(last.bias, bias)
        policy.zero_grad()
        model.zero_grad()
        (policy(model, batch, 0) - TeacherForcing()(model, batch, 0)).backward()
        of_policy = sum(float(p.grad.abs().sum()) for p in policy.parameters() if p.grad is not None)
        of_model = sum(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
        return of_policy, of_model

    # Half right: the discriminator learns; the network, whose free runs are not told apart, only by likelihood.
    of_policy, of_model = gradients(1.0)
    assert of_policy > 0
    assert of_model < 1e-5


def test_professor_forcing_teaches_the_network_where_it_is_found_out() -> None:
    model, _ = made("ConditionalRecurrent")
    whole = Sequences(torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8, 2))
    policy = ProfessorForcing(model, hidden_size=4)
    optimizer = torch.optim.Adam(policy.parameters(), 0.05)
    torch.nn.init.constant_(model.readout.bias_ho, 3.0)
    with torch.no_grad():
        model.readout.bias_ho[0] = -3.0  # free runs show y that taught ones never do
    for _ in range(40):
        optimizer.zero_grad()
        policy(model, whole, 0).backward()
        optimizer.step()
    model.zero_grad()
    (policy(model, whole, 0) - TeacherForcing()(model, whole, 0)).backward()
    assert sum(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) > 1e-4


def test_a_design_without_feedback_is_trained_by_its_targets_alone() -> None:
    model = tt.models.HiddenRecurrent(input_size=2, output_size=4, hidden_size=5)
    _, batch = made("ConditionalRecurrent")
    assert TeacherForcing()(model, batch, 0).isfinite()
    refused = r"FreeRunning: expected a model that feeds its outputs back \(OutputRecurrent, .*\), got HiddenRecurrent"
    with pytest.raises(UsageError, match=refused):
        FreeRunning()(model, batch, 0)
    with pytest.raises(UsageError, match="ProfessorForcing: expected a model that feeds its outputs back"):
        ProfessorForcing(model)  # type: ignore[arg-type]
