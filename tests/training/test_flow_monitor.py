"""Gradients measured while a training goes on, and clipped entry by entry."""

from __future__ import annotations

import inspect
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_task import ToyTask

from throughtime.errors import ConfigError
from throughtime.models import LanguageModel
from throughtime.models.flow import model_flow
from throughtime.tasks import language
from throughtime.training.loop import Trainer

MakeTrainer = Callable[..., Trainer]
KEYS = (
    "model.hidden_size=12", "model.num_layers=2", "model.embedding_size=8", "model.dropout=0.3",
    "training.batch_size=6", "training.window=16", "training.warmup_steps=2", "training.max_steps=6",
    "training.precision=fp32", "training.device=cpu", "training.log_every=3",
)  # fmt: skip


def train(folder: Path, *overrides: str) -> Path:
    book = folder / "book.txt"
    book.write_text(inspect.getsource(shlex), "utf-8")
    run = folder / f"run-{len(list(folder.iterdir()))}"
    language.train([str(book)], run, overrides=[*KEYS, *overrides])
    return run


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_training_measures_its_gradients_and_stays_the_same(tmp_path: Path) -> None:
    watched, plain = train(tmp_path, "training.flow_every=2"), train(tmp_path)
    for name, tensor in load_file(plain / "model.safetensors").items():
        assert torch.equal(tensor, load_file(watched / "model.safetensors")[name]), name
    assert records(plain, "flow") == []
    lines = records(watched, "flow")
    assert [line["step"] for line in lines] == [2, 4, 6]
    norms = {f"layer_{layer}.lag_{lag}" for layer in (0, 1) for lag in (0, 1, 2, 4, 8, 15)}
    gates = {f"layer_{n}.{gate}_{end}" for n in (0, 1) for gate in "ifog" for end in ("low", "high")}
    assert lines[0].keys() == {"kind", "step"} | norms | gates
    assert all(math.isfinite(value) for name, value in lines[1].items() if name != "kind")
    assert [line["loss"] for line in records(plain, "train")] == [line["loss"] for line in records(watched, "train")]


def test_what_is_measured_is_the_gradient_of_the_models_own_losses() -> None:
    torch.manual_seed(0)
    model = LanguageModel(vocabulary_size=9, hidden_size=5, embedding_size=4, num_layers=2, dropout=0.5).double()
    tokens = torch.randint(9, (7, 3))
    found = model_flow(model, tokens[:-1], targets=tokens[1:], at=[5], jacobians=1)
    assert model.training
    assert model.recurrent.training
    model.eval()
    leaf: list[torch.Tensor] = []

    def keep(_: Any, __: Any, results: Any) -> Any:
        leaf.append(results[0].detach().requires_grad_())
        return (leaf[0], *results[1:])

    with model.recurrent.register_forward_hook(keep):
        nats, _ = model(tokens[:-1], targets=tokens[1:])
    nats[5].sum().backward()
    torch.testing.assert_close(found.layers[-1].norms["h"][0, :, 0], leaf[0].grad[5].norm(dim=-1))
    assert found.layers[0].singular_values is not None


def test_a_model_must_run_its_layers_once() -> None:
    from throughtime.errors import UsageError

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = LanguageModel(vocabulary_size=3, hidden_size=2, embedding_size=2).recurrent

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.recurrent(self.recurrent(x)[0])[0].sum(-1)

    with pytest.raises(
        UsageError, match="Twice must run its recurrent layers once over whole sequences, it ran them 2 t"
    ):
        model_flow(Twice(), torch.zeros(3, 1, 2))
    with pytest.raises(UsageError, match=r"Linear has no recurrent layers of tt.nn; give a layer or a cell itself"):
        model_flow(torch.nn.Linear(2, 2), torch.zeros(3, 1, 2))


def test_a_task_that_measures_no_flow_is_told(make_trainer: MakeTrainer) -> None:
    with pytest.raises(
        ConfigError, match=r"training.flow_every: task toy does not measure the flow of gradients; set it"
    ):
        make_trainer(max_steps=2, flow_every=1).fit()


def test_entries_of_the_gradient_are_clipped(make_trainer: MakeTrainer) -> None:
    """Plain descent at rate 1 from one batch: the step is the mean gradient, its norm clipped, then its entries."""
    keys = {"max_steps": 1, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "optimizer": "sgd",
            "learning_rate": 1.0}  # fmt: skip
    task = ToyTask(dropout=0.0)
    trainers = {
        limits: make_trainer(
            lambda: ToyTask(dropout=0.0),
            f"run-{limits}",
            gradient_clip=limits[0],
            gradient_clip_value=limits[1],
            **keys,
        )
        for limits in ((0, 0), (0, 0.01), (0.5, 0.02))
    }
    for limits, trainer in trainers.items():
        task.model.load_state_dict(trainer.task.model.state_dict())
        before = {name: parameter.detach().clone() for name, parameter in task.model.named_parameters()}
        task.model.zero_grad()
        loss = task.loss(task.model, task.batch(0), None)
        (loss.total / loss.count).backward()
        norm, value = limits
        if norm:
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), norm)
        if value:
            torch.nn.utils.clip_grad_value_(task.model.parameters(), value)
        trainer.fit()
        for name, after in trainer.task.model.named_parameters():
            torch.testing.assert_close(
                before[name] - after, dict(task.model.named_parameters())[name].grad, rtol=1e-4, atol=1e-6
            )
