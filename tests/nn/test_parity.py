"""tt.nn against torch.nn: outputs, final states and gradients of everything, over the product of options."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import throughtime as tt
from throughtime.kernels.native import library

# torch's own layers say this once; ours keep quiet (tests/kernels/test_torch_engine.py).
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

T, B, I, H = 4, 3, 2, 4  # noqa: E741
LENGTHS = {"sorted": [4, 3, 1], "unsorted": [3, 1, 4]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm-projected": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
}
MISSING = library.missing_reason()
NATIVE = pytest.param("native", marks=pytest.mark.skipif(MISSING is not None, reason=str(MISSING)))
every_engine = pytest.mark.parametrize("engine", [NATIVE, "torch", "reference"])


def pair(kind: str, engine: str = "auto", dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """torch's layer and ours, with the same weights."""
    name, own = KINDS[kind]
    torch.manual_seed(3)
    theirs = getattr(nn, name)(I, H, dtype=dtype, **own, **options)
    ours = getattr(tt.nn, name)(I, H, dtype=dtype, engine=engine, **own, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def initial_state(layer: Any, rows: tuple[int, ...], generator: torch.Generator) -> Any:
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or H, H] if isinstance(layer, (nn.LSTM, tt.nn.LSTM)) else [H]
    dtype = next(layer.parameters()).dtype
    fields = [torch.randn(count, *rows, size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]
    return tuple(fields) if len(fields) > 1 else fields[0]


def everything(layer: Any, form: str, with_state: bool) -> list[torch.Tensor]:
    """Outputs, final state, and the gradients of inputs, state and weights, all from the same random numbers."""
    generator = torch.Generator().manual_seed(5)
    dtype = next(layer.parameters()).dtype
    rows = () if form == "unbatched" else (B,)
    shape = (T, *rows, I) if not (layer.batch_first and rows) else (B, T, I)
    x = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    state = initial_state(layer, rows, generator) if with_state else None
    inputs: Any = x
    if form in LENGTHS:
        inputs = pack_padded_sequence(
            x, torch.tensor(LENGTHS[form]), batch_first=layer.batch_first, enforce_sorted=form == "sorted"
        )
    outputs, final = layer(inputs, state)
    results = [outputs.data if isinstance(outputs, PackedSequence) else outputs]
    results += [final] if isinstance(final, torch.Tensor) else list(final)
    total = sum((r * torch.randn(r.shape, generator=generator, dtype=dtype)).sum() for r in results)
    sources = [x, *([] if state is None else [state] if isinstance(state, torch.Tensor) else state)]
    gradients = torch.autograd.grad(total, [*sources, *layer.parameters()])
    return [*results, *gradients]


@every_engine
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_same_results_and_gradients(kind: str, num_layers: int, bidirectional: bool, bias: bool, engine: str) -> None:
    for batch_first in (False, True):
        theirs, ours = pair(
            kind, engine, num_layers=num_layers, bidirectional=bidirectional, bias=bias, batch_first=batch_first
        )
        for form, with_state in product(("batched", "unbatched", "sorted", "unsorted"), (False, True)):
            expected, got = everything(theirs, form, with_state), everything(ours, form, with_state)
            for a, b in zip(expected, got, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12, msg=lambda m, f=form: f"{f}: {m}")


@pytest.mark.parametrize("form", ["sorted", "unsorted"])
def test_a_packed_sequence_comes_back_packed_as_it_came(form: str) -> None:
    theirs, ours = pair("lstm", bidirectional=True)
    packed = pack_padded_sequence(
        torch.randn(T, B, I, dtype=torch.float64), torch.tensor(LENGTHS[form]), enforce_sorted=form == "sorted"
    )
    expected, got = theirs(packed)[0], ours(packed)[0]
    torch.testing.assert_close(got.batch_sizes, expected.batch_sizes)
    for a, b in ((got.sorted_indices, expected.sorted_indices), (got.unsorted_indices, expected.unsorted_indices)):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@every_engine
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_worse_than_torch(kind: str, dtype: torch.dtype, engine: str) -> None:
    # Both round; neither order of operations is the right one. The measure is the float64 result of the same weights.
    theirs, ours = pair(kind, engine, dtype, num_layers=2)
    exact, _ = pair(kind, num_layers=2)
    exact.load_state_dict({name: value.double() for name, value in theirs.state_dict().items()})
    x = torch.randn(12, 3, I, generator=torch.Generator().manual_seed(1)).to(dtype)
    right = exact(x.double())[0]
    torch_error = (theirs(x)[0].double() - right).abs().max()
    assert (ours(x)[0].double() - right).abs().max() <= 2 * torch_error + torch.finfo(dtype).eps


@every_engine
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_no_worse_than_torch(kind: str, engine: str) -> None:
    theirs, ours = pair(kind, engine, torch.float32, num_layers=2)
    exact, _ = pair(kind, num_layers=2)
    exact.load_state_dict({name: value.double() for name, value in theirs.state_dict().items()})
    x = torch.randn(12, 3, I, generator=torch.Generator().manual_seed(1))
    exact(x.double())[0].square().sum().backward()
    errors = []
    for layer in (theirs, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs, _ = layer(x)
            # A half-precision input meets single-precision weights under autocast.
            layer(x.bfloat16())
        outputs.float().square().sum().backward()
        errors.append(
            max(
                float((got.grad.double() - right.grad).norm() / right.grad.norm())
                for got, right in zip(layer.parameters(), exact.parameters(), strict=True)
            )
        )
    # 2^-8 is bfloat16's epsilon; torch.nn's GRU stays in float32 under autocast where the reference's products do not.
    assert errors[1] <= max(2 * errors[0], 8 * 2**-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_same_seed_gives_the_same_weights(kind: str, bidirectional: bool) -> None:
    name, own = KINDS[kind]
    options = {"num_layers": 2, "bidirectional": bidirectional, **own}
    torch.manual_seed(7)
    theirs = getattr(nn, name)(I, H, **options)
    torch.manual_seed(7)
    ours = getattr(tt.nn, name)(I, H, **options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    # The generator stands where it stood, too: what is made next is the same.
    following = torch.rand(3)
    torch.manual_seed(7)
    getattr(nn, name)(I, H, **options)
    assert torch.equal(torch.rand(3), following)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_load_both_ways(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.testing.assert_close(theirs(x)[0], ours(x)[0])
    assert [len(weights) for weights in ours.all_weights] == [len(weights) for weights in theirs.all_weights]
    for one, other in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert [w.shape for w in one] == [w.shape for w in other]


@pytest.mark.parametrize("kind", ["rnn-tanh", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dropout", [0.4, 1.0])
def test_dropout_between_layers_draws_what_torch_draws(kind: str, bidirectional: bool, dropout: float) -> None:
    theirs, ours = pair(kind, num_layers=3, bidirectional=bidirectional, dropout=dropout)
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(11)
    expected = theirs(x)[0]
    torch.manual_seed(11)
    torch.testing.assert_close(ours(x)[0], expected)
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0])


@pytest.mark.parametrize("arguments", [(I, H), (I, H, 2), (I, H, 2, False), (I, H, 2, True, True, 0.0, True)])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_positional_arguments_mean_what_they_mean_in_torch(name: str, arguments: tuple[Any, ...]) -> None:
    theirs, ours = getattr(nn, name)(*arguments), getattr(tt.nn, name)(*arguments)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for attribute in ("batch_first", "bidirectional", "bias", "num_layers", "hidden_size", "input_size", "mode"):
        assert getattr(theirs, attribute) == getattr(ours, attribute)
    x = torch.randn(5, 5, I)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_positional_arguments_of_an_rnn() -> None:
    theirs, ours = nn.RNN(I, H, 2, "relu", False, True), tt.nn.RNN(I, H, 2, "relu", False, True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert (ours.mode, ours.nonlinearity, ours.bias, ours.batch_first) == ("RNN_RELU", "relu", False, True)
    x = torch.randn(5, 3, I)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_positional_projection_of_an_lstm() -> None:
    theirs = nn.LSTM(I, H, 2, True, False, 0.0, False, 2)
    ours = tt.nn.LSTM(I, H, 2, True, False, 0.0, False, 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.proj_size == 2


def test_lengths_say_what_a_packed_sequence_says() -> None:
    theirs, ours = pair("gru", num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lengths = LENGTHS["unsorted"]
    expected, state = theirs(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    expected = nn.utils.rnn.pad_packed_sequence(expected)[0]
    for given in (lengths, torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32)):
        outputs, final = ours(x, lengths=given)
        torch.testing.assert_close(outputs, expected)
        torch.testing.assert_close(final, state)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_a_call_may_use_the_names_of_torch(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(3, 4).double()
    ours = getattr(tt.nn, name)(3, 4).double()
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(2, 3, dtype=torch.float64) if "Cell" in name else torch.randn(5, 2, 3, dtype=torch.float64)
    h = torch.randn(2, 4, dtype=torch.float64) if "Cell" in name else torch.randn(1, 2, 4, dtype=torch.float64)
    hx = (h, h + 1) if "LSTM" in name else h
    torch.testing.assert_close(tuple(ours(input=inputs, hx=hx)), tuple(theirs(input=inputs, hx=hx)))
    torch.testing.assert_close(tuple(ours(inputs, hx=hx)), tuple(ours(inputs, hx)))


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_a_call_with_wrong_names_says_so(name: str) -> None:
    layer = getattr(tt.nn, name)(3, 4)
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=f"{name}: unexpected argument 'xs'"):
        layer(x, xs=x)
    with pytest.raises(TypeError, match=f"{name}: inputs or state given twice"):
        layer(x, input=x)
    with pytest.raises(TypeError, match=f"{name}: no inputs given"):
        layer()
