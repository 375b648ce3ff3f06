"""Design B taught in one native pass: the losses and gradients of the steps themselves, whoever asks for them how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.kernels.native import decoupled, library

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

STEPS, BATCH, INPUTS, OUTPUTS = 9, 4, 3, 5
LENGTHS = [9, 2, 0, 5]


def model(output: str, **keys: Any) -> tt.models.OutputRecurrent:
    torch.manual_seed(0)
    made = tt.models.OutputRecurrent(
        input_size=INPUTS, output_size=OUTPUTS, hidden_size=18, cell="rnn", output=output, **keys
    )
    return made.double()


def data(output: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    numbers = torch.randn(STEPS, BATCH, OUTPUTS, dtype=torch.float64)
    return x, torch.randint(OUTPUTS, (STEPS, BATCH)) if output == "categorical" else numbers


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each native pass made gradients too."""
    made: list[bool] = []
    losses = decoupled.losses

    def counted(*arguments: Any, with_gradients: bool, **keys: Any) -> Any:
        made.append(with_gradients)
        return losses(*arguments, with_gradients=with_gradients, **keys)

    monkeypatch.setattr(decoupled, "losses", counted)
    return made


def gradients(made: tt.models.OutputRecurrent, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(made.parameters())))


SCALARS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda steps: steps.sum(),
    "mean": lambda steps: steps.mean(),
    "a weight for each step": lambda steps: (steps * torch.arange(steps.numel()).reshape(steps.shape)).sum(),
    "one sequence": lambda steps: steps[:, 1].sum(),
}


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("output", ["categorical", "gaussian"])
def test_losses_and_gradients_are_those_of_the_steps(
    output: str, lengths: list[int] | None, scalar: str, passes: list[bool]
) -> None:
    x, y = data(output)
    ours, plain = model(output), model(output, engine="reference")
    found = ours(x, targets=y, lengths=lengths)
    assert passes == [True]
    never = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    for expected in (plain(x, targets=y, lengths=lengths), plain(x, targets=y, lengths=lengths, own=never)):
        torch.testing.assert_close(found, expected)
        right = gradients(plain, SCALARS[scalar](expected))
        torch.testing.assert_close(gradients(ours, SCALARS[scalar](found.clone())), right)
        found = ours(x, targets=y, lengths=lengths)


def test_other_outputs_and_engines_take_the_ordinary_way(passes: list[bool]) -> None:
    x, y = data("gaussian")
    for output, keys in (("learned_gaussian", {}), ("gaussian", {"engine": "torch"}), ("gaussian", {"num_layers": 2})):
        model(output, **keys)(x, targets=y).sum().backward()
    made = model("gaussian")
    made(x.requires_grad_(), targets=y).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert passes == []


def test_without_gradients_none_are_made(passes: list[bool]) -> None:
    x, y = data("categorical")
    made = model("categorical")
    with torch.no_grad():
        alone = made(x, targets=y)
    assert passes == [False]
    assert torch.equal(alone, made(x, targets=y).detach())


def test_frozen_parameters_have_no_gradients(passes: list[bool]) -> None:
    x, y = data("categorical")
    made = model("categorical")
    made.readout.requires_grad_(False)
    for scalar in SCALARS.values():
        made.zero_grad()
        scalar(made(x, targets=y)).backward()
        assert made.readout.weight_ho.grad is None
        assert all(p.grad is not None for p in made.recurrent.parameters())
    assert passes == [True] * len(SCALARS)


@pytest.mark.parametrize("output", ["categorical", "gaussian"])
def test_the_gradient_is_differentiable_itself(output: str, passes: list[bool]) -> None:
    x, y = data(output)
    penalties = []
    for made in (model(output), model(output, engine="torch")):
        first = torch.autograd.grad(made(x, targets=y).sum(), list(made.parameters()), create_graph=True)
        penalties.append(gradients(made, sum((g.square().sum() for g in first), torch.zeros(()).double())))
    torch.testing.assert_close(*penalties)
    assert passes == [True]


def test_a_graph_can_be_gone_through_twice() -> None:
    x, y = data("categorical")
    made = model("categorical")
    loss = made(x, targets=y).sum()
    first = torch.autograd.grad(loss, list(made.parameters()), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, list(made.parameters()))
    torch.testing.assert_close([2 * one for one in first], list(twice))
