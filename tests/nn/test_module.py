"""tt.nn's layers as modules: copied, pickled, moved, shared, changed; and what they say to misuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import throughtime as tt
from throughtime.errors import EngineError, ShapeError, UsageError

T, B, I, H = 4, 3, 2, 5  # noqa: E741
MODULES: dict[str, Callable[[], Any]] = {
    "rnn": lambda: tt.nn.RNN(I, H, nonlinearity="relu"),
    "lstm": lambda: tt.nn.LSTM(I, [4, 3], 2, zoneout=(0.1, 0.2), peepholes=True, layer_norm=True, engine="reference"),
    "gru": lambda: tt.nn.GRU(I, H, 2, bidirectional=True, reset_after=False),
    "rnn cell": lambda: tt.nn.RNNCell(I, H),
    "lstm cell": lambda: tt.nn.LSTMCell(I, H, proj_size=2),
    "gru cell": lambda: tt.nn.GRUCell(I, H),
}


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in leaves(part)]


def used(module: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shape = (B, I) if isinstance(module, tt.Cell) else (T, B, I)
    return leaves(module(torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)))


def through_a_file(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_a_file])
@pytest.mark.parametrize("kind", MODULES)
def test_copies_are_equal_and_their_own(kind: str, how: Callable[[Any], Any]) -> None:
    module = MODULES[kind]().eval()
    twin = how(module)
    assert repr(twin) == repr(module)
    for a, b in zip(used(module), used(twin), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(module.parameters()))


@pytest.mark.parametrize("kind", MODULES)
def test_moving_to_another_type_and_back(kind: str) -> None:
    module = MODULES[kind]().eval()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert {leaf.dtype for leaf in used(module.to(dtype), dtype)} == {dtype}
    assert {leaf.dtype for leaf in used(module.double(), torch.float64)} == {torch.float64}


@pytest.mark.parametrize("kind", MODULES)
def test_built_on_meta_and_filled_later(kind: str) -> None:
    with torch.device("meta"):
        module = MODULES[kind]().eval()
    assert all(p.is_meta for p in module.parameters())
    donor = MODULES[kind]().eval()
    module.load_state_dict(donor.state_dict(), assign=True)
    for a, b in zip(used(module), used(donor), strict=True):
        assert torch.equal(a, b)
    with torch.device("meta"):
        module = MODULES[kind]()
    module.to_empty(device="cpu").reset_parameters()
    assert all(leaf.isfinite().all() for leaf in used(module))


@pytest.mark.parametrize("kind", MODULES)
def test_shared_memory_apply_and_functional_call(kind: str) -> None:
    module = MODULES[kind]().eval().share_memory()
    assert all(p.is_shared() for p in module.parameters())
    module.apply(lambda m: [nn.init.constant_(p, 0.1) for p in m.parameters()])
    weights = {name: torch.full_like(p, 0.1) for name, p in module.named_parameters()}
    expected = used(module)
    module.reset_parameters()
    shape = (B, I) if isinstance(module, tt.Cell) else (T, B, I)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for a, b in zip(leaves(torch.func.functional_call(module, weights, (x,))), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_parametrised_weight_is_used(name: str) -> None:
    layer = getattr(tt.nn, name)(I, H)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    layer(torch.randn(T, B, I))[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original1.grad.any()


def test_every_weight_parametrised() -> None:
    layer = tt.nn.GRU(I, H)
    x = torch.randn(T, B, I)
    expected = layer(x)[0]
    for name in [name for name, _ in layer.named_parameters()]:
        nn.utils.parametrize.register_parametrization(layer, name, nn.Identity())
    assert not layer._parameters
    assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_the_state_may_be_changed_in_place(engine: str, name: str, layers: int) -> None:
    layer = getattr(tt.nn, name)(I, H, layers, engine=engine)
    x = torch.randn(T, B, I, requires_grad=True)
    outputs, state = layer(x)
    before = outputs.detach().clone()
    for field in leaves(state):
        field[:, 1] = 0
    assert torch.equal(outputs, before)
    (outputs.sum() + sum(field.sum() for field in leaves(state))).backward()
    first = x.grad.clone()
    outputs, state = layer(x)
    (outputs.sum() + sum(field[:, [0, *range(2, B)]].sum() for field in leaves(state))).backward()
    torch.testing.assert_close(x.grad, 2 * first)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_the_state_after_no_steps_is_a_copy(engine: str) -> None:
    given = torch.ones(1, B, H)
    _, state = tt.nn.GRU(I, H, engine=engine)(torch.zeros(0, B, I), given)
    state.zero_()
    assert torch.equal(given, torch.ones(1, B, H))


def test_flatten_parameters_is_there_for_programs_that_call_it() -> None:
    layer = tt.nn.LSTM(I, H)
    x = torch.randn(T, B, I)
    before, parameters = layer(x)[0], list(layer.parameters())
    layer.flatten_parameters()
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_carried_states_and_resets_through_layers(name: str) -> None:
    torch.manual_seed(1)
    layer = getattr(tt.nn, name)(I, H, 2, dtype=torch.float64)
    x = torch.randn(6, B, I, dtype=torch.float64)
    whole, final = layer(x)
    first, state = layer(x[:2])
    second, state = layer(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, final)
    resets = torch.zeros(6, B, dtype=torch.bool)
    resets[2, 1] = True
    outputs, _ = layer(x, resets=resets)
    torch.testing.assert_close(outputs[:, 0], whole[:, 0])
    torch.testing.assert_close(outputs[2:, 1], layer(x[2:, 1])[0])
    turned = getattr(tt.nn, name)(I, H, 2, dtype=torch.float64, batch_first=True)
    turned.load_state_dict(layer.state_dict())
    torch.testing.assert_close(turned(x.transpose(0, 1), resets=resets.T)[0].transpose(0, 1), outputs)
    torch.testing.assert_close(layer(x[:, 1], resets=resets[:, 1])[0], outputs[:, 1])


LSTM = tt.nn.LSTM
X = torch.zeros(T, B, I)
MISUSE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: LSTM(0, H), ShapeError, "LSTM: input_size must be at least 1, got 0"),
    (
        lambda: LSTM(I, 0),
        ShapeError,
        "LSTM: hidden_size must be one positive number, or one for each of 1 layers, got 0",
    ),
    (lambda: LSTM(I, [3, 4], 3), ShapeError, r"one for each of 3 layers, got \[3, 4\]"),
    (lambda: LSTM(I, H, 0), ShapeError, "LSTM: num_layers must be at least 1, got 0"),
    (
        lambda: LSTM(I, H, proj_size=H),
        ShapeError,
        "LSTM: proj_size must be 0 .none. or smaller than hidden_size=5, got 5",
    ),
    (lambda: LSTM(I, H, proj_size=-1), ShapeError, "got -1"),
    (lambda: tt.nn.RNN(I, H, proj_size=2), UsageError, "RNN: proj_size is for LSTM only"),
    (lambda: tt.nn.GRU(I, H, proj_size=2), UsageError, "GRU: proj_size is for LSTM only"),
    (
        lambda: tt.nn.RNN(I, H, nonlinearity="gelu"),
        UsageError,
        "RNN: nonlinearity must be 'tanh' or 'relu', got 'gelu'",
    ),
    (lambda: LSTM(I, H, dropout=1.5), UsageError, r"LSTM: dropout must be a probability in \[0, 1\), got 1.5"),
    (lambda: LSTM(I, H, recurrent_dropout=1.0), UsageError, r"LSTM: recurrent_dropout must be .*got 1.0"),
    (lambda: LSTM(I, H, variational_dropout=-0.1), UsageError, r"LSTM: variational_dropout must be .*got -0.1"),
    (lambda: LSTM(I, H, weight_dropout="a"), UsageError, r"LSTM: weight_dropout must be .*got 'a'"),
    (lambda: LSTM(I, H, zoneout=2), UsageError, "LSTM: zoneout must be a probability"),
    (lambda: tt.nn.GRU(I, H, zoneout=(0.1, 0.1)), UsageError, r"GRU: zoneout must be one .* one for each of \('h',\)"),
    (lambda: LSTM(I, [4, 5], 2, residual=True), ShapeError, r"residual needs layers of one size, got \(4, 5\)"),
    (
        lambda: LSTM(I, H, engine="fast"),
        EngineError,
        "LSTM: engine must be one of auto, native, torch, reference, got 'fast'",
    ),
    (
        lambda: LSTM(I, H)(torch.zeros(T, B, I + 1)),
        ShapeError,
        r"LSTM: inputs must be \(T, B, 2\), or \(T, 2\) for one sequence, got \(4, 3, 3\); .*batch_first",
    ),
    (lambda: LSTM(I, H, batch_first=True)(torch.zeros(I)), ShapeError, r"must be \(B, T, 2\), or .*got \(2,\)"),
    (lambda: LSTM(I, H)([[1.0, 2.0]]), ShapeError, "LSTM: inputs must be .*got list"),
    (lambda: LSTM(I, H)(X.double()), ShapeError, "inputs must be torch.float32 as the weights are, got torch.float64"),
    (
        lambda: LSTM(I, H)(X, torch.zeros(1, B, H)),
        ShapeError,
        r"state must be a tuple \(h_0, c_0\), got a tensor \(1, 3, 5\)",
    ),
    (
        lambda: LSTM(I, H)(X, (torch.zeros(1, B, H), torch.zeros(1, B, 1))),
        ShapeError,
        r"LSTM: c_0 must be \(1, 3, 5\), got a tensor \(1, 3, 1\)",
    ),
    (
        lambda: tt.nn.GRU(I, H, 2)(X, torch.zeros(1, B, H)),
        ShapeError,
        r"GRU: h_0 must be \(2, 3, 5\), got a tensor \(1, 3, 5\)",
    ),
    (lambda: tt.nn.GRU(I, H)(X[:, 0], torch.zeros(1, B, H)), ShapeError, r"h_0 must be \(1, 5\), got a tensor"),
    (
        lambda: tt.nn.GRU(I, [3, 4], 2)(X, torch.zeros(2, B, H)),
        ShapeError,
        r"GRU: h_0 must be a tuple of one tensor a layer, \(1, 3, 3\), \(1, 3, 4\), got a tensor \(2, 3, 5\)",
    ),
    (lambda: tt.nn.GRU(I, [3, 4], 2)(X, [X]), ShapeError, r"GRU: h_0 must be a tuple .*got 1 of a tensor \(4, 3, 2\)"),
    (lambda: tt.nn.GRU(I, H)(X, 5), ShapeError, "GRU: h_0 must be .*got int"),
    (
        lambda: tt.nn.GRU(I, H)(X, torch.zeros(1, B, H, dtype=torch.float64)),
        ShapeError,
        "GRU: state must be torch.float32 as the weights are, got torch.float64",
    ),
    (lambda: LSTM(I, H)(X, lengths=[5, 1, 1]), ShapeError, r"LSTM: lengths must lie in 0\.\.4"),
    (
        lambda: LSTM(I, H)(X, resets=torch.zeros(B, T, dtype=torch.bool)),
        ShapeError,
        r"LSTM: resets must be boolean of shape",
    ),
    (
        lambda: LSTM(I, H, bidirectional=True)(X, resets=torch.zeros(T, B, dtype=torch.bool)),
        UsageError,
        "a sequence cannot begin anew in a direction that reads it from its end",
    ),
    (lambda: LSTM(I, H)(X, return_states="h"), UsageError, "LSTM: return_states must be 'all' or None, got 'h'"),
    (
        lambda: LSTM(I, H)(pack_padded_sequence(X, torch.tensor([4, 2, 1])), lengths=[4, 2, 1]),
        UsageError,
        "LSTM: a PackedSequence has its own lengths; give no lengths or resets",
    ),
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("call", "error", "text"), MISUSE)
def test_misuse_is_told_in_one_line(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_another_layers_option_is_no_option() -> None:
    with pytest.raises(TypeError, match="peepholes"):
        tt.nn.GRU(I, H, peepholes=True)


def test_shapes_without_numbers() -> None:
    outputs, (h, c) = LSTM(I, H, device="meta")(torch.empty(7, 3, I, device="meta"))
    assert (outputs.shape, h.shape, c.shape) == ((7, 3, H), (1, 3, H), (1, 3, H))
    assert outputs.is_meta
