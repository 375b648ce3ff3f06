"""tt.nn.replace_torch_layers: in place, whole or not at all, and nobody who held on to the model notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.utils.prune as pruning  # torch.nn.utils does not import it
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import UsageError


class Subclass(nn.LSTM):
    """Adds something that cannot be known."""


class Model(nn.Module):
    """Layers at the top, in lists, in dictionaries, in a module of its own, twice, and a subclass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.LSTM(3, 4, num_layers=2, bidirectional=True, dropout=0.5, batch_first=True)
        self.middle = nn.ModuleList([nn.Linear(8, 4), nn.Sequential(nn.RNN(4, 4, nonlinearity="relu", bias=False))])
        self.named = nn.ModuleDict({"gru": nn.GRU(4, 4)})
        self.cells = nn.ModuleList(
            [nn.RNNCell(4, 4, nonlinearity="relu"), nn.LSTMCell(4, 4), nn.GRUCell(4, 4, bias=False)]
        )
        self.projected = nn.LSTM(4, 4, proj_size=2)
        self.again = self.projected
        self.subclass = Subclass(2, 2)
        self.nothing: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.encoder(x)
        x, _ = self.middle[1](self.middle[0](x))
        x, _ = self.named["gru"](x)
        h = self.cells[0](x[0])
        h, _ = self.cells[1](h)
        h = self.cells[2](h)
        y, _ = self.projected(torch.cat([x, h[None]]))
        return self.subclass(y)[0]


KINDS = {
    "encoder": tt.nn.LSTM,
    "middle.1.0": tt.nn.RNN,
    "named.gru": tt.nn.GRU,
    "cells.0": tt.nn.RNNCell,
    "cells.1": tt.nn.LSTMCell,
    "cells.2": tt.nn.GRUCell,
    "projected": tt.nn.LSTM,
    "again": tt.nn.LSTM,
    "subclass": Subclass,
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_swapped_and_nothing_else_changes(training: bool) -> None:
    model = Model().train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    before, names = model(x), list(model.state_dict())
    parameters, generator = list(model.parameters()), torch.get_rng_state()
    assert tt.nn.replace_torch_layers(model) == 7
    assert torch.equal(torch.get_rng_state(), generator), "random numbers were used up"
    assert {name: type(model.get_submodule(name)) for name in KINDS} == KINDS
    assert model.projected is model.again
    assert all(module.training == training for module in model.modules())
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.manual_seed(2)
    after = model(x)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    weight = model.encoder.weight_hh_l1.detach().clone()
    optimizer.step()
    assert not torch.equal(model.encoder.weight_hh_l1, weight)
    assert tt.nn.replace_torch_layers(model) == 0


def test_hooks_of_every_kind_go_on_and_can_be_taken_off() -> None:
    model = nn.Sequential(nn.GRU(2, 3))
    seen: list[str] = []
    handles = [
        model[0].register_forward_hook(lambda *_: seen.append("forward")),
        model[0].register_forward_hook(lambda m, a, k, o: seen.append(f"keywords {len(k)}"), with_kwargs=True),
        model[0].register_forward_pre_hook(lambda *_: seen.append("before")),
        model[0].register_full_backward_hook(lambda *_: seen.append("backward")),
        model[0].register_state_dict_post_hook(lambda *_: seen.append("saved")),
    ]
    tt.nn.replace_torch_layers(model)

    def use() -> list[str]:
        seen.clear()
        model(torch.randn(2, 1, 2, requires_grad=True))[0].sum().backward()
        model.state_dict()
        return sorted(seen)

    assert use() == ["backward", "before", "forward", "keywords 0", "saved"]
    for handle in handles:
        handle.remove()
    assert use() == []


def test_frozen_and_shared_parameters_stay_so() -> None:
    model = nn.ModuleDict({"a": nn.GRU(2, 3), "b": nn.GRU(2, 3)})
    model["a"].weight_ih_l0.requires_grad_(False)
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    tt.nn.replace_torch_layers(model)
    assert not model["a"].weight_ih_l0.requires_grad
    assert model["b"].weight_hh_l0 is model["a"].weight_hh_l0


def parametrised(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")


def pruned(layer: nn.Module) -> None:
    pruning.l1_unstructured(layer, "weight_hh_l0", 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [parametrised, pruned, lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0")])
def test_changed_parameters_are_refused_and_nothing_is_swapped(change: Any) -> None:
    model = nn.ModuleList([nn.GRU(2, 3), nn.LSTM(2, 3)])
    change(model[1])
    with pytest.raises(
        UsageError, match=r"a torch\.nn\.LSTM has parametrised weights; remove the parametrisation first"
    ):
        tt.nn.replace_torch_layers(model)
    assert type(model[0]) is nn.GRU


def test_a_layer_itself_cannot_be_swapped_in_place() -> None:
    with pytest.raises(UsageError, match=r"got a torch\.nn\.GRU itself; make a tt\.nn\.GRU and load its state dict"):
        tt.nn.replace_torch_layers(nn.GRU(2, 3))
