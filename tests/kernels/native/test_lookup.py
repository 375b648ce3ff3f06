"""Inputs that are rows of a table: the same results and gradients as without knowing it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import ShapeError
from throughtime.kernels import Lookup
from throughtime.kernels.native import library, lookup

pytestmark = pytest.mark.skipif(library.missing_reason() is not None, reason=str(library.missing_reason()))

LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (tt.nn.RNN, {}),
    "lstm": (tt.nn.LSTM, {}),
    "lstm without biases": (tt.nn.LSTM, {"bias": False}),
    "lstm with a projection": (tt.nn.LSTM, {"proj_size": 5}),
    "gru": (tt.nn.GRU, {}),
    "gru without biases": (tt.nn.GRU, {"bias": False}),
    "gru reset before": (tt.nn.GRU, {"reset_after": False}),
    "two layers, both directions": (tt.nn.LSTM, {"num_layers": 2, "bidirectional": True}),
}
V, T, B = 7, 20, 6


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[lookup.Table]:
    """The tables that are made from here on."""
    made: list[lookup.Table] = []
    create = lookup.Table.__init__

    def remember(self: lookup.Table, *given: Any) -> None:
        create(self, *given)
        made.append(self)

    monkeypatch.setattr(lookup.Table, "__init__", remember)
    return made


def layer_and_table(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    kind, own = LAYERS[name]
    layer = kind(4, 11, engine="native", dtype=dtype, **own, **options)
    weight = torch.randn(V, 4, dtype=dtype).requires_grad_()
    return layer, weight, torch.randint(V, (T, B))


def results(layer: Any, weight: Tensor, tokens: Tensor, told: bool, **options: Any) -> dict[str, Tensor]:
    """Outputs and gradients of everything."""
    lengths = torch.tensor([T, 3, 0, T, 9, 1])
    options = {"lengths": lengths} | options | ({"lookup": Lookup(tokens, weight)} if told else {})
    outputs, final = layer(weight[tokens], **options)
    state = final if isinstance(final, tuple) else (final,)
    leaves = {"table": weight, **dict(layer.named_parameters())}
    loss = outputs.square().sum() + sum(field.sin().sum() for field in state)
    return {"outputs": outputs} | dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_it_changes_nothing(name: str, tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table(name)
    expected = results(layer, weight, tokens, told=False)
    assert not tables
    found = results(layer, weight, tokens, told=True)
    assert len(tables) == layer.directions  # of the first layer
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], msg=lambda text, key=key: f"{key}: {text}")
    with torch.no_grad():
        unwatched, _ = layer(weight[tokens], lengths=torch.tensor([T, 3, 0, T, 9, 1]), lookup=Lookup(tokens, weight))
    assert torch.equal(unwatched, found["outputs"])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_in_bfloat16_operands_are_rounded_as_without(name: str, tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (results(layer, weight, tokens, told=told) for told in (True, False))
    assert tables
    torch.testing.assert_close(found["outputs"], expected["outputs"], rtol=1e-5, atol=1e-5)
    for key, value in expected.items():
        # The gradients of summed inputs are rounded before their product without a table, and not with one.
        torch.testing.assert_close(found[key], value, rtol=0, atol=0.02 * float(value.detach().abs().max()), msg=key)


def test_resets_and_threads_change_nothing(tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table("lstm")
    resets = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.2
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(layer, weight, tokens, told=True, resets=resets, lengths=None))
    finally:
        torch.set_num_threads(before)
    expected = results(layer, weight, tokens, told=False, resets=resets, lengths=None)
    assert len(tables) == len(found)
    for key, value in expected.items():
        torch.testing.assert_close(found[0][key], value)
        assert all(torch.equal(found[0][key], other[key]) for other in found), key


def test_a_batch_first_layer_has_its_tokens_so_too(tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table("gru", batch_first=True)
    turned = tokens.transpose(0, 1)
    outputs, _ = layer(weight[turned], lookup=Lookup(turned, weight))
    assert tables
    torch.testing.assert_close(outputs, layer(weight[turned])[0])


def test_second_derivatives(tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table("lstm")

    def penalty(told: bool) -> Tensor:
        outputs, _ = layer(weight[tokens], lookup=Lookup(tokens, weight) if told else None)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), layer.weight_hh_l0)
        return second

    torch.testing.assert_close(penalty(True), penalty(False))
    assert tables


def test_a_frozen_table_and_frozen_weights() -> None:
    layer, weight, tokens = layer_and_table("lstm")
    weight.requires_grad_(False)
    layer.weight_ih_l0.requires_grad_(False)
    found = []
    for told in (True, False):
        outputs, _ = layer(weight[tokens], lookup=Lookup(tokens, weight) if told else None)
        found.append(torch.autograd.grad(outputs.sum(), [layer.bias_ih_l0, layer.weight_hh_l0]))
    for got, right in zip(*found, strict=True):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize("change", ["weight", "table"])
def test_a_change_before_the_backward_pass_is_noticed(change: str) -> None:
    layer, weight, tokens = layer_and_table("lstm")
    outputs, _ = layer(weight[tokens], lookup=Lookup(tokens, weight))
    with torch.no_grad():
        (layer.weight_ih_l0 if change == "weight" else weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_where_a_table_would_not_help_there_is_none(tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table("lstm")
    few = tokens[:2, :3]  # six inputs of seven rows
    layer(weight[few], lookup=Lookup(few, weight))
    layer(weight[tokens], lookup=Lookup(tokens, weight), checkpoint="sqrt")
    dropping, _, _ = layer_and_table("lstm", variational_dropout=0.5)
    dropping(weight[tokens], lookup=Lookup(tokens, weight))
    assert not tables
    dropping.eval()(weight[tokens], lookup=Lookup(tokens, weight))
    assert len(tables) == 1


def test_tokens_that_do_not_fit_are_refused() -> None:
    layer, weight, tokens = layer_and_table("lstm")
    with pytest.raises(ShapeError, match=r"LSTM: lookup must be tokens and the table that the inputs are rows of, got"):
        layer(weight[tokens], lookup=Lookup(tokens[1:], weight))
    wrong = tokens.clone()
    wrong[3, 2] = V
    with pytest.raises(ShapeError, match=r"lookup: tokens must be in 0\.\.6, the table's rows, got 0\.\.7"):
        layer(weight[tokens], lookup=Lookup(wrong, weight))
    with pytest.raises(ShapeError, match=r"got tokens \(20, 6\) torch\.float64"):
        layer(weight[tokens], lookup=Lookup(tokens.double(), weight))


def test_tokens_of_any_whole_type_and_a_single_sequence(tables: list[lookup.Table]) -> None:
    layer, weight, tokens = layer_and_table("lstm")
    outputs, _ = layer(weight[tokens], lookup=Lookup(tokens.int(), weight))
    torch.testing.assert_close(outputs, layer(weight[tokens])[0])
    single, _ = layer(weight[tokens[:, 1]], lookup=Lookup(tokens[:, 1], weight))
    torch.testing.assert_close(single, outputs[:, 1])
    assert len(tables) == 2
    assert tt.kernels.explain(layer, weight[tokens], lookup=Lookup(tokens, weight)).engines == ("native",)


def test_tokens_that_change_before_the_backward_pass_are_noticed() -> None:
    layer, weight, tokens = layer_and_table("lstm")
    weight.requires_grad_(False)
    outputs, _ = layer(weight[tokens], lookup=Lookup(tokens, weight))
    tokens.fill_(1000)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def test_threads_change_nothing_where_there_is_much_to_do() -> None:
    torch.manual_seed(0)
    layer, weight = tt.nn.LSTM(64, 128, engine="native"), torch.randn(250, 64).requires_grad_()
    tokens = torch.randint(250, (50, 16))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs, _ = layer(weight[tokens], lookup=Lookup(tokens, weight))
            found.append([outputs, *torch.autograd.grad(outputs.square().sum(), [weight, *layer.parameters()])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dropped", ["dropout", "embedding_dropout", ""])
def test_a_language_model_of_few_tokens_looks_them_up(dropped: str, tables: list[lookup.Table]) -> None:
    options = {dropped: 0.5} if dropped else {}
    model = tt.models.LanguageModel(vocabulary_size=9, hidden_size=8, embedding_size=4, **options)
    tokens = torch.randint(9, (12, 4))
    model(tokens)
    assert bool(tables) is not bool(dropped)
    model.eval()(tokens)
    assert tables


def test_a_language_model_with_another_embedding_keeps_to_it(tables: list[lookup.Table]) -> None:
    model = tt.models.LanguageModel(vocabulary_size=9, hidden_size=8, embedding_size=4, dropout=0.5).eval()
    tokens = torch.randint(9, (12, 4))
    expected, _ = model(tokens)
    assert len(tables) == 1
    model.step_dropout.train()  # drops at test time too, as Monte Carlo dropout does
    assert not torch.equal(model(tokens)[0], expected)
    model.step_dropout.eval()
    hook = model.embedding.register_forward_hook(lambda *_: torch.zeros(12, 4, 4))
    assert not torch.equal(model(tokens)[0], expected)
    hook.remove()
    assert torch.equal(model(tokens)[0], expected)
    assert len(tables) == 2
