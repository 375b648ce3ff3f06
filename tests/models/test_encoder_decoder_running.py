"""The encoder-decoder at work: one pass and step by step, its own outputs, padding, masks, training, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import throughtime as tt
from throughtime.layers import Memory

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-11}
KINDS = ("additive", "dot", "general", "concat", "none")
STOPS = ("end_symbol", "bernoulli_halt", "predicted_length")
CELLS = ("rnn", "lstm", "gru")
X = torch.tensor([[1, 5, 0], [2, 5, 3], [0, 1, 3], [4, 2, 2], [3, 0, 1]])  # (S, B)
Y = torch.tensor([[1, 3, 0], [0, 3, 1], [1, 0, 4], [3, 1, 0]])  # (T, B), 2 the border
SOURCE_LENGTHS, LENGTHS = [5, 1, 3], [2, 4, 0]


def made(**keys: Any) -> Any:
    """A small model in float64, its weights far enough from zero for everything to matter."""
    torch.manual_seed(5)
    sizes = {"source_vocabulary_size": 6, "target_vocabulary_size": 5, "hidden_size": 4, "embedding_size": 3}
    model = tt.models.EncoderDecoder(**{**sizes, "border_id": 2, "max_length": 7, **keys}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embedding.weight"):
                parameter.mul_(10)
            elif name.endswith(("weight_coverage", "bias_ho", "halt.bias")):
                parameter.normal_()
    return model


def loss_of(model: Any, **options: Any) -> Tensor:
    found: Tensor = model((X, torch.tensor(SOURCE_LENGTHS)), targets=Y, lengths=LENGTHS, **options)
    return found


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    """Of every parameter, each step of each sequence weighted by a number of its own."""
    weight = torch.randn(loss.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad((loss * weight).sum(), list(model.parameters()), materialize_grads=True)
    return list(found)


# -- one pass and step by step -----------------------------------------------------------------------------------------

REGULAR: list[dict[str, Any]] = [
    {"num_layers": 3, "residual": True},
    {"num_layers": 2, "layer_norm": True},
    {"num_layers": 2, "zoneout": 0.3},
    {"tied": "target", "embedding_size": 4, "num_layers": 2},
]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("options", REGULAR)
def test_all_steps_at_once_are_the_steps_one_by_one(stop: str, options: dict[str, Any]) -> None:
    """What torch.nn has not: the forced pass, and the walk that looks at targets only."""
    model = made(stop=stop, **options)
    none = torch.zeros(len(Y) + 1, 3, dtype=torch.bool)
    forced, walked = loss_of(model), loss_of(model, own=none[: len(Y) + (stop != "predicted_length")])
    torch.testing.assert_close(forced, walked, **TIGHT)
    for one, other in zip(gradients(model, forced), gradients(model, walked), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("stop", STOPS)
def test_its_own_outputs_are_what_it_reads_where_own_says_so(stop: str) -> None:
    """The mean: the expected embedding. A sample: the embedding of the token that the noise picks."""
    model = made(stop=stop, input_feeding=True)
    x, y = X[:, :1], Y[:, :1]
    sequences = model.prepare(x, y)
    steps = len(sequences.fed)
    own = torch.ones(steps, 1, dtype=torch.bool)
    noise = torch.rand(steps, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampled = model.run(sequences, own=own, feedback="sample", noise=noise)
    p = sampled.outputs[..., :5].softmax(-1)
    picked = (p.cumsum(-1) <= noise).sum(-1)  # (T, 1)
    if stop != "end_symbol":
        assert not (picked == 2).any()
    as_targets = sequences._replace(fed=functional.pad(picked, (0, 0, 1, 0), value=2)[:-1])
    torch.testing.assert_close(model.run(as_targets).outputs, sampled.outputs, **TIGHT)

    mean = model.run(sequences, own=own)
    embedded = torch.cat([model.target_embedding(torch.tensor([[2]])),
                          mean.outputs[:-1, :, :5].softmax(-1) @ model.target_embedding.weight])  # fmt: skip
    with torch.no_grad():
        model.target_embedding.weight = torch.nn.Parameter(torch.cat([model.target_embedding.weight, embedded[:, 0]]))
    as_targets = sequences._replace(fed=torch.arange(5, 5 + steps)[:, None])
    torch.testing.assert_close(model.run(as_targets).outputs, mean.outputs, **TIGHT)


def test_gradients_flow_through_the_mean_of_its_own_outputs() -> None:
    model = made(attention="none")
    own = torch.tensor([[False], [True], [False]])
    bias = model.readout.bias_ho
    last = model(X[:, :1], targets=Y[:2, :1], own=own)[1]  # after y(1) that it has put out
    assert torch.autograd.grad(last.sum(), model.target_embedding.weight)[0].all()  # every token's, by its probability
    taught = model(X[:, :1], targets=Y[:2, :1])[1]
    assert not torch.autograd.grad(taught.sum(), model.target_embedding.weight)[0][[0, 3, 4]].any()
    assert bias.grad is None


def test_input_feeding_and_coverage_change_the_result() -> None:
    for keys in ({"input_feeding": True}, {"coverage": True}):
        model = made(**keys)
        as_is = loss_of(model)
        with torch.no_grad():
            if "coverage" in keys:
                model.attention.weight_coverage.zero_()
            else:
                model.decoder.weight_ih_l0[:, 3:].zero_()
        without = loss_of(model)
        torch.testing.assert_close(as_is[0], without[0], **TIGHT)  # nothing has been fed yet, or looked at
        assert bool((as_is[1:3, 0] != without[1:3, 0]).all())


def test_the_coverage_loss_is_what_is_looked_at_twice() -> None:
    model = made(coverage=True, coverage_loss=0.7).train()
    sequences = model.prepare(X, Y)
    memory: Memory = sequences.encoded.memory
    seen, looked = [], model.attention.forward

    def watched(query: Tensor, memory: Memory, coverage: Tensor) -> Any:
        seen.append(looked(query, memory, coverage).weights[:, 0])
        return looked(query, memory, coverage)

    model.attention.forward = watched
    done = model.run(sequences)
    penalty = [torch.zeros(3).double()]
    for t in range(1, len(seen)):
        penalty.append(sum(torch.minimum(seen[t][:, j], sum(a[:, j] for a in seen[:t])) for j in range(len(X))))
    torch.testing.assert_close(done.penalty, torch.stack(penalty), **TIGHT)
    plain = model.losses(sequences, done._replace(penalty=None))
    torch.testing.assert_close(model.losses(sequences, done), plain + 0.7 * torch.stack(penalty), **TIGHT)
    torch.testing.assert_close(model.eval().losses(sequences, done), plain, **TIGHT)
    torch.testing.assert_close(model.log_prob(Y, X).steps, -plain, **TIGHT)
    assert memory.inside is None


# -- padding -----------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=4),
    st.sampled_from(KINDS),
    st.sampled_from(STOPS),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_batch_is_its_members_whatever_stands_in_the_padding(
    sizes: list[tuple[int, int]], kind: str, stop: str, stepped: bool, random: Any
) -> None:
    model = made(attention=kind, stop=stop, input_feeding=stepped, coverage=stepped and kind != "none", num_layers=2)
    x = torch.tensor([[random.randrange(6) for _ in sizes] for _ in range(5)])
    y = torch.tensor([[random.choice([0, 1, 3, 4]) for _ in sizes] for _ in range(4)])
    sources, lengths = torch.tensor([one for one, _ in sizes]), torch.tensor([one for _, one in sizes])
    y[torch.arange(4)[:, None] >= lengths] = 99
    x[torch.arange(5)[:, None] >= sources] = -7
    together = model((x, sources), targets=y, lengths=lengths)
    of_batch = gradients(model, together)
    alone, one_by_one = [], []
    for row, (source, length) in enumerate(sizes):
        found = model(x[:source, row : row + 1], targets=y[:length, row : row + 1])
        alone.append(functional.pad(found, (0, 0, 0, len(together) - len(found))))
        one_by_one.append(found)
    torch.testing.assert_close(together, torch.cat(alone, 1), **TIGHT)
    for one, other in zip(of_batch, gradients(model, torch.cat(alone, 1)), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)
    logs = model.log_prob(y, (x, sources), lengths=lengths)
    torch.testing.assert_close(logs.total, torch.stack([-found.sum() for found in one_by_one]), **TIGHT)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("stepped", [False, True])
def test_a_batch_of_nothing(stop: str, stepped: bool) -> None:
    """No pairs, or pairs without symbols on either side."""
    model = made(stop=stop, input_feeding=stepped)
    more = int(stop != "predicted_length")
    none = model(torch.zeros(5, 0, dtype=torch.int64), targets=torch.zeros(4, 0, dtype=torch.int64))
    assert none.shape == (5, 0)
    none.sum().backward()
    y, lengths = model.sample(torch.zeros(5, 0, dtype=torch.int64), max_length=3)
    assert (y.shape, lengths.shape) == ((0, 0), (0,))
    empty = torch.zeros(0, 2, dtype=torch.int64)
    found = model(empty, targets=empty)
    assert found.shape == (1, 2)
    assert found.isfinite().all()
    found.sum().backward()
    assert model.run(model.prepare(empty, empty)).outputs.shape[:2] == (more, 2)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [
    {"num_layers": 2, "bridge": "linear", "coverage": True, "attention": "concat", "input_feeding": True},
    {"num_layers": 2, "bidirectional": False, "attention": "additive"},
    {"attention": "none", "tied": "target", "embedding_size": 4}, {"bridge": "zeros"},
])  # fmt: skip
def test_every_parameter_learns(stop: str, cell: str, options: dict[str, Any]) -> None:
    model = made(stop=stop, cell=cell, **options).train()
    loss_of(model).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("options", [
    {"dropout": 0.4}, {"variational_dropout": 0.4}, {"recurrent_dropout": 0.4}, {"zoneout": 0.4},
    {"weight_dropout": 0.4}, {"dropout": 0.2, "variational_dropout": 0.2, "num_layers": 3, "residual": True},
])  # fmt: skip
def test_what_is_dropped_in_training_is_had_again_by_its_seed(options: dict[str, Any], stepped: bool) -> None:
    model, found = made(input_feeding=stepped, coverage=stepped, **options), []
    calm = loss_of(model)
    model.train()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(loss_of(model))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], calm)
    torch.testing.assert_close(loss_of(model.eval()), calm, **TIGHT)


def test_one_mask_for_all_steps_of_the_readout() -> None:
    """Variational dropout of h̃: the same units at every step, in one pass and step by step."""
    for stepped in (False, True):
        model = made(variational_dropout=0.5, hidden_size=64, input_feeding=stepped).train()
        torch.manual_seed(0)
        gone = model.run(model.prepare(X, Y)).hidden == 0  # (T, B, H)
        assert torch.equal(gone, gone[:1].expand_as(gone))
        assert 0.3 < float(gone.double().mean()) < 0.7


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = made(tied="all", embedding_size=4, target_vocabulary_size=6, coverage=True, stop="bernoulli_halt").float()
    model.save(tmp_path)
    again = tt.models.EncoderDecoder.load(tmp_path)
    assert torch.equal(loss_of(again), loss_of(model))
    assert again.readout.weight_ho is again.source_embedding.weight
    assert again.config == model.config


def test_gradients_by_finite_differences() -> None:
    small = {"source_vocabulary_size": 2, "target_vocabulary_size": 3, "hidden_size": 2, "embedding_size": 1}
    model = made(cell="rnn", input_feeding=True, coverage=True, attention="additive", **small)
    names, x, y = [name for name, _ in model.named_parameters()], X[:3, :2] % 2, Y[:2, :2] % 2

    def loss(*weights: Tensor) -> Tensor:
        swapped = dict(zip(names, weights, strict=True))
        found: Tensor = torch.func.functional_call(model, swapped, (x,), {"targets": y, "lengths": [1, 2]})
        return found

    inputs = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_defaults_train() -> None:
    """Copying five tokens of eight, in the default configuration, only smaller."""
    torch.manual_seed(0)
    model = tt.models.EncoderDecoder(source_vocabulary_size=9, target_vocabulary_size=9, hidden_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        y = torch.randint(1, 9, (5, 64))
        optimizer.zero_grad()
        model(y, targets=y).sum(0).mean().backward()
        optimizer.step()
    y = torch.randint(1, 9, (5, 200))
    written, lengths = model.sample(y, max_length=8, generator=torch.Generator().manual_seed(0))
    assert len(written) >= 5
    right = (written[:5] == y).all(0) & (lengths == 5)
    assert float(right.double().mean()) > 0.9
