"""Cells of the user's own on the native engine, against the reference; and what it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import EngineError
from throughtime.kernels.native import library
from throughtime.kernels.native.custom.expressions import OPERATIONS

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))


class Hidden(NamedTuple):
    h: Tensor


class Memory(NamedTuple):
    h: Tensor
    c: Tensor


class Leaky(tt.Cell):
    State = Hidden

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.U = nn.Linear(inputs, units)
        self.W = nn.Linear(units, units, bias=False)

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)

    def step(self, projected: Tensor, state: Any) -> Any:
        return Hidden(0.9 * state.h + 0.1 * torch.tanh(projected + self.W(state.h)))


class Gated(tt.Cell):
    """U x for `gates` gates, W h likewise."""

    gates = 4
    State: Any = Memory

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.U = nn.Linear(inputs, self.gates * units)
        self.W = nn.Linear(units, self.gates * units)

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)


class LSTM(Gated):
    def step(self, projected: Tensor, state: Any) -> Any:
        i, f, g, o = (projected + self.W(state.h)).chunk(4, -1)
        c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
        return Memory(torch.sigmoid(o) * torch.tanh(c), c)


class ViewedLSTM(Gated):
    """The same, with the gates on an axis of their own, and all three σ at once."""

    def step(self, projected: Tensor, state: Any) -> Any:
        gates = (projected + self.W(state.h)).view(-1, 4, self.hidden_size)
        i, f, o = torch.sigmoid(gates[:, :3]).unbind(1)
        c = f * state.c + i * gates[:, 3].tanh()
        return Memory(o * c.tanh(), c)


class GRU(Gated):
    gates = 3
    State = Hidden

    def step(self, projected: Tensor, state: Any) -> Any:
        x_r, x_z, x_n = projected.chunk(3, -1)
        h_r, h_z, h_n = self.W(state.h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        return Hidden(torch.lerp(torch.tanh(x_n + r * h_n), state.h, z))


class MinimalGated(tt.Cell):
    """Two products one behind the other, of the input and the state joined."""

    State = Hidden

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.forget = nn.Linear(inputs + units, units)
        self.candidate = nn.Linear(inputs + units, units)

    def step(self, projected: Tensor, state: Any) -> Any:
        f = torch.sigmoid(self.forget(torch.cat([projected, state.h], -1)))
        n = torch.tanh(self.candidate(torch.cat([projected, f * state.h], -1)))
        return Hidden((1 - f) * state.h + f * n)


class Peephole(tt.Cell):
    """Both fields in one product, the memory wider than the output, vectors and a number that are learnt."""

    State = Memory

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        wide = units + 3
        self.U = nn.Linear(inputs, 2 * wide)
        self.W = nn.Linear(units + wide, 2 * wide, bias=False)
        self.R = nn.Parameter(torch.randn(wide, units) / 4)
        self.peephole = nn.Parameter(torch.randn(2, wide))
        self.rate = nn.Parameter(torch.tensor(0.3))

    def state_sizes(self) -> tuple[int, ...]:
        return self.hidden_size, self.hidden_size + 3

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)

    def step(self, projected: Tensor, state: Any) -> Any:
        a, g = (projected + self.W(torch.cat([state.c, state.h], 1))).chunk(2, 1)
        keep = torch.sigmoid(a + self.peephole[0] * state.c)
        c = keep * state.c + torch.sigmoid(self.rate) * (1 - keep) * torch.tanh(g)
        return Memory(torch.relu(c + self.peephole[1]) @ self.R, c)


class Spread(tt.Cell):
    """What else is pointwise; a weight made of a parameter; a gradient that is stopped."""

    State = Memory

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.W = nn.Parameter(torch.randn(units, units) / 2)
        self.U = nn.Linear(inputs, 2 * units)
        self.register_buffer("mask", torch.tril(torch.ones(units, units)))
        self.b = nn.Parameter(torch.randn(units))

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)

    def step(self, projected: Tensor, state: Any) -> Any:
        a, g = projected.split(self.hidden_size, 1)
        a = a + state.h @ (self.W * self.mask) / self.b.norm()
        c = torch.where(a > 0.1, nn.functional.silu(a) - state.c.abs(), a.clamp(-0.5, 0.4).exp() * state.c)
        c = c / (1 + c**2) + nn.functional.softplus(g) * 0.1 + nn.functional.elu(a) * self.b.sigmoid()
        with torch.no_grad():
            scale = 1 / (1 + state.h.abs())
        h = torch.maximum(c * scale, state.h.detach() - c) - torch.minimum(g, a).sin() + 2 * nn.functional.gelu(g)
        return Memory(nn.functional.leaky_relu(h) - state.h * (a < g), torch.log1p(c * c).sqrt() + 0.1)


class Naive(tt.Cell):
    """An LSTM with a layer for each gate, and all of it in step()."""

    State = Memory

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.of_inputs = nn.ModuleDict({gate: nn.Linear(inputs, units) for gate in "ifgo"})
        self.of_state = nn.ModuleDict({gate: nn.Linear(units, units, bias=gate != "g") for gate in "ifgo"})

    def step(self, projected: Tensor, state: Any) -> Any:
        i, f, g, o = (self.of_inputs[gate](projected) + self.of_state[gate](state.h) for gate in "ifgo")
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        return Memory(o.sigmoid() * c.tanh(), c)


CELLS = [Naive, Leaky, LSTM, ViewedLSTM, GRU, MinimalGated, Peephole, Spread]


def made(kind: Any, inputs: int, units: int, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(inputs + 7 * units)
    return kind(inputs, units).to(dtype)


def results(cell: Any, engine: str, x: Tensor, state: Any, **options: Any) -> list[Tensor]:
    """Outputs, final state, and the gradients of a loss that takes all of them."""
    x, state = x.clone().requires_grad_(), [field.clone().requires_grad_() for field in state]
    outputs, final = tt.unfold(cell, x, state, engine=engine, **options)
    random = torch.Generator().manual_seed(5)
    loss = sum((r * torch.randn(r.shape, generator=random, dtype=r.dtype)).sum() for r in (outputs, *final))
    return [outputs, *final, *torch.autograd.grad(loss, [x, *state, *cell.parameters()])]  # type: ignore[list-item]


def data(cell: Any, steps: int, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    random = torch.Generator().manual_seed(steps + 31 * batch)
    sizes = [(steps, batch, cell.input_size), *((batch, size) for size in cell.state_sizes())]
    x, *state = (torch.randn(*size, generator=random, dtype=dtype) for size in sizes)
    return x, state


def check(cell: Any, steps: int, batch: int, tolerance: float = 1e-12, **options: Any) -> None:
    x, state = data(cell, steps, batch, next(cell.parameters()).dtype)
    for ours, right in zip(*(results(cell, e, x, state, **options) for e in ("native", "reference")), strict=True):
        torch.testing.assert_close(
            ours, right, rtol=tolerance, atol=tolerance * max(1.0, float(right.detach().abs().max()))
        )


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CELLS)
@settings(max_examples=15)
@given(data_=st.data())
def test_agrees_with_the_reference(kind: Any, data_: st.DataObject) -> None:
    steps, batch = data_.draw(st.sampled_from([1, 2, 7])), data_.draw(st.sampled_from([1, 3, 17, 40]))
    units = data_.draw(st.sampled_from([1, 5, 16, 33, 129]))
    options: dict[str, Any] = {}
    how = data_.draw(st.sampled_from(["plain", "reverse", "lengths", "reverse and lengths", "resets"]))
    if "lengths" in how:
        options["lengths"] = torch.tensor(data_.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))
    if how == "resets":
        random = torch.Generator().manual_seed(steps * batch)
        options["resets"] = torch.rand(steps, batch, generator=random) < 0.4
    check(made(kind, data_.draw(st.sampled_from([1, 6])), units), steps, batch, reverse="reverse" in how, **options)


@pytest.mark.parametrize("kind", CELLS)
def test_is_taken_by_auto(kind: Any) -> None:
    assert tt.kernels.explain(made(kind, 3, 5), torch.zeros(4, 2, 3, dtype=torch.float64)).engines == ("native",)


@pytest.mark.parametrize("kind", CELLS)
def test_float32_is_as_good_as_its_sums(kind: Any) -> None:
    check(made(kind, 6, 40, torch.float32), 6, 20, 2e-5)


@pytest.mark.parametrize("kind", [LSTM, MinimalGated])
def test_large_projections_are_the_engines_own(threads: None, kind: Any) -> None:
    cell = made(kind, 130, 41)
    check(cell, 7, 40)
    check(cell, 7, 40, lengths=torch.arange(40) % 8)
    cell = cell.float()
    x, state = data(cell, 7, 40, torch.float32)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(cell, "native", x, state))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", [LSTM, MinimalGated, Peephole])
@pytest.mark.parametrize(("batch", "units"), [(70, 64), (2, 300), (1, 520), (33, 400)])
def test_the_number_of_threads_changes_no_bit(threads: None, kind: Any, batch: int, units: int) -> None:
    cell = made(kind, 5, units, torch.float32)
    x, state = data(cell, 4, batch, torch.float32)
    lengths = torch.arange(batch) % 5
    found = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        native = lambda: results(cell, "native", x, state, lengths=lengths)  # noqa: E731
        found.append(native())
    # PyTorch's own products before the loop may differ with the number of threads: x's and U's gradients are not ours.
    ours = [i for i, r in enumerate(found[0]) if i < 1 + 2 * len(state) + 1 and i != 1 + len(state)]
    for other in found[1:]:
        for i in ours:
            assert torch.equal(found[0][i], other[i]), i


def test_without_gradients_nothing_is_kept_and_the_result_is_the_same() -> None:
    for kind in CELLS:
        cell = made(kind, 4, 19)
        x, state = data(cell, 5, 3)
        lengths = torch.tensor([5, 0, 3])
        with torch.no_grad():
            plain = tt.unfold(cell, x, state, lengths=lengths, engine="native")
        kept = tt.unfold(cell, x, state, lengths=lengths, engine="native")
        for a, b in zip((plain[0], *plain[1]), (kept[0], *kept[1]), strict=True):
            assert not a.requires_grad
            assert torch.equal(a, b)


def test_in_inference_mode() -> None:
    cell = made(Naive, 4, 19)
    x, state = data(cell, 5, 3)
    with torch.inference_mode():
        ours = tt.unfold(cell, x, state, engine="native")[0]
    torch.testing.assert_close(ours, tt.unfold(cell, x, state, engine="reference")[0])


def test_every_state_is_recorded() -> None:
    cell = made(Peephole, 4, 7)
    x, state = data(cell, 5, 3)
    lengths = torch.tensor([2, 5, 0])
    found = []
    for engine in ("native", "reference"):
        call = cell.recurrence(x, state, lengths=lengths, record=True)
        unfolded = tt.kernels.run(call, engine)
        gradients = torch.autograd.grad(sum((s**2).sum() for s in unfolded.states), list(cell.parameters()))
        found.append([*unfolded.states, *gradients])
        assert unfolded.gates == ()
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize(("kind", "sizes"), [*((kind, (2, 3, 3, 2)) for kind in CELLS), (LSTM, (130, 41, 5, 20))])
def test_second_derivatives(kind: Any, sizes: tuple[int, int, int, int]) -> None:
    cell = made(kind, *sizes[:2])
    x, state = data(cell, *sizes[2:])
    found = []
    for engine in ("native", "reference"):
        leaves = [x.clone().requires_grad_(), *cell.parameters()]
        outputs, _ = tt.unfold(cell, leaves[0], state, engine=engine)
        first = torch.autograd.grad((outputs**3).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum((g**2).sum() for g in first), leaves))
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


def test_a_result_may_be_differentiated_again_on_a_kept_graph() -> None:
    cell = made(LSTM, 2, 3)
    x, state = data(cell, 3, 2)
    outputs, _ = tt.unfold(cell, x, state, engine="native")
    once = torch.autograd.grad(outputs.sum(), cell.W.weight, retain_graph=True)
    again = torch.autograd.grad(outputs.sum(), cell.W.weight)
    assert torch.equal(once[0], again[0])


def test_extreme_values_are_those_of_the_reference() -> None:
    class Bounded(Leaky):
        def step(self, projected: Tensor, state: Any) -> Any:
            return Hidden(torch.exp(projected) + torch.minimum(state.h, projected) + torch.relu(projected))

    cell = made(Bounded, 9, 9)
    nn.init.eye_(cell.U.weight)
    nn.init.zeros_(cell.U.bias)
    inf, nan = float("inf"), float("nan")
    for dtype in (torch.float32, torch.float64):
        cell = cell.to(dtype)
        x = torch.tensor([inf, -inf, nan, 88.5, 90.0, -90.0, -200.0, 0.0, 1000.0], dtype=dtype).expand(2, 1, 9)
        ours, right = (tt.unfold(cell, x, engine=engine)[0] for engine in ("native", "reference"))
        # Multiplying by zeros, the projection itself makes NaN of the infinite; only where they are equal they count.
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-30, equal_nan=True)


# -- tracing -----------------------------------------------------------------------------------------------------------


def test_a_changed_attribute_and_changed_weights_are_noticed() -> None:
    class Slope(Leaky):
        slope = 1.0

        def step(self, projected: Tensor, state: Any) -> Any:
            return Hidden(torch.tanh(self.slope * projected + self.W(state.h)))

    cell = made(Slope, 3, 4)
    for slope in (1.0, 0.5, 2.0):
        cell.slope = slope
        with torch.no_grad():
            cell.W.weight.mul_(0.5)
        check(cell, 4, 2)


def test_a_cell_is_not_kept_alive() -> None:
    cell = made(LSTM, 3, 4)
    x, state = data(cell, 3, 2)
    tt.unfold(cell, x, state, engine="native")[0].sum().backward()
    alive = weakref.ref(cell)
    del cell
    gc.collect()
    assert alive() is None


def test_asking_draws_no_random_number() -> None:
    class Dropped(Leaky):
        def project_inputs(self, inputs: Tensor) -> Tensor:
            return nn.functional.dropout(self.U(inputs))

    cell = made(Dropped, 3, 4)
    x, state = data(cell, 3, 2)
    found = []
    for engine in ("native", "reference"):
        torch.manual_seed(3)
        found.append(tt.unfold(cell, x, state, engine=engine)[0])
    torch.testing.assert_close(*found)


# -- what it refuses ---------------------------------------------------------------------------------------------------


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return (a > 0).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _stepping(result: Any) -> Any:
    class Cell(Leaky):
        def step(self, projected: Tensor, state: Any) -> Any:
            return Hidden(result(self, projected, state.h))

    return made(Cell, 3, 4)


def _counting(cell: Any, p: Tensor, h: Tensor) -> Tensor:
    cell.count = getattr(cell, "count", 0) + 1
    return p + h


REFUSED = {
    "softmax": (lambda cell, p, h: torch.softmax(p + h, -1), "step() calls softmax, which is not pointwise"),
    "mean": (lambda cell, p, h: h - h.mean(-1, keepdim=True) + p, "step() calls mean, which is not pointwise"),
    "layer norm": (
        lambda cell, p, h: nn.functional.layer_norm(h + p, (4,)),
        "step() calls native_layer_norm, which is not pointwise",
    ),
    "branch": (
        lambda cell, p, h: p + h if h.sum() > 0 else p,
        "step() reads a number out of a tensor that depends on the state or the input",
    ),
    "in place": (
        lambda cell, p, h: (p + h).add_(1),
        "step() changes a tensor in place (add_); the same without the underscore is taken",
    ),
    "noise": (lambda cell, p, h: p + torch.randn_like(h), "step() draws random numbers (randn_like)"),
    "outer product": (
        lambda cell, p, h: torch.tanh(h @ h.mT @ p),
        "step() calls transpose, and what were rows (B, units) are none any more",
    ),
    "batch statistics": (lambda cell, p, h: p + h.flip(0), "step() calls flip across rows"),
    "a foreign tensor": (
        lambda cell, p, h: p + torch.ones(4, dtype=torch.float64).add(torch.tensor(1.0)) + h,
        "step() uses a tensor that is neither a parameter nor a buffer of the cell",
    ),
    "parts of a field": (
        lambda cell, p, h: p + h[:, :1],
        "step() takes a field of the state apart; make the parts fields of their own",
    ),
    "parts joined": (
        lambda cell, p, h: torch.tanh(h) + torch.cat([p[:, 2:], p[:, :2]], 1),
        "step() joins parts (cat) where a whole is used",
    ),
    "one unit for all": (
        lambda cell, p, h: h + p[:, :1],
        "step() spreads a tensor (B, 1) over one (B, 4) (add)",
    ),
    "a gradient of its own": (
        lambda cell, p, h: _Surrogate.apply(p + h),
        "step() does more than PyTorch's operations show, or has gradients of its own",
    ),
    "NumPy": (
        lambda cell, p, h: p * float(abs(h.detach().numpy()).max()) + h,
        "step() does more than PyTorch's operations show, or has gradients of its own",
    ),
    "a count": (_counting, "step() changes the cell's attribute count"),
    "an error": (
        lambda cell, p, h: p + h.view(7, -1),
        "step() fails on an example of 2 rows: RuntimeError: shape '[7, -1]' is invalid for input of size 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    result, reason = REFUSED[name]
    cell = _stepping(result)
    explanation = tt.kernels.explain(cell, torch.zeros(3, 2, 3, dtype=torch.float64))
    assert explanation.engines == ("reference",)
    assert (
        dict(explanation.choices[0].refused)["native"]
        == f"the native engine runs projections, then pointwise: {reason}"
    )


def test_a_refused_cell_cannot_be_run_by_name_and_is_left_as_it_was() -> None:
    cell = _stepping(_counting)
    with pytest.raises(EngineError, match="changes the cell's attribute count"):
        tt.unfold(cell, torch.zeros(3, 2, 3, dtype=torch.float64), engine="native")
    assert not hasattr(cell, "count")
    tt.unfold(cell, torch.zeros(3, 2, 3, dtype=torch.float64))
    assert cell.count == 3


def refused(cell: Any, x: Tensor, **options: Any) -> str:
    return dict(tt.kernels.explain(cell, x, **options).choices[0].refused)["native"]


def test_calls_that_are_not_for_the_native_engine() -> None:
    cell = made(Leaky, 3, 4, torch.float32)
    x = torch.zeros(3, 2, 3)
    assert "one type" in refused(cell, x, state=torch.zeros(2, 4, dtype=torch.float64))
    assert "in float32 and float64, not in torch.bfloat16" in refused(cell.bfloat16(), x.bfloat16())
    cell = cell.float()
    assert "over one step and one sequence at least" in refused(cell, x[:0])
    assert "no zoneout" in refused(cell, x, zoneout=[torch.zeros(3, 2, 4)])
    with torch.autocast("cpu", torch.bfloat16):
        assert "no autocast" in refused(cell, x)


def test_a_projection_that_fails_is_the_references_to_tell() -> None:
    class Wrong(Leaky):
        def project_inputs(self, inputs: Tensor) -> Tensor:
            return self.U(inputs[..., 1:])

    cell = made(Wrong, 3, 4, torch.float32)
    assert "project_inputs() fails on one step: RuntimeError: mat1 and mat2" in refused(cell, torch.zeros(3, 2, 3))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        tt.unfold(cell, torch.zeros(3, 2, 3))


def test_empty_calls_go_to_the_reference() -> None:
    cell = made(Leaky, 3, 4)
    outputs, final = tt.unfold(cell, torch.zeros(0, 2, 3, dtype=torch.float64))
    assert outputs.shape == (0, 2, 4)
    assert final.h.shape == (2, 4)


def test_transforms_and_the_compiler_meet_the_reference() -> None:
    cell = made(Leaky, 3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    gradient = torch.func.grad(lambda x: tt.unfold(cell, x)[0].sum())(x)
    torch.testing.assert_close(gradient, results_of_sum(cell, x))


def results_of_sum(cell: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(tt.unfold(cell, x, engine="native")[0].sum(), x)[0]


def test_operations_are_numbered_alike_in_python_and_native_code() -> None:
    assert len(OPERATIONS) == library.load().custom_operations
