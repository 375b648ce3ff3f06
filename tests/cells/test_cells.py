"""The built-in cells: against torch.nn's, against their equations written out in NumPy, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import ShapeError, UsageError

B, I, H = 3, 2, 4  # noqa: E741
Array = Any


def sigma(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def normalised(a: Array, gain: Array) -> Array:
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * gain


def rnn(p: dict[str, Array], x: Array, h: Array, act: Callable[[Array], Array] = np.tanh) -> Array:
    """Eqs. 10.8-10.9."""
    u, w = x @ p["weight_ih"].T, h @ p["weight_hh"].T
    if "gain_ih" in p:
        u, w = normalised(u, p["gain_ih"]), normalised(w, p["gain_hh"])
    return act(u + w + p.get("bias_ih", 0) + p.get("bias_hh", 0))


def lstm(p: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Eqs. 10.40-10.44, each gate by itself."""
    a = {}
    for k, gate in enumerate("ifgo"):
        rows = slice(k * H, (k + 1) * H)
        u, w = x @ p["weight_ih"][rows].T, h @ p["weight_hh"][rows].T
        if "gain_ih" in p:
            u, w = normalised(u, p["gain_ih"][rows]), normalised(w, p["gain_hh"][rows])
        a[gate] = u + w
        if "bias_ih" in p:
            a[gate] = a[gate] + p["bias_ih"][rows] + p["bias_hh"][rows]
    peep_i, peep_f, peep_o = p.get("weight_peephole", np.zeros((3, H)))
    new_c = sigma(a["f"] + peep_f * c) * c + sigma(a["i"] + peep_i * c) * np.tanh(a["g"])
    seen = normalised(new_c, p["gain_c"]) + p["shift_c"] if "gain_c" in p else new_c
    new_h = sigma(a["o"] + peep_o * new_c) * np.tanh(seen)
    return (new_h @ p["weight_hr"].T if "weight_hr" in p else new_h), new_c


def gru(p: dict[str, Array], x: Array, h: Array, reset_after: bool = True) -> Array:
    """Eqs. 10.45-10.47; the reset gate after or before the product."""

    def u(k: int) -> Array:
        rows = slice(k * H, (k + 1) * H)
        product = x @ p["weight_ih"][rows].T
        return (normalised(product, p["gain_ih"][rows]) if "gain_ih" in p else product) + p.get("bias_ih", zero)[rows]

    def w(k: int, state: Array) -> Array:
        rows = slice(k * H, (k + 1) * H)
        product = state @ p["weight_hh"][rows].T
        return (normalised(product, p["gain_hh"][rows]) if "gain_hh" in p else product) + p.get("bias_hh", zero)[rows]

    zero = np.zeros(3 * H)
    r, z = sigma(u(0) + w(0, h)), sigma(u(1) + w(1, h))
    n = np.tanh(u(2) + (r * w(2, h) if reset_after else w(2, r * h)))
    return (1 - z) * n + z * h


CELLS: dict[str, tuple[str, dict[str, Any], Callable[..., Any]]] = {
    "rnn": ("RNNCell", {}, rnn),
    "rnn-relu": ("RNNCell", {"nonlinearity": "relu"}, lambda p, x, h: rnn(p, x, h, lambda a: np.maximum(a, 0))),
    "rnn-norm": ("RNNCell", {"layer_norm": True}, rnn),
    "rnn-without-bias": ("RNNCell", {"bias": False}, rnn),
    "lstm": ("LSTMCell", {}, lstm),
    "lstm-peepholes": ("LSTMCell", {"peepholes": True}, lstm),
    "lstm-projected": ("LSTMCell", {"proj_size": 2}, lstm),
    "lstm-norm": ("LSTMCell", {"layer_norm": True}, lstm),
    "lstm-all": ("LSTMCell", {"peepholes": True, "proj_size": 2, "layer_norm": True, "bias": False}, lstm),
    "gru": ("GRUCell", {}, gru),
    "gru-before": ("GRUCell", {"reset_after": False}, lambda p, x, h: gru(p, x, h, reset_after=False)),
    "gru-norm": ("GRUCell", {"layer_norm": True}, gru),
    "gru-before-norm": (
        "GRUCell",
        {"layer_norm": True, "reset_after": False, "bias": False},
        lambda p, x, h: gru(p, x, h, reset_after=False),
    ),
}


def made(case: str) -> Any:
    """A float64 cell whose every parameter, gains and shifts too, is at no special value."""
    torch.manual_seed(1)
    name, options, _ = CELLS[case]
    cell = getattr(tt.nn, name)(I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return cell


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def state_for(cell: Any, rows: int = B) -> list[Tensor]:
    return [some(rows, size) * 0.7 for size in cell.state_sizes()]


def called(cell: Any, x: Tensor, fields: list[Tensor]) -> list[Tensor]:
    after = cell(x, fields[0] if len(fields) == 1 else tuple(fields))
    return [after] if isinstance(after, Tensor) else list(after)


@pytest.mark.parametrize("case", CELLS)
def test_a_step_is_the_equations_written_out(case: str) -> None:
    cell = made(case)
    x, fields = some(B, I), state_for(cell)
    weights = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    expected = CELLS[case][2](weights, x.numpy(), *(f.numpy() for f in fields))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, right in zip(called(cell, x, fields), expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), right, rtol=1e-12, atol=1e-14)
    # unfold steps the same way.
    outputs, final = tt.unfold(cell, x[None], tuple(fields), engine="reference")
    np.testing.assert_allclose(outputs[0].detach().numpy(), expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(final[-1].detach().numpy(), expected[-1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CELLS)
def test_first_and_second_derivatives_against_finite_differences(case: str) -> None:
    cell = made(case)
    names = [name for name, _ in cell.named_parameters()]
    fields = [field.requires_grad_() for field in state_for(cell, 2)]
    leaves = [
        some(2, 2, I).requires_grad_(),
        *fields,
        *(p.detach().clone().requires_grad_() for p in cell.parameters()),
    ]

    def run(x: Tensor, *rest: Tensor) -> Any:
        state, weights = rest[: len(fields)], dict(zip(names, rest[len(fields) :], strict=True))
        return torch.func.functional_call(_Unfolded(cell), {f"cell.{n}": w for n, w in weights.items()}, (x, state))

    assert torch.autograd.gradcheck(run, leaves, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("case", CELLS)
def test_a_built_in_cell_keeps_the_contract_of_every_cell(case: str) -> None:
    cell = made(case)
    x, fields = some(B, I), state_for(cell)
    after = cell.step(cell.project_inputs(x), cell.State(*fields))
    for got, right in zip(after, called(cell, x, fields), strict=True):
        assert torch.equal(got, right)


class _Unfolded(nn.Module):
    """The cell over two steps, as a function of its weights."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs, final = tt.unfold(self.cell, x, state, engine="reference")
        return (outputs, *final)


TORCH_CELLS = [
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "options"), TORCH_CELLS)
def test_drop_in_for_the_cells_of_torch(name: str, options: dict[str, Any], bias: bool) -> None:
    torch.manual_seed(9)
    theirs = getattr(nn, name)(I, H, bias, dtype=torch.float64, **options)
    torch.manual_seed(9)
    ours = getattr(tt.nn, name)(I, H, bias, dtype=torch.float64, **options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for rows in ((B,), ()):
        x = some(*rows, I).requires_grad_()
        state: Any = tuple(some(*rows, H).requires_grad_() for _ in ours.State._fields)
        for given in (None, state if len(state) > 1 else state[0]):
            found = []
            for cell in (theirs, ours):
                after = cell(x, given)
                fields = [after] if isinstance(after, Tensor) else list(after)
                sources = [x, *([] if given is None else state), *cell.parameters()]
                total = sum(((k + 1.5) * f).sin().sum() for k, f in enumerate(fields))
                found.append([*fields, *torch.autograd.grad(total, sources)])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-13)


def test_positional_nonlinearity_as_in_torch() -> None:
    assert tt.nn.RNNCell(I, H, True, "relu").nonlinearity == "relu"


def test_gains_begin_at_one_and_shifts_at_zero_and_torchs_draws_come_first() -> None:
    torch.manual_seed(0)
    plain = tt.nn.LSTMCell(I, H)
    torch.manual_seed(0)
    rich = tt.nn.LSTMCell(I, H, peepholes=True, layer_norm=True)
    assert all(torch.equal(getattr(plain, name), getattr(rich, name)) for name in plain.state_dict())
    assert all(bool((gain == 1).all()) for gain in (rich.gain_ih, rich.gain_hh, rich.gain_c))
    assert not rich.shift_c.any()
    assert 0 < rich.weight_peephole.abs().max() <= H**-0.5


def test_autocast_takes_half_precision_inputs() -> None:
    cell = tt.nn.GRUCell(I, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = cell(some(B, I).bfloat16())
    assert after.isfinite().all()


def test_the_representation_shows_sizes_and_missing_bias() -> None:
    assert repr(tt.nn.GRUCell(I, H)) == "GRUCell(2, 4)"
    assert repr(tt.nn.GRUCell(I, H, bias=False)) == "GRUCell(2, 4, bias=False)"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: tt.nn.RNNCell(I, H, nonlinearity="sigmoid"),
            UsageError,
            "RNNCell: nonlinearity must be 'tanh' or 'relu'",
        ),
        (lambda: tt.nn.LSTMCell(0, H), ShapeError, "LSTMCell: input_size must be at least 1, got 0"),
        (lambda: tt.nn.LSTMCell(I, -1), ShapeError, "LSTMCell: hidden_size must be at least 1, got -1"),
        (
            lambda: tt.nn.LSTMCell(I, H, proj_size=H),
            ShapeError,
            "proj_size must be 0 .none. or smaller than hidden_size=4",
        ),
        (
            lambda: tt.nn.GRUCell(I, H)(torch.zeros(B, I + 1)),
            ShapeError,
            r"GRUCell: inputs must be \(B, 2\) or \(2,\), got \(3, 3\); for \(T, B, 2\) use tt.unfold",
        ),
        (lambda: tt.nn.GRUCell(I, H)(torch.zeros(5, B, I)), ShapeError, r"got \(5, 3, 2\)"),
        (
            lambda: tt.nn.GRUCell(I, H)(torch.zeros(B, I), torch.zeros(1, H)),
            ShapeError,
            r"GRUCell: state must be GRUState\(h \(3, 4\)\), got \[\(1, 4\)\]",
        ),
        (
            lambda: tt.nn.LSTMCell(I, H, proj_size=2)(torch.zeros(B, I), (torch.zeros(B, H), torch.zeros(B, H))),
            ShapeError,
            r"LSTMCell: state must be LSTMState\(h \(3, 2\), c \(3, 4\)\), got \[\(3, 4\), \(3, 4\)\]",
        ),
        (lambda: tt.nn.LSTMCell(I, H)(torch.zeros(B, I), torch.zeros(B, H)), ShapeError, r"got \[\(3, 4\)\]"),
        (
            lambda: tt.nn.LSTMCell(I, H)(torch.zeros(B, I, dtype=torch.float64)),
            ShapeError,
            r"inputs must be torch.float32 as the weights are, got torch.float64; use inputs.to\(torch.float32\)",
        ),
    ],
)
def test_misuse_is_told_in_one_line(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
