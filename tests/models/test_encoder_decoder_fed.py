"""Input feeding as one node of the graph is the walk, step by step: values, gradients, masks, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import EngineError
from throughtime.models import fed_decoder
from throughtime.models.fed_decoder import fed_refusal

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-11}
CELLS = ("rnn", "lstm", "gru")
X = torch.tensor([[1, 5, 0], [2, 5, 3], [0, 1, 3], [4, 2, 2], [3, 0, 1]])  # (S, B)
Y = torch.tensor([[1, 3, 3], [4, 3, 1], [1, 2, 4], [3, 1, 2]])  # (T, B)
SOURCE_LENGTHS, LENGTHS = [5, 0, 3], [2, 4, 0]
RANDOM = {"dropout": 0.3, "variational_dropout": 0.2, "recurrent_dropout": 0.4}


def made(**keys: Any) -> Any:
    torch.manual_seed(5)
    sizes = {"source_vocabulary_size": 6, "target_vocabulary_size": 5, "hidden_size": 4, "embedding_size": 3}
    model = tt.models.EncoderDecoder(**{**sizes, "input_feeding": True, "max_length": 7, **keys}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def loss_of(model: Any) -> Tensor:
    found: Tensor = model((X, torch.tensor(SOURCE_LENGTHS)), targets=Y, lengths=LENGTHS)
    return found


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    weight = torch.randn(loss.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((loss * weight).sum(), list(model.parameters()), materialize_grads=True))


def check_against_the_walk(training: bool = False, **keys: Any) -> None:
    node, walk = (made(engine=engine, **keys).train(training) for engine in ("auto", "reference"))
    for model, fits in ((node, True), (walk, False)):
        sequences = model.prepare((X, torch.tensor(SOURCE_LENGTHS)), Y, LENGTHS)
        assert (fed_refusal(model, sequences) is None) == fits
    found, right = loss_of(node), loss_of(walk)
    torch.testing.assert_close(found, right, **TIGHT)
    for (name, _), one, other in zip(
        node.named_parameters(), gradients(node, found), gradients(walk, right), strict=True
    ):
        torch.testing.assert_close(one, other, **TIGHT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["dot", "general"])
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_the_walk(cell: str, kind: str, layers: int) -> None:
    for stop in ("end_symbol", "bernoulli_halt", "predicted_length"):
        check_against_the_walk(cell=cell, attention=kind, num_layers=layers, stop=stop)


@pytest.mark.parametrize("cell", CELLS)
def test_with_residuals_and_another_bridge_too(cell: str) -> None:
    check_against_the_walk(cell=cell, num_layers=3, residual=True, bridge="linear")
    check_against_the_walk(cell=cell, num_layers=2, bridge="zeros", tied="target", embedding_size=4)


@pytest.mark.parametrize("keys", [RANDOM, {"dropout": 0.3}, {"recurrent_dropout": 0.4}, {"weight_dropout": 0.3}])
@pytest.mark.parametrize("cell", CELLS)
def test_with_the_same_masks_in_training_too(cell: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that depend on a tensor's last axes alone: whoever draws them, and however often, they are the same."""

    def mask(shape: tuple[int, ...], probability: float) -> Tensor:
        kept = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))) > probability
        return kept / (1 - probability)

    def dropout(inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return inputs * mask(tuple(inputs.shape[-2:]), p) if training else inputs

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    for module in ("throughtime.nn.steps", "throughtime.nn.recurrent", "throughtime.layers.noise"):
        monkeypatch.setattr(f"{module}.locked_mask", lambda like, size, p: mask(size, p))
    monkeypatch.setattr(fed_decoder, "locked_mask", lambda like, size, p: mask(size, p))
    for residual in (False, True):
        check_against_the_walk(True, cell=cell, num_layers=3, residual=residual, **keys)


def test_random_masks_are_the_seeds_and_fresh_for_each_step() -> None:
    model, found = made(num_layers=2, hidden_size=64, **RANDOM).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model.run(model.prepare(X, Y)).hidden)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    gone = found[0] == 0  # (T, B, H)
    assert bool(gone.all(0).any())  # by the mask for all steps
    assert not torch.equal(gone[0], gone[1])  # and by those of each
    assert abs(float(gone.double().mean()) - (1 - 0.7 * 0.8)) < 0.08


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_by_finite_differences(cell: str) -> None:
    small = {"source_vocabulary_size": 2, "target_vocabulary_size": 3, "hidden_size": 2, "embedding_size": 1}
    model = made(cell=cell, num_layers=2, residual=True, bidirectional=False, **small)
    encoded = model.encode((X[:3, :2] % 2, torch.tensor([3, 1])))
    sequences = model.prepare(X[:3, :2] % 2, Y[:3, :2] % 2 + 1)
    states = [field.detach().requires_grad_() for state in encoded.states for field in state]
    keys, values = (tensor.detach().requires_grad_() for tensor in encoded.memory[:2])
    names = [name for name, _ in model.named_parameters() if name.startswith(("decoder", "combine"))]
    kind, fields = type(encoded.states[0]), len(encoded.states[0])

    def hidden(keys: Tensor, values: Tensor, *rest: Tensor) -> Tensor:
        own = [kind(*rest[i : i + fields]) for i in range(0, 2 * fields, fields)]
        begun = encoded._replace(memory=encoded.memory._replace(keys=keys, values=values), states=own)
        for name, tensor in zip(names, rest[2 * fields :], strict=True):
            owner, _, last = name.rpartition(".")
            getattr(model.get_submodule(owner), "_parameters")[last] = tensor  # noqa: B009
        found: Tensor = model.run(sequences._replace(encoded=begun)).hidden
        return found

    weights = [model.get_parameter(name) for name in names]
    assert torch.autograd.gradcheck(hidden, [keys, values, *states, *weights])


def test_a_graph_may_be_gone_through_twice() -> None:
    model = made()
    loss = loss_of(model).sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)
    again = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_second_derivatives_are_the_walks() -> None:
    model = made()
    loss = loss_of(model).sum()
    with pytest.raises(EngineError, match='first derivatives only; for second ones make the model with engine="refer'):
        torch.autograd.grad(loss, model.combine.weight, create_graph=True)
    model = made(engine="reference")
    (first,) = torch.autograd.grad(loss_of(model).sum(), model.combine.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), model.combine.weight)
    assert second.abs().sum() > 0


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"coverage": True}, "input feeding alone"),
        ({"input_feeding": False}, "input feeding alone"),
        ({"attention": "additive"}, "attention of kind dot and general"),
        ({"attention": "none"}, "attention of kind dot and general"),
        ({"layer_norm": True}, "cells without layer normalisation"),
        ({"zoneout": 0.1}, "no zoneout"),
        ({"engine": "reference"}, "engines other than the reference"),
    ],
)
def test_the_walk_is_for_the_rest(keys: dict[str, Any], text: str) -> None:
    model = made(**keys)
    assert fed_refusal(model, model.prepare(X, Y.clamp(min=1))) == f"the decoder as one node is for {text}"


def test_the_walk_is_for_no_steps_autocast_and_transforms() -> None:
    model = made(stop="predicted_length")
    assert "at least one step" in str(fed_refusal(model, model.prepare(X, Y[:0])))
    sequences = model.prepare(X, Y)
    with torch.autocast("cpu", torch.bfloat16):
        assert "one precision" in str(fed_refusal(model, sequences))
    names = [name for name, _ in model.named_parameters()]
    weights = tuple(parameter.detach() for parameter in model.parameters())

    def total(*given: Tensor) -> Tensor:
        swapped = dict(zip(names, given, strict=True))
        found: Tensor = torch.func.functional_call(model, swapped, (X,), {"targets": Y}).sum()
        return found

    found = torch.func.grad(total, argnums=tuple(range(len(weights))))(*weights)
    right = torch.autograd.grad(model(X, targets=Y).sum(), list(model.parameters()), materialize_grads=True)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, **TIGHT)
