"""CellStack: layers of any cells; and the steps that a stack and a layer of tt.nn take by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.errors import EngineError, ShapeError, UsageError

I, H = 3, 4  # noqa: E741


def stack_like(layer: Any, *, bidirectional: bool) -> Any:
    """The cells of an LSTM layer, stacked by themselves, with its weights."""
    directions = ["", "_reverse"] if bidirectional else [""]
    made: list[list[Any]] = []
    for suffix in directions:
        cells = [tt.nn.LSTMCell(layer._input_size(index), H).double() for index in range(layer.num_layers)]
        for index, cell in enumerate(cells):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            cell.load_state_dict({name: getattr(layer, f"{name}_l{index}{suffix}").detach() for name in names})
        made.append(cells)
    return tt.nn.CellStack(made[0], backward=made[1] if bidirectional else None, residual=layer.residual)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=15)
@given(st.booleans(), st.booleans(), st.lists(st.integers(0, 5), min_size=2, max_size=2), st.integers(1, 3))
def test_a_stack_of_lstm_cells_is_the_lstm_layer(
    bidirectional: bool, residual: bool, lengths: list[int], layers: int
) -> None:
    torch.manual_seed(1)
    layer = tt.nn.LSTM(I, H, layers, bidirectional=bidirectional, residual=residual).double()
    stack = stack_like(layer, bidirectional=bidirectional)
    x = torch.randn(5, 2, I, dtype=torch.float64)
    expected, (h_n, c_n) = layer(x, lengths=lengths)
    outputs, final = stack(x, lengths=lengths)
    same(outputs, expected)
    flat = [state for own in final for state in (own if bidirectional else (own,))]
    same(torch.stack([state.h for state in flat]), h_n)
    same(torch.stack([state.c for state in flat]), c_n)
    assert stack.output_size == layer.output_size == outputs.shape[-1]


def mixed(**options: Any) -> Any:
    torch.manual_seed(2)
    return tt.nn.CellStack([tt.nn.GRUCell(I, H), tt.nn.LSTMCell(H, H), tt.nn.RNNCell(H, H)], **options).double()


def test_the_state_carries_a_sequence_over_calls_and_resets_begin_a_new_one() -> None:
    stack, x = mixed(residual=True), torch.randn(6, 2, I, dtype=torch.float64)
    whole, final = stack(x)
    first, state = stack(x[:2])
    second, end = stack(x[2:], state)
    same(torch.cat([first, second]), whole)
    same([tuple(own) for own in end], [tuple(own) for own in final])
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[2] = True
    same(stack(x, resets=resets)[0][2:], stack(x[2:])[0])


def test_dropout_is_between_the_layers_in_training_alone() -> None:
    x = torch.randn(6, 2, I, dtype=torch.float64)
    stack, plain = mixed(dropout=0.5), mixed()
    same(stack.eval()(x)[0], plain(x)[0])
    torch.manual_seed(0)
    dropped = stack.train()(x)[0]
    assert not torch.allclose(dropped, plain(x)[0])
    assert dropped.abs().min() > 0  # what the last layer gives is not dropped


def test_gradients_reach_every_cell() -> None:
    stack = tt.nn.CellStack(
        [tt.nn.RNNCell(I, H), tt.nn.RNNCell(2 * H, H)], backward=[tt.nn.RNNCell(I, H), tt.nn.RNNCell(2 * H, H)]
    ).double()
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stack(x, lengths=[3, 1])[0], x)
    stack(x, lengths=[3, 2])[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in stack.parameters())


def test_explain_names_every_layer_and_direction() -> None:
    cells, backward = [tt.nn.RNNCell(I, H), tt.nn.LSTMCell(2 * H, H)], [tt.nn.GRUCell(I, H), tt.nn.LSTMCell(2 * H, H)]
    stack = tt.nn.CellStack(cells, backward=backward, engine="reference")
    explained = tt.kernels.explain(stack, torch.zeros(3, 2, I))
    assert explained.engines == ("reference",) * 4
    assert [choice.where for choice in explained.choices] == [
        "CellStack layer 0 RNNCell", "CellStack layer 0 GRUCell reverse",
        "CellStack layer 1 LSTMCell", "CellStack layer 1 LSTMCell reverse",
    ]  # fmt: skip
    with pytest.raises(EngineError, match=r"CellStack: engine must be one of .*, got 'quick'"):
        tt.nn.CellStack(cells, engine="quick")


def stepped(layers: Any, x: Tensor) -> Tensor:
    """The layers step by step with plain tensors, as a network that feeds its outputs back does it."""
    equations, states = layers.step_equations(), layers.zero_states(x.shape[1], x)
    outputs = []
    for x_t in x:
        for index, own in enumerate(equations):
            states[index], _ = own.advance(own.project_inputs(x_t), states[index], None)
            h = states[index][0]
            x_t = h + x_t if layers.residual and index > 0 else h
        outputs.append(x_t)
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mixed(),
        lambda: mixed(residual=True),
        lambda: tt.nn.LSTM(I, (5, 4), 2, proj_size=2, layer_norm=True).double(),
        lambda: tt.nn.GRU(I, H, 2, residual=True).double(),
        lambda: tt.nn.RNN(I, H, nonlinearity="relu").double(),
    ],
)
def test_steps_by_hand_are_the_layers_and_so_are_their_gradients(make: Any) -> None:
    torch.manual_seed(3)
    layers, x = make(), torch.randn(4, 2, I, dtype=torch.float64)
    by_hand, whole = stepped(layers, x), layers(x)[0]
    same(by_hand, whole)
    assert layers.output_size == whole.shape[-1]
    parameters = list(layers.parameters())
    same(torch.autograd.grad(by_hand.square().sum(), parameters), torch.autograd.grad(whole.square().sum(), parameters))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda: tt.nn.GRU(I, H, bidirectional=True), "GRU: a bidirectional layer cannot be taken step by step; "
         "set bidirectional=False"),
        (lambda: tt.nn.LSTM(I, H, zoneout=0.1).eval(), "LSTM: zoneout cannot be taken step by step; set zoneout=0"),
        (lambda: tt.nn.RNN(I, H, recurrent_dropout=0.1),
         "RNN: recurrent_dropout cannot be taken step by step; set recurrent_dropout=0"),
        (lambda: tt.nn.CellStack([tt.nn.RNNCell(I, H)], backward=[tt.nn.RNNCell(I, H)]),
         "CellStack: a bidirectional stack cannot be taken step by step; leave `backward` out"),
    ],
)  # fmt: skip
def test_what_cannot_be_stepped_says_so(layers: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        layers().step_equations()


def test_in_evaluation_mode_dropout_does_not_stand_in_the_way_of_steps() -> None:
    layer = tt.nn.RNN(I, H, recurrent_dropout=0.1, variational_dropout=0.1).eval()
    x = torch.randn(4, 2, I)
    torch.testing.assert_close(stepped(layer, x), layer(x)[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tt.nn.CellStack([]), UsageError, "CellStack: expected at least one cell, got none"),
        (lambda: tt.nn.CellStack([tt.nn.RNNCell(I, H)], backward=[]), UsageError,
         "CellStack: backward must have one cell for each of 1 layers, got 0; leave it out for one direction"),
        (lambda: tt.nn.CellStack([tt.nn.LSTM(I, H)]), UsageError,
         "CellStack: expected tt.Cells, one for each layer, got LSTM; tt.nn.LSTMCell and the like are cells, "
         "tt.nn.LSTM is a stack of its own"),
        (lambda: tt.nn.CellStack([tt.nn.RNNCell(I, H), tt.nn.GRUCell(5, H)]), ShapeError,
         "CellStack: layer 1 GRUCell: input_size must be 4, which layer 0 gives, got 5"),
        (lambda: tt.nn.CellStack([tt.nn.RNNCell(I, H)], backward=[tt.nn.RNNCell(2, H)]), ShapeError,
         "CellStack: layer 0 RNNCell: input_size must be 3, which the forward cell has, got 2"),
        (lambda: tt.nn.CellStack([tt.nn.RNNCell(I, H), tt.nn.RNNCell(H, 6)], residual=True), ShapeError,
         r"CellStack: residual needs layers of one size, got \[4, 6\]"),
        (lambda: tt.nn.CellStack([tt.nn.RNNCell(I, H)], dropout=1.5), UsageError,
         r"CellStack: dropout must be a probability in \[0, 1\), got 1.5"),
        (lambda: mixed()(torch.zeros(2, I)), ShapeError,
         r"CellStack: inputs must be \(T, B, 3\), got \(2, 3\); the time axis comes first"),
        (lambda: mixed()(torch.zeros(2, 1, I).double(), mixed().zero_states(1, torch.zeros(1).double())[:2]),
         ShapeError, r"CellStack: state must be one state for each of 3 layers, got 2 layers of \[1, 1\] states"),
        (lambda: mixed()(torch.zeros(2, 1, I).double(), mixed().zero_states(2, torch.zeros(1).double())), ShapeError,
         r"GRUCell: state must be GRUState\(h \(1, 4\)\), got \[\(2, 4\)\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_answered_by_one_line(
    make: Any, error: type[Exception], message: str, unchecked_shapes: None
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        make()
