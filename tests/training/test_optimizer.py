from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_task import ToyModel

from throughtime.errors import ConfigError
from throughtime.training.config import TrainingConfig
from throughtime.training.optimizer import (
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
)


def test_only_weight_matrices_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LSTM(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = (
        {names[id(p)] for p in group["params"]}  # type: ignore[attr-defined]
        for group in parameter_groups(model, 0.1)
    )
    assert decayed == {"1.weight_ih_l0", "1.weight_hh_l0", "3.weight"}
    assert kept == {"0.weight", "1.bias_ih_l0", "1.bias_hh_l0", "2.weight", "2.bias", "3.bias"}


def test_a_tied_readout_is_its_embedding_and_frozen_parameters_are_left_out() -> None:
    model = ToyModel()
    model.readout.bias.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    members = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert len(members) == len(set(members)) == 5
    assert id(model.embedding.weight) in {id(p) for p in groups[1]["params"]}  # type: ignore[attr-defined]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_its_state_comes_back_bit_by_bit() -> None:
    model, config = ToyModel(), TrainingConfig()
    optimizer = make_optimizer(model, config)
    steps(model, optimizer, seed=1)
    other = ToyModel()
    other.load_state_dict(model.state_dict())
    resumed = make_optimizer(other, config)
    load_optimizer_tensors(resumed, {name: t.clone() for name, t in optimizer_tensors(optimizer).items()})
    steps(model, optimizer, seed=2)
    steps(other, resumed, seed=2)
    for here, there in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(here, there)


def test_the_configuration_of_the_resumed_run_holds() -> None:
    model = ToyModel()
    optimizer = make_optimizer(model, TrainingConfig(weight_decay=0.1))
    steps(model, optimizer, seed=1)
    resumed = make_optimizer(model, TrainingConfig(weight_decay=0.3))
    load_optimizer_tensors(resumed, optimizer_tensors(optimizer))
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.3, 0.0]


def test_the_state_of_another_model_is_refused() -> None:
    model = ToyModel(hidden_size=8)
    optimizer = make_optimizer(model, TrainingConfig())
    steps(model, optimizer, seed=1)
    with pytest.raises(ConfigError, match="optimizer: the checkpoint's state of parameter 0 does not fit this model"):
        load_optimizer_tensors(make_optimizer(ToyModel(hidden_size=9), TrainingConfig()), optimizer_tensors(optimizer))
