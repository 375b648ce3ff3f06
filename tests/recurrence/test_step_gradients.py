"""dL/dW(t): against copies that a plain loop really makes, against `.grad`, and against itself read in other ways."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.errors import EngineError, ShapeError, UsageError
from throughtime.kernels.native import library
from throughtime.recurrence.gradients.factors import Product

NATIVE = library.missing_reason() is None
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "rnn relu": ("RNN", {"nonlinearity": "relu"}),
    "rnn layer norm": ("RNN", {"layer_norm": True}),
    "lstm": ("LSTM", {}),
    "lstm with peepholes": ("LSTM", {"peepholes": True}),
    "lstm projected": ("LSTM", {"proj_size": 3}),
    "lstm projected with peepholes": ("LSTM", {"proj_size": 2, "peepholes": True}),
    "lstm layer norm": ("LSTM", {"layer_norm": True}),
    "gru": ("GRU", {}),
    "gru reset before": ("GRU", {"reset_after": False}),
    "gru layer norm": ("GRU", {"layer_norm": True}),
}
CLOSE: dict[str, float] = {"rtol": 1e-10, "atol": 1e-12}


def layer_of(kind: str, *, seed: int = 0, num_layers: int = 1, **options: Any) -> Any:
    torch.manual_seed(seed)
    name, own = KINDS[kind]
    return getattr(tt.nn, name)(3, 5, num_layers, dtype=torch.float64, **own, **options)


def cell_of(kind: str) -> Any:
    torch.manual_seed(0)
    name, own = KINDS[kind]
    return getattr(tt.nn, f"{name}Cell")(3, 5, dtype=torch.float64, **own)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


def loss_of(outputs: Tensor, final_state: Any) -> Tensor:
    """Of everything a layer returns, unlike in every place."""
    value = (outputs * drawn(*outputs.shape, seed=5)).sum() + outputs.square().sum()
    for field in tensors(final_state):
        value = value + (field * drawn(*field.shape, seed=6)).exp().sum()
    return value


def initial_of(layer: Any, rows: int) -> Any:
    with torch.no_grad():
        _, final = layer(drawn(1, rows, layer.input_size))
    fields = [drawn(*field.shape, seed=7 + i) for i, field in enumerate(tensors(final))]
    return fields[0] if len(fields) == 1 else tuple(fields)


def gradients(layer: Any, loss: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


def assert_same(found: Any, expected: Any) -> None:
    """Two results of `step_gradients`."""
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
    torch.testing.assert_close(found.parameters, expected.parameters, **CLOSE)
    for own, other in zip(found.states, expected.states, strict=True):
        torch.testing.assert_close(list(own), list(other), **CLOSE)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_they_are_the_gradients_of_copies_that_are_really_there(kind: str, engine: str) -> None:
    """Section 10.2.2 to the letter: W(t) is a tensor of its own, used at step t alone."""
    steps, rows = 4, 3
    cell, layer = cell_of(kind), layer_of(kind, engine=engine)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = drawn(steps, rows, 3)
    state = cell.State(*(drawn(rows, size, seed=7 + i) for i, size in enumerate(cell.state_sizes())))
    copies = {
        name: parameter.detach().expand(steps, *parameter.shape).clone().requires_grad_()
        for name, parameter in cell.named_parameters()
    }
    after, reached = state, []
    for t in range(steps):
        of_step = {name: copy[t] for name, copy in copies.items()}
        after = torch.func.functional_call(cell, of_step, (x[t], after))
        after = cell.State(*tensors(after))
        for field in after:
            field.retain_grad()
        reached.append(after)
    outputs = torch.stack([one[0] for one in reached])
    final = [field[None] for field in after]
    loss = loss_of(outputs, final)
    loss.backward()

    given = [field[None] for field in state]
    found = tt.bptt.step_gradients(layer, x, loss_of, state=given[0] if len(given) == 1 else tuple(given))
    torch.testing.assert_close(found.loss, loss.detach(), **CLOSE)
    for name, copy in copies.items():
        torch.testing.assert_close(found.parameters[f"{name}_l0"], copy.grad, **CLOSE)
    torch.testing.assert_close(found.h[0][0], torch.stack([one[0].grad for one in reached]), **CLOSE)
    if "lstm" in kind:
        torch.testing.assert_close(found.c[0][0], torch.stack([one.c.grad for one in reached]), **CLOSE)
    native = NATIVE and engine == "auto" and "layer norm" not in kind
    assert found.engines == ("native" if native else "reference",)

    of_cell = tt.bptt.step_gradients(cell, x, lambda o, s: loss_of(o, [f[None] for f in s]), state=state)
    for name, copy in copies.items():
        torch.testing.assert_close(of_cell.parameters[name], copy.grad, **CLOSE)


@settings(max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    num_layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    lengths=st.none() | st.lists(st.integers(0, 5), min_size=3, max_size=3),
    stated=st.booleans(),
    engine=st.sampled_from(["auto", "auto", "reference"]),
)
def test_they_sum_to_the_gradient(
    kind: str, num_layers: int, bidirectional: bool, lengths: list[int] | None, stated: bool, engine: str
) -> None:
    layer = layer_of(kind, num_layers=num_layers, bidirectional=bidirectional, engine=engine)
    x = drawn(5, 3, 3)
    state = initial_of(layer, 3) if stated else None
    expected = gradients(layer, loss_of(*layer(x, state, lengths=lengths)))
    if lengths is not None:
        x = torch.where(torch.arange(5)[:, None, None] < torch.tensor(lengths)[:, None], x, float("nan"))
    found = tt.bptt.step_gradients(layer, x, loss_of, state=state, lengths=lengths)
    for name, gradient in expected.items():
        torch.testing.assert_close(found.parameters[name].sum(0), gradient, **CLOSE)
        if lengths is not None:  # nothing comes from padding
            assert not found.parameters[name][max(lengths) :].any()
    if lengths is not None:
        behind = torch.arange(5)[:, None] >= torch.tensor(lengths)
        assert all(not field[behind].any() for layer_states in found.states for s in layer_states for field in s)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lstm", {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.4}),
        ("lstm projected with peepholes", {"zoneout": 0.3, "variational_dropout": 0.3}),
        ("gru", {"recurrent_dropout": 0.4, "dropout": 0.3}),
        ("gru reset before", {"zoneout": 0.3, "recurrent_dropout": 0.4}),
        ("rnn", {"residual": True, "zoneout": 0.3}),
        ("rnn relu", {"bias": False}),
    ],
)
def test_the_engine_and_the_copies_agree_with_every_option(kind: str, options: dict[str, Any]) -> None:
    """Masks drawn in training included: the same seed gives the same."""
    layer = layer_of(kind, num_layers=2, bidirectional=True, **options)
    x, lengths = drawn(6, 4, 3), [6, 2, 0, 5]
    found = {}
    for engine in ("auto", "reference"):
        layer.engine = engine
        torch.manual_seed(3)
        found[engine] = tt.bptt.step_gradients(layer, x, loss_of, lengths=lengths)
    torch.manual_seed(3)
    expected = gradients(layer, loss_of(*layer(x, lengths=lengths)))
    for name, gradient in expected.items():
        torch.testing.assert_close(found["auto"].parameters[name].sum(0), gradient, **CLOSE)
    assert found["reference"].engines == ("reference",) * 4
    assert_same(found["auto"], found["reference"])


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["rnn", "lstm projected with peepholes", "gru", "gru reset before"])
def test_norms_and_projections_are_those_of_the_whole(kind: str, engine: str) -> None:
    layer = layer_of(kind, num_layers=2, bidirectional=True, engine=engine)
    x, lengths = drawn(6, 4, 3), [6, 2, 0, 5]
    whole = tt.bptt.step_gradients(layer, x, loss_of, lengths=lengths)
    norms = tt.bptt.step_gradients(layer, x, loss_of, lengths=lengths, reduce="norm")
    assert_same(
        norms, type(whole)(whole.loss, {n: g.flatten(1).norm(dim=1) for n, g in whole.parameters.items()},
                           whole.states, whole.engines)
    )  # fmt: skip
    chosen = [name for name in whole.parameters if "_l1" in name]
    directions = {name: drawn(*whole.parameters[name].shape[1:], seed=9) for name in chosen}
    projected = tt.bptt.step_gradients(layer, x, loss_of, lengths=lengths, reduce=directions)
    expected = {name: (whole.parameters[name] * directions[name]).flatten(1).sum(1) for name in chosen}
    torch.testing.assert_close(projected.parameters, expected, **CLOSE)


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_norms_of_products_are_right_on_both_ways(rows: int) -> None:
    """By Gram matrices where there are few rows, multiplied out where there are many."""
    product = Product(drawn(7, rows, 6), drawn(7, rows, 4, seed=2))
    torch.testing.assert_close(product.squared_norms.sqrt(), product.full().flatten(1).norm(dim=1), **CLOSE)


def test_norms_of_rows_that_cancel_are_never_the_root_of_less_than_nothing() -> None:
    left, right = drawn(50, 1, 6).float(), drawn(50, 1, 5, seed=2).float()
    product = Product(torch.cat([left, -left], 1), torch.cat([right, right], 1))
    norms = product.squared_norms.sqrt()
    assert not norms.isnan().any()
    assert float(norms.max()) < 1e-2


def test_the_reverse_direction_is_a_layer_on_the_mirrored_inputs() -> None:
    """Step t is that of the inputs: not of the order in which a direction goes."""
    both, one = layer_of("gru", bidirectional=True), layer_of("gru")
    one.load_state_dict({name.removesuffix("_reverse"): p for name, p in both.named_parameters() if "_reverse" in name})
    x = drawn(5, 2, 3)
    found = tt.bptt.step_gradients(both, x, lambda outputs: outputs[..., 5:].square().sum())
    mirrored = tt.bptt.step_gradients(one, x.flip(0), lambda outputs: outputs.square().sum())
    for name, gradient in mirrored.parameters.items():
        torch.testing.assert_close(found.parameters[f"{name}_reverse"], gradient.flip(0), **CLOSE)
        assert not found.parameters[name].any()
    torch.testing.assert_close(found.h[0][1], mirrored.h[0][0].flip(0), **CLOSE)
    assert not found.h[0][0].any()


def test_a_step_after_the_loss_has_no_gradient() -> None:
    found = tt.bptt.step_gradients(layer_of("lstm"), drawn(6, 2, 3), lambda outputs: outputs[3].sum())
    reached = found.parameters["weight_ih_l0"].flatten(1).norm(dim=1) > 0
    assert reached.tolist() == [True] * 4 + [False] * 2


class DoubleState(NamedTuple):
    h: Tensor
    slow: Tensor


class DoubleCell(tt.Cell):
    """A cell of one's own, with a parameter in each of its methods and one in both."""

    State = DoubleState

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.U = torch.nn.Linear(input_size, hidden_size, dtype=torch.float64)
        self.W = torch.nn.Linear(hidden_size, hidden_size, bias=False, dtype=torch.float64)
        self.gain = torch.nn.Parameter(torch.full((hidden_size,), 0.7, dtype=torch.float64))

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.gain * self.U(inputs)

    def step(self, projected: Tensor, state: Any) -> DoubleState:
        slow = 0.8 * state.slow + 0.2 * state.h
        return DoubleState(torch.tanh(projected + self.gain * self.W(state.h) + slow), slow)


@pytest.mark.parametrize("lengths", [None, [4, 1, 0]])
def test_a_cell_of_ones_own(lengths: list[int] | None) -> None:
    torch.manual_seed(0)
    cell = DoubleCell(3, 5)
    x = drawn(4, 3, 3)
    found = tt.bptt.step_gradients(cell, x, loss_of, lengths=lengths)
    expected = gradients(cell, loss_of(*tt.unfold(cell, x, lengths=lengths)))
    assert found.engines == ("reference",)
    for name, gradient in expected.items():
        torch.testing.assert_close(found.parameters[name].sum(0), gradient, **CLOSE)
    if lengths is None:  # the last step alone, from the state before it
        _, before = tt.unfold(cell, x[:3])
        last = torch.func.functional_call(cell, dict(cell.named_parameters()), (x[3], [f.detach() for f in before]))
        outputs, _ = tt.unfold(cell, x[:3])
        expected = gradients(cell, loss_of(torch.cat([outputs.detach(), last[0][None]]), last))
        torch.testing.assert_close({n: g[3] for n, g in found.parameters.items()}, expected, **CLOSE)
    assert found.states[0][0].slow.shape == (4, 3, 5)


class SwitchedCell(DoubleCell):
    """Its slow field moves where x is positive, and is handed on as it is elsewhere."""

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return inputs

    def step(self, projected: Tensor, state: Any) -> DoubleState:
        slow = self.gain * state.h if projected[0, 0] > 0 else state.slow
        return DoubleState(torch.tanh(self.U(projected) + self.W(state.h) * state.slow), slow)


def test_a_field_that_is_handed_on_as_it_is_has_a_gradient_at_each_step() -> None:
    torch.manual_seed(0)
    cell, x = SwitchedCell(3, 5), drawn(4, 2, 3)
    x[:, 0, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    found = tt.bptt.step_gradients(cell, x, loss_of)
    state = cell.initial_state(2, dtype=torch.float64)
    for t in range(4):
        state = cell(x[t], state)
        if t >= 1:
            h, slow = (field.detach().requires_grad_() for field in state)
            outputs, final = tt.unfold(cell, x[t + 1 :], (h, slow))
            before = tt.unfold(cell, x[:t])[0].detach()
            loss = loss_of(torch.cat([before, h[None], outputs]), final)
            expected = torch.autograd.grad(loss, slow, allow_unused=True, materialize_grads=True)[0]
            torch.testing.assert_close(found.states[0][0].slow[t], expected, **CLOSE)


@pytest.mark.parametrize("lengths", [None, [4, 1, 0]])
def test_cells_over_each_other(lengths: list[int] | None) -> None:
    torch.manual_seed(0)
    cells = [tt.nn.LSTMCell(3, 5, dtype=torch.float64), DoubleCell(10, 5)]
    backward = [tt.nn.GRUCell(3, 5, dtype=torch.float64), tt.nn.RNNCell(10, 5, dtype=torch.float64)]
    stack, x = tt.nn.CellStack(cells, backward=backward, residual=True), drawn(4, 3, 3)
    found = tt.bptt.step_gradients(stack, x, lambda outputs: outputs.square().sum(), lengths=lengths)
    for name, gradient in gradients(stack, stack(x, lengths=lengths)[0].square().sum()).items():
        torch.testing.assert_close(found.parameters[name].sum(0), gradient, **CLOSE)
    assert [[type(state).__name__ for state in layer] for layer in found.states] == [
        ["LSTMState", "GRUState"],
        ["DoubleState", "RNNState"],
    ]


def test_targets_are_a_squared_error_over_what_is_there() -> None:
    layer = layer_of("gru")
    x, targets, lengths = drawn(4, 2, 3), drawn(4, 2, 5, seed=8), [4, 2]
    found = tt.bptt.step_gradients(layer, x, targets, lengths=lengths)
    outputs = layer(x, lengths=lengths)[0]
    errors = torch.stack([outputs[t, b] - targets[t, b] for b, length in enumerate(lengths) for t in range(length)])
    expected = gradients(layer, errors.square().sum() / 2)
    for name, gradient in expected.items():
        torch.testing.assert_close(found.parameters[name].sum(0), gradient, **CLOSE)


def test_layouts_are_the_layers_and_time_comes_first_in_what_is_found() -> None:
    first, usual = layer_of("lstm", batch_first=True), layer_of("lstm")
    x = drawn(4, 2, 3)
    expected = tt.bptt.step_gradients(usual, x, lambda outputs: outputs.transpose(0, 1)[1].square().sum())
    found = tt.bptt.step_gradients(first, x.transpose(0, 1), lambda outputs: outputs[1].square().sum())
    assert_same(found, expected)
    single = tt.bptt.step_gradients(usual, x[:, 1], lambda outputs: outputs.square().sum())
    assert_same(single, tt.bptt.step_gradients(usual, x[:, 1:], lambda outputs: outputs.square().sum()))


def test_nothing_of_the_layer_changes_and_what_needs_no_gradient_is_left_out() -> None:
    layer = layer_of("gru")
    layer.weight_ih_l0.requires_grad_(False)
    layer.weight_hh_l0.grad = torch.ones(15, 5, dtype=torch.float64)
    with torch.no_grad():
        found = tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum())
    assert list(found.parameters) == ["weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert not any(gradient.requires_grad for gradient in found.parameters.values())
    assert bool((layer.weight_hh_l0.grad == 1).all())
    assert layer.bias_ih_l0.grad is None


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_no_steps_and_sequences_without_any(kind: str) -> None:
    layer = layer_of(kind)
    found = tt.bptt.step_gradients(layer, drawn(3, 2, 3), loss_of, lengths=[0, 0])
    assert not any(gradient.any() for gradient in found.parameters.values())
    none = tt.bptt.step_gradients(layer, drawn(3, 0, 3), lambda outputs: outputs.sum(), reduce="norm")
    assert all(norms.tolist() == [0, 0, 0] for norms in none.parameters.values())


def test_lower_precision_of_products_is_not_that_of_what_is_found() -> None:
    layer = layer_of("lstm").float()
    x = drawn(6, 4, 3).float()
    expected = tt.bptt.step_gradients(layer, x, lambda outputs: outputs.sum())
    with torch.autocast("cpu", torch.bfloat16):
        found = tt.bptt.step_gradients(layer, x, lambda outputs: outputs.sum())
    for name, gradient in found.parameters.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected.parameters[name], rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("unchecked_shapes")
class TestErrors:
    def test_neither_layer_nor_cell(self) -> None:
        for wrong in (torch.nn.LSTM(3, 5), "lstm"):
            with pytest.raises(
                UsageError, match=r"step_gradients: expected a tt.nn layer or a tt.Cell, got (LSTM|str);"
            ):
                tt.bptt.step_gradients(wrong, drawn(4, 2, 3), lambda outputs: outputs.sum())

    def test_a_loss_of_many_numbers(self) -> None:
        with pytest.raises(UsageError, match=r"step_gradients: loss must be of shape \(\), got \(2, 5\); sum over"):
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs[-1])

    def test_a_loss_that_is_no_tensor(self) -> None:
        with pytest.raises(UsageError, match="step_gradients: loss must return a tensor, got float"):
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: 1.0)
        with pytest.raises(
            UsageError, match=r"step_gradients: expected targets or a function loss\(outputs\), got float"
        ):
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), 1.0)  # type: ignore[arg-type]

    def test_a_loss_without_gradient(self) -> None:
        with pytest.raises(UsageError, match="step_gradients: the loss has no gradient: it must be computed from"):
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs.detach().sum())

    def test_targets_of_another_shape(self) -> None:
        with pytest.raises(
            ShapeError, match=r"step_gradients: targets must be \(4, 2, 5\) as the outputs are, got \(4, 2"
        ):
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), drawn(4, 2, 3))

    @pytest.mark.parametrize("reduce", ["sum", 3])
    def test_an_unknown_reduction(self, reduce: Any) -> None:
        with pytest.raises(UsageError, match="step_gradients: reduce must be 'full', 'norm' or a direction for each"):
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs.sum(), reduce=reduce)

    def test_directions_that_do_not_fit(self) -> None:
        def ask(reduce: Any) -> None:
            tt.bptt.step_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs.sum(), reduce=reduce)

        with pytest.raises(
            UsageError, match="step_gradients: reduce has a direction for 'W', expected one of weight_ih_l0"
        ):
            ask({"W": drawn(15, 5)})
        match = (
            r"step_gradients: the direction for weight_hh_l0 must be \(15, 5\), the parameter's shape, got \(5, 15\)"
        )
        with pytest.raises(ShapeError, match=match):
            ask({"weight_hh_l0": drawn(5, 15)})

    def test_more_than_may_be_taken(self) -> None:
        layer = layer_of("gru")
        with pytest.raises(
            UsageError, match=r"whole gradients of 4 steps take 0.0 GiB, more than max_bytes=0.0 GiB; take"
        ):
            tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum(), max_bytes=4 * 150 * 8 - 1)
        tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum(), max_bytes=4 * 150 * 8)
        tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum(), reduce="norm", max_bytes=1)

    def test_weights_that_are_not_the_parameters(self) -> None:
        layer = layer_of("gru", weight_dropout=0.5)
        with pytest.raises(
            UsageError, match=r"step_gradients: weight_dropout=0.5 puts other weights in the parameters'"
        ):
            tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum())
        tt.bptt.step_gradients(layer.eval(), drawn(4, 2, 3), lambda outputs: outputs.sum())

    def test_weights_that_are_made_of_parameters(self) -> None:
        layer = layer_of("gru")
        torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        with pytest.raises(
            UsageError, match="step_gradients: ParametrizedGRU makes its weights of other parameters; torch"
        ):
            tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum())

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_inputs_that_are_no_tensor(self) -> None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(drawn(4, 2, 3), torch.tensor([4, 2]))
        match = "step_gradients: inputs must be a padded tensor with lengths=, got PackedSequence"
        with pytest.raises(UsageError, match=match):
            tt.bptt.step_gradients(layer_of("gru"), packed, lambda outputs: outputs.sum())

    def test_weights_that_are_shared(self) -> None:
        layer = layer_of("gru", num_layers=2)
        layer.weight_hh_l1 = layer.weight_hh_l0
        match = "step_gradients: GRU layer 1: weight_hh_l1 must be a parameter that is used here alone, got one that is"
        with pytest.raises(UsageError, match=match):
            tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum())
        cell = DoubleCell(5, 5)
        match = "step_gradients: CellStack layer 1 DoubleCell: cells.1.gain must be a parameter that is used here alone"
        with pytest.raises(UsageError, match=match):
            tt.bptt.step_gradients(tt.nn.CellStack([cell, cell]), drawn(4, 2, 5), lambda outputs: outputs.sum())

    def test_a_first_state_that_is_learnt(self) -> None:
        class Begun(DoubleCell):
            def initial_state(self, batch_size: int, **options: Any) -> DoubleState:
                h, slow = super().initial_state(batch_size, **options)
                return DoubleState(h + self.gain.to(h.device), slow)

        cell, x = Begun(3, 5), drawn(4, 2, 3)
        match = "step_gradients: Begun begins with a state made of its parameters, which is of no step; give a state= "
        with pytest.raises(UsageError, match=match):
            tt.bptt.step_gradients(cell, x, lambda outputs: outputs.sum())
        state = cell.initial_state(2, dtype=torch.float64)
        found = tt.bptt.step_gradients(cell, x, lambda outputs: outputs.sum(), state=state)
        constant = DoubleState(*(field.detach() for field in state))
        expected = gradients(cell, tt.unfold(cell, x, constant)[0].sum())
        torch.testing.assert_close(found.parameters["gain"].sum(0), expected["gain"], **CLOSE)

    def test_an_engine_by_name_that_cannot(self) -> None:
        layer = layer_of("gru layer norm", engine="native")
        with pytest.raises(EngineError, match="engine='native' cannot run this: "):
            tt.bptt.step_gradients(layer, drawn(4, 2, 3), lambda outputs: outputs.sum())
