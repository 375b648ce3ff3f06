"""The gradients on the edges: the copies of a matrix sum to its gradient, and each is its own step's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import UsageError
from throughtime.inspection.edge_gradients import design_of, edge_gradients, norms
from throughtime.inspection.unfolded_graph import unfolded_graph

T, B, X, K, H, C = 4, 3, 2, 5, 4, 2


def case(name: str, cell: str, num_layers: int) -> tuple[Any, Tensor, dict[str, Tensor], dict[str, list[str]]]:
    """A model, its targets and other arguments, and which columns of which parameter each label is."""
    torch.manual_seed(1)
    shape = {"cell": cell, "hidden_size": H, "num_layers": num_layers}
    y = torch.randint(0, K, (T, B))
    x = {"inputs": torch.randn(T, B, X, dtype=torch.float64)}
    U, W = ("U", "W") if num_layers == 1 else ("U_1", "W_1")
    letters = {W: ["recurrent.weight_hh_l0"], "V": ["readout.weight_ho"]}
    if num_layers > 1:
        letters |= {"U_2": ["recurrent.weight_ih_l1"], "W_2": ["recurrent.weight_hh_l1"]}
    first = "recurrent.weight_ih_l0"
    if name == "LanguageModel":
        model: Any = tt.models.LanguageModel(vocabulary_size=K, embedding_size=3, **shape)
        return model, y, {}, {**letters, U: [first]}
    if name == "ContextToSequence":
        model = tt.models.ContextToSequence(context_size=C, output_size=K, stop="end_symbol", **shape)
        return model, y, {"context": torch.randn(B, C, dtype=torch.float64)}, {**letters, "R": [first], U: [first]}
    model = getattr(tt.models, name)(input_size=X, output_size=K, **shape)
    if name == "SequenceSummary":
        return model, y[0], x, {**letters, U: [first]}
    if name == "HiddenRecurrent":
        return model, y, x, {**letters, U: [first]}
    if name == "OutputRecurrent":
        letters = {label: names for label, names in letters.items() if not label.startswith("W")}
        return model, y, x, {**letters, U: [first], "W": [first]}
    return model, y, x, {**letters, U: [first], "R": [first]}


def loss_of(model: Any, y: Tensor, given: dict[str, Tensor]) -> Tensor:
    if isinstance(model, tt.models.LanguageModel):
        return -model.log_prob(y).total.mean()
    x = given.get("context", given.get("inputs"))
    return -model.log_prob(y, x).total.mean()


DESIGNS = [
    "LanguageModel",
    "HiddenRecurrent",
    "OutputRecurrent",
    "SequenceSummary",
    "ContextToSequence",
    "ConditionalRecurrent",
]


@pytest.mark.parametrize(("cell", "num_layers"), [("rnn", 1), ("lstm", 2), ("gru", 1)])
@pytest.mark.parametrize("name", DESIGNS)
def test_the_copies_sum_to_the_gradient(name: str, cell: str, num_layers: int) -> None:
    model, y, given, letters = case(name, cell, num_layers)
    model.double()
    found = edge_gradients(model, y, **given)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss_of(model, y, given).backward()
    parameters = dict(model.named_parameters())
    sums: dict[str, Tensor] = {}
    for (label, _), gradient in found.items():
        if label != "o":
            sums[label] = sums.get(label, torch.zeros(())) + gradient
    assert set(sums) == set(letters)
    # Where two letters share the columns of one matrix, x's stand first, and a context's before y's.
    shared = [label for label in ("R", "U", "U_1", "W") if letters.get(label) == ["recurrent.weight_ih_l0"]]
    if name in ("ConditionalRecurrent", "OutputRecurrent"):
        shared.sort(key=lambda label: not label.startswith("U"))
    torch.testing.assert_close(
        torch.cat([sums.pop(label) for label in shared], 1), parameters["recurrent.weight_ih_l0"].grad
    )
    for label, gradient in sums.items():
        torch.testing.assert_close(gradient, parameters[letters[label][0]].grad)


def test_each_copy_is_its_own_steps() -> None:
    """Against the derivative of the loss when the weights of one step alone change."""
    model, y, given, _ = case("HiddenRecurrent", "lstm", 1)
    model.double()
    found = edge_gradients(model, y, **given)
    for t in range(T):

        def loss(W: Tensor, t: int = t) -> Tensor:
            state, total = None, torch.zeros((), dtype=torch.float64)
            for step, x in enumerate(given["inputs"]):
                weights = {"weight_hh_l0": W} if step == t else {}
                outputs, state = torch.func.functional_call(model.recurrent, weights, (x[None], state))
                o = model.readout(outputs[0])
                total = total + torch.nn.functional.cross_entropy(o, y[step])
            return total

        W = model.recurrent.weight_hh_l0.detach().clone().requires_grad_()
        expected = torch.autograd.grad(loss(W), W, allow_unused=True, materialize_grads=True)[0]
        torch.testing.assert_close(found["W", t + 1], expected)
    assert found["W", 1].abs().max() == 0  # h(0) is zero


@pytest.mark.parametrize("name", DESIGNS)
def test_every_edge_with_a_letter_has_its_gradient(name: str) -> None:
    model, y, given, _ = case(name, "rnn", 1)
    found = norms(edge_gradients(model.double(), y, **given))
    design, layers = design_of(model)
    # "end_symbol" has a step of its own for the end.
    graph = unfolded_graph(design, T + (name == "ContextToSequence"), num_layers=layers)
    for edge in graph.edges:
        if edge.label or (edge.source.name, edge.target.name) == ("o", "L"):
            assert found[edge.label or "o", edge.step] > 0  # type: ignore[index]


def test_a_language_model_may_begin_inside_a_text() -> None:
    model, y, _, _ = case("LanguageModel", "gru", 1)
    from_border = edge_gradients(model, y)
    border = torch.cat([torch.full_like(y[:1], model.config.border_id), y[:-1]])
    inside = edge_gradients(model, y, inputs=(border + 1) % K)
    torch.testing.assert_close(edge_gradients(model, y, inputs=border), from_border)
    assert not torch.equal(inside["U", 1], from_border["U", 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tt.models.HiddenRecurrent(input_size=X, output_size=K, bidirectional=True),
            "edge gradients: HiddenRecurrent is drawn with bidirectional=False, got bidirectional=True",
        ),
        (
            lambda: tt.models.SequenceSummary(input_size=X, output_size=K, pooling="mean"),
            "edge gradients: SequenceSummary is drawn with pooling='last', got pooling='mean'",
        ),
        (
            lambda: tt.models.HiddenRecurrent(input_size=X, output_size=K, cell="leaky"),
            "edge gradients: cells must be rnn, lstm or gru, got leaky",
        ),
    ],
)
def test_what_has_no_such_graph(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        edge_gradients(make(), torch.zeros(T, B, dtype=torch.int64), inputs=torch.zeros(T, B, X))
    assert str(caught.value) == message


def test_a_design_with_inputs_needs_them() -> None:
    model, y, _, _ = case("HiddenRecurrent", "rnn", 1)
    with pytest.raises(UsageError) as caught:
        edge_gradients(model, y)
    assert str(caught.value) == "edge gradients: HiddenRecurrent needs inputs="
