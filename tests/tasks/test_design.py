"""Designs trained by the loop into a run folder, evaluated with both ways of running, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import throughtime as tt
from throughtime.data.sequences import GeneratedSource, Sequences, TensorSource
from throughtime.errors import ConfigError, DataError, RunFolderError, UsageError
from throughtime.tasks import design
from throughtime.tasks.trainee import Trainee
from throughtime.training.inputs import FreeRunning, MixedLosses, ProfessorForcing, ScheduledSampling, TeacherForcing

pytestmark = pytest.mark.filterwarnings("ignore:.*NVML.*")


def echo(count: int, generator: torch.Generator) -> Sequences:
    """y(t) = x(t-1), of unequal lengths."""
    x = torch.randint(3, (8, count), generator=generator)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    return Sequences(torch.cat([torch.zeros_like(x[:1]), x[:-1]]), x, lengths=lengths)


def held_out(count: int = 40) -> Sequences:
    return echo(count, torch.Generator().manual_seed(99))


def model(kind: str = "HiddenRecurrent", **keys: Any) -> Any:
    torch.manual_seed(0)
    return getattr(tt.models, kind)(**{"input_size": 3, "output_size": 3, "cell": "gru", "hidden_size": 24, **keys})


QUICK: dict[str, Any] = {
    "max_steps": 80,
    "evaluate_every": 80,
    "learning_rate": 0.02,
    "warmup_steps": 0,
    "log_every": 40,
}


@pytest.mark.parametrize("kind", ["HiddenRecurrent", "ConditionalRecurrent"])
def test_a_design_learns_and_is_loaded_again(kind: str, tmp_path: Path) -> None:
    trained = model(kind)
    before = design.evaluate(trained, held_out())
    outcome = design.train(trained, GeneratedSource(echo, 32), held_out(), tmp_path / "run", **QUICK)
    assert outcome.best["accuracy"] > 0.95 > before["accuracy"]
    loaded = design.load(tmp_path / "run")
    assert design.evaluate(loaded, held_out()).items() <= outcome.best.items()
    kept, part = design.held_out(tmp_path / "run"), held_out().select(torch.arange(16))
    assert torch.equal(kept.targets, part.targets)
    assert kept.lengths is not None
    assert kept.lengths.tolist() == part.lengths.tolist()
    assert (tmp_path / "run" / "config.toml").read_text("utf-8").startswith("# A throughtime run: " + kind)


def test_the_exposure_gap_is_free_running_less_teacher_forcing() -> None:
    """Where y(t) repeats y(t-1) and the inputs say nothing, a taught network is lost when it runs by itself."""
    start = torch.randint(3, (1, 200), generator=torch.Generator().manual_seed(1))
    data = Sequences(start.expand(8, 200).contiguous(), torch.zeros(8, 200, 3))
    trained = model("ConditionalRecurrent")
    optimizer = torch.optim.Adam(trained.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        trained(data.inputs, targets=data.targets).sum().backward()
        optimizer.step()
    results = design.evaluate(trained, data)
    assert results["exposure_gap"] == pytest.approx(results["free_running"] - results["loss"])
    assert results["exposure_gap"] > 1
    assert design.evaluate(trained, data) == results
    assert design.evaluate(trained, data, seed=1) != results
    assert "exposure_gap" not in design.evaluate(model(), data)


@pytest.mark.parametrize("policy", ["free", "scheduled", "professor"])
def test_the_loop_trains_by_every_kind_of_policy(policy: str, tmp_path: Path) -> None:
    trained = model("OutputRecurrent")
    rule = {
        "free": FreeRunning(),
        "scheduled": ScheduledSampling("linear", 4),
        "professor": ProfessorForcing(trained, hidden_size=4),
    }[policy]
    weights = [parameter.detach().clone() for parameter in (*trained.parameters(), *rule.parameters())]
    outcome = design.train(
        trained, TensorSource(held_out(), 8), held_out(), tmp_path / "run", policy=rule, max_steps=5, warmup_steps=0
    )
    assert outcome.steps == 5
    after = [*trained.parameters(), *rule.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert {"loss", "free_running", "exposure_gap", "accuracy"} <= outcome.best.keys()


def test_a_run_goes_on_where_it_stopped_to_the_bit(tmp_path: Path) -> None:
    source = TensorSource(held_out(), 8)
    settings: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0, "evaluate_every": 100}
    straight = model("ConditionalRecurrent", dropout=0.2)
    policy = ScheduledSampling("linear", 10)
    design.train(straight, source, held_out(), tmp_path / "a", policy=policy, max_steps=8, **settings)
    halves = model("ConditionalRecurrent", dropout=0.2)
    design.train(halves, source, held_out(), tmp_path / "b", policy=policy, max_steps=4, **settings)
    again = model("ConditionalRecurrent", dropout=0.2)
    design.train(again, source, held_out(), tmp_path / "b", policy=policy, max_steps=8, resume=True, **settings)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))


def test_the_best_model_is_the_best_by_what_the_policy_trains_for(tmp_path: Path) -> None:
    trained = model("ConditionalRecurrent")
    found = {}
    for name, policy in (("forced", TeacherForcing()), ("free", FreeRunning()), ("mixed", MixedLosses(0.25))):
        source = TensorSource(held_out(), 8)
        found[name] = design.train(trained, source, held_out(), tmp_path / name, policy=policy, max_steps=1).best
    assert found["forced"]["loss"] == found["forced"]["teacher_forced"]
    assert found["free"]["loss"] == found["free"]["free_running"]
    mixed = found["mixed"]
    assert mixed["loss"] == pytest.approx(0.75 * mixed["teacher_forced"] + 0.25 * mixed["free_running"])


def test_lengths_chosen_by_the_model_are_compared_with_the_true_ones() -> None:
    halting = tt.models.ContextToSequence(context_size=2, output_size=3, hidden_size=4, stop="bernoulli_halt")
    data = Sequences(held_out().targets, context=torch.zeros(40, 2), lengths=held_out().lengths)
    results = design.evaluate(halting, data)
    assert {"length_error", "expected_length_error", "free_accuracy"} <= results.keys()
    assert 0 < results["expected_length_error"] < 20


def test_the_flow_of_gradients_is_logged_during_training(tmp_path: Path) -> None:
    design.train(model(), TensorSource(held_out(), 8), held_out(), tmp_path / "run", max_steps=4, flow_every=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "flow"] == [2, 4]


def test_numbers_have_a_squared_error() -> None:
    numbers = model("SequenceSummary", output="gaussian", output_size=1)
    data = Sequences(torch.ones(40, 1), held_out().inputs, lengths=held_out().lengths, summary=True)
    results = design.evaluate(numbers, data)
    with torch.no_grad():
        expected = float((numbers(data.inputs, lengths=data.lengths) - 1).square().mean())
    assert results["squared_error"] == pytest.approx(expected, rel=1e-5)
    assert results["loss"] == pytest.approx(0.5 * expected + 0.9189385, rel=1e-5)


def test_misuse_is_told_in_one_line(tmp_path: Path) -> None:
    trained, source = model(), TensorSource(held_out(), 8)
    with pytest.raises(ConfigError, match=r"design.train: 1 fault: training.learning_rat: unknown key, did you mean"):
        design.train(trained, source, held_out(), tmp_path / "a", learning_rat=1)
    with pytest.raises(ConfigError, match=r"design.train: batch_size is not a setting of whole sequences; give it to"):
        design.train(trained, source, held_out(), tmp_path / "a", batch_size=8)
    with pytest.raises(UsageError, match=r"policy must be a TrainingInput such as TeacherForcing\(\), got 'free'"):
        design.train(trained, source, held_out(), tmp_path / "a", policy="free")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="design: expected held-out sequences, got none"):
        design.train(
            trained, source, held_out().select(torch.tensor([], dtype=torch.int64)), tmp_path / "b", max_steps=1
        )
    with pytest.raises(UsageError, match="FreeRunning: expected a model that feeds its outputs back"):
        design.train(trained, source, held_out(), tmp_path / "c", policy=FreeRunning(), max_steps=1)
    with pytest.raises(RunFolderError, match="no such folder"):
        design.load(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="expected a trained design, got none yet"):
        design.load(tmp_path / "c")
    (tmp_path / "c" / "held-out.safetensors").write_bytes(b"{")
    with pytest.raises(RunFolderError, match=r"cannot be read: .*; restore the file, or train again"):
        design.held_out(tmp_path / "c")


def test_checkpoints_know_a_design_by_one_name() -> None:
    model = tt.models.HiddenRecurrent(input_size=2, output_size=2, hidden_size=4)
    names = Trainee(model, TeacherForcing()).state_dict()
    # Another name would part every run that is there from its checkpoints.
    assert {name.partition(".")[0] for name in names} == {"design"}
