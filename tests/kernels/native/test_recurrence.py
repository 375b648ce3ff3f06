"""The native recurrence against the reference in float64: outputs, states and gates, and the gradient of everything.

No tolerance is guessed. A result in float32 may be as far from the reference in float64 as the reference in float32 is,
some times over, as sums stand in another order; in float64 the same, by as much finer. With operands of products in
bfloat16 what is right is the reference in float64 with the operands of every product rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

import throughtime as tt
from throughtime.kernels import Recurrence
from throughtime.kernels.native import arguments, library
from throughtime.recurrence.lengths import checked_resets

CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (tt.nn.RNNCell, {}),
    "rnn relu": (tt.nn.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (tt.nn.LSTMCell, {}),
    "lstm with peepholes": (tt.nn.LSTMCell, {"peepholes": True}),
    "lstm projected": (tt.nn.LSTMCell, {"proj_size": 2}),
    "lstm projected with peepholes": (tt.nn.LSTMCell, {"proj_size": 17, "peepholes": True}),
    "gru": (tt.nn.GRUCell, {}),
    "gru reset before": (tt.nn.GRUCell, {"reset_after": False}),
}
SIZES = [1, 3, 17, 33, 100, 129]
# What a run is given, what it is computed in, and what operands of products are rounded to.
PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "autocast": torch.float32,
}


ISAS = library.available_isas() if library.missing_reason() is None else ()
every_isa = pytest.mark.parametrize(
    "isa", ISAS or [pytest.param("none", marks=pytest.mark.skip(reason=str(library.missing_reason())))]
)


@pytest.mark.parametrize("isa", [isa for isa in library.ISAS if isa not in ISAS])
def test_left_out(isa: str) -> None:
    built = isa in library.built_isas()
    pytest.skip(f"{isa} is not tested: " + ("this processor does not run it" if built else "it is not built here"))


@dataclass(frozen=True)
class Case:
    """One recurrence, all numbers in it decided by the seed."""

    cell: str
    steps: int
    batch: int
    inputs: int
    units: int
    bias: bool = True
    ragged: bool = False
    reverse: bool = False
    resets: bool = False
    mask: bool = False
    zoneout: bool = False
    record: bool = False
    strided: bool = False
    given: str = "all"  # the results that have a gradient: all, outputs, final
    wanted: str = "all"  # what gets a gradient: all, inputs, weights
    threads: int = 2
    seed: int = 0


@st.composite
def cases(draw: Any) -> Case:
    reverse = draw(st.booleans())
    return Case(
        cell=draw(st.sampled_from(sorted(CELLS))),
        steps=draw(st.sampled_from([0, 1, 2, 5, 11, 40])),
        batch=draw(st.sampled_from([1, 2, 5, 6, 13, 14, 15, 29, 70])),
        inputs=draw(st.sampled_from(SIZES)),
        units=draw(st.sampled_from(SIZES)),
        bias=draw(st.booleans()),
        ragged=draw(st.booleans()),
        reverse=reverse,
        resets=not reverse and draw(st.booleans()),
        mask=draw(st.booleans()),
        zoneout=draw(st.booleans()),
        record=draw(st.booleans()),
        strided=draw(st.booleans()),
        given=draw(st.sampled_from(["all", "all", "outputs", "final"])),
        wanted=draw(st.sampled_from(["all", "all", "inputs", "weights"])),
        threads=draw(st.integers(2, 4)),
        seed=draw(st.integers(0, 999)),
    )


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with gaps between them, and the axes in the opposite order in memory."""
    wide = tensor.new_zeros(*[2 * size for size in reversed(tensor.shape)])
    view = wide.permute(*reversed(range(tensor.dim())))[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def call_of(case: Case, dtype: torch.dtype, numbers: torch.dtype) -> tuple[Recurrence, dict[str, Tensor]]:
    """The recurrence in `dtype`, with numbers that `numbers` can hold, and the leaves that gradients are asked of."""
    generator = torch.Generator().manual_seed(case.seed)
    kind, options = CELLS[case.cell]
    # A projection makes fewer of the units.
    units = case.units if options.get("proj_size", 0) < case.units else case.units + 17
    cell = kind(case.inputs, units, bias=case.bias, dtype=torch.float64, **options)
    sizes = cell.state_sizes()

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(numbers).to(dtype)
        return strided(drawn) if case.strided else drawn

    def share(*shape: int) -> Tensor:
        # In quarters, which every format holds: zoneout of training and of evaluation, and what lies between.
        drawn = torch.randint(0, 5, shape, generator=generator).to(dtype) / 4
        return strided(drawn) if case.strided else drawn

    weights = {name: draw(*value.shape, scale=units**-0.5) for name, value in cell.named_parameters()}
    leaves = {"inputs": draw(case.steps, case.batch, case.inputs)}
    leaves |= {name: draw(case.batch, size) for name, size in zip(cell.State._fields, sizes, strict=True)}
    for name, leaf in (leaves | weights).items():
        leaf.requires_grad_(case.wanted == "all" or (case.wanted == "weights") == (name in weights))
    lengths = torch.randint(0, case.steps + 1, (case.batch,), generator=generator) if case.ragged else None
    resets = None
    if case.resets:
        resets = checked_resets(
            torch.rand(case.steps, case.batch, generator=generator) < 0.2, leaves["inputs"], who="test", lengths=lengths
        )
    equations = cell.bind()
    bound = {name: weights.get(name) for name in equations.weights._fields}
    call = Recurrence(
        replace(equations, weights=type(equations.weights)(**bound)),
        leaves["inputs"],
        cell.State(*(leaves[name] for name in cell.State._fields)),
        lengths=lengths,
        resets=resets,
        reverse=case.reverse,
        recurrent_mask=2 * share(case.batch, sizes[0]) if case.mask else None,
        zoneout=[share(case.steps, case.batch, size) for size in sizes] if case.zoneout else None,
        record=case.record,
    )
    return call, leaves | weights


def results(case: Case, engine: str, dtype: torch.dtype, numbers: torch.dtype | None = None) -> dict[str, Tensor]:
    """Everything that the engine makes of the case, by name, in float64."""
    call, leaves = call_of(case, dtype, dtype if numbers is None else numbers)
    unfolded = tt.kernels.run(call, engine)
    found = {"outputs": unfolded.outputs, **{f"final {n}": t for n, t in unfolded.final_state._asdict().items()}}
    given = dict(found) if case.given == "all" else {n: t for n, t in found.items() if n.startswith(case.given)}
    if case.record:
        recorded = {f"all {n}": t for n, t in {**unfolded.states._asdict(), **unfolded.gates._asdict()}.items()}
        found |= recorded
        given |= recorded if case.given == "all" else {}
    generator = torch.Generator().manual_seed(1)
    # Numbers that every format holds.
    incoming = [torch.randint(-8, 9, t.shape, generator=generator).to(t.dtype) / 4 for t in given.values()]
    asked = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    answering = [(t, g) for t, g in zip(given.values(), incoming, strict=True) if t.requires_grad]
    gradients = torch.autograd.grad(
        [t for t, _ in answering],
        list(asked.values()),
        [strided(g) if case.strided else g for _, g in answering],
        allow_unused=True,
        materialize_grads=True,
    )
    found |= {f"gradient of {name}": g for name, g in zip(asked, gradients, strict=True)}
    return {name: value.detach().double() for name, value in found.items()}


class RoundedProduct(torch.autograd.Function):
    """a @ b as it is with operands in bfloat16 and sums in float64, forward and backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.bfloat16().double(), b.bfloat16().double()
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        gradient = gradient.bfloat16().double()
        return gradient @ b.mT, a.flatten(0, -2).mT @ gradient.flatten(0, -2)


class RoundedProducts(TorchFunctionMode):
    """Within it, every product of matrices is a `RoundedProduct`."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("matmul", "__matmul__"):
            return RoundedProduct.apply(*arguments)
        return function(*arguments, **(options or {}))


@contextmanager
def native(isa: str, threads: int) -> Iterator[None]:
    """The native engine for one instruction set, as many threads even where there is little to do, memory not zero."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    # New tensors are filled with NaN: a result that nobody wrote, or that was read first, shows.
    torch.use_deterministic_algorithms(True)
    try:
        with (
            mock.patch.object(library, "load", return_value=library.load_isa(isa)),
            mock.patch.object(arguments, "_SMALL", 0),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


def autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()


def check(case: Case, precision: str, isa: str) -> None:
    """Compare everything that the native engine makes of the case, with one thread and with several."""
    dtype = PRECISIONS[precision]
    numbers = torch.float32 if dtype == torch.float64 else dtype
    found = []
    for threads in (1, case.threads):
        with native(isa, threads), autocast(precision):
            found.append(results(case, "native", dtype, numbers))
    expected, allowed = right_and_allowed(case, precision, numbers)
    for name, right in expected.items():
        got, again = (run[name] for run in found)
        assert got.shape == right.shape, name
        assert got.isfinite().all(), f"{name} is not written, or read before it was"
        assert torch.equal(got, again), f"{name} is another with {case.threads} threads"
        if right.numel():
            assert (got - right).abs().max() <= allowed[name], (name, (got - right).abs().max(), allowed[name])
    if case.ragged:
        call, _ = call_of(case, dtype, numbers)
        behind = torch.arange(case.steps)[:, None] >= call.lengths
        timed = [v for n, v in found[0].items() if n in ("outputs", "gradient of inputs") or n.startswith("all ")]
        assert not any(value[behind].any() for value in timed), "padding is not zero"


def right_and_allowed(case: Case, precision: str, numbers: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The results that are right, and how far from them the engine's may be."""
    dtype = PRECISIONS[precision]
    if precision in ("bfloat16", "autocast"):
        with RoundedProducts():
            right = results(case, "reference", torch.float64, numbers)
        right = {name: value.to(dtype).double() for name, value in right.items()}
        # float32's rounding decides where a value stands between two of bfloat16: one of them inside, one at the end.
        return right, {name: 2 * torch.finfo(torch.bfloat16).eps * largest(value) for name, value in right.items()}
    right = results(case, "reference", torch.float64, numbers)
    single = results(case, "reference", torch.float32)
    eps = torch.finfo(dtype).eps
    finer = eps / torch.finfo(torch.float32).eps
    return right, {
        name: 4 * finer * largest(single[name] - value) + 32 * eps * largest(value) for name, value in right.items()
    }


def largest(value: Tensor) -> float:
    return float(value.detach().abs().max()) if value.numel() else 0.0


@pytest.mark.parametrize("precision", PRECISIONS)
@every_isa
@settings(max_examples=30)
@given(case=cases())
def test_everything_is_the_references(isa: str, precision: str, case: Case) -> None:
    check(case, precision, isa)


@pytest.mark.parametrize("precision", PRECISIONS)
@every_isa
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_beyond_the_blocks_of_the_products(cell: str, isa: str, precision: str) -> None:
    # More rows than one pass of the time loop takes, deeper products than one block, and weights to share by units.
    check(Case(cell, steps=3, batch=130, inputs=270, units=300, ragged=True, record=True, threads=3), precision, isa)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@every_isa
@pytest.mark.parametrize("cell", ["rnn", "lstm", "lstm projected", "gru"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 5, 230])
def test_one_sequence(steps: int, reverse: bool, cell: str, isa: str, precision: str) -> None:
    # Its weights are read as they stand: row by row for few steps, turned for more, packed for very many.
    units = 530 if steps == 1 else 70  # long rows are read one by one
    check(Case(cell, steps, batch=1, inputs=130, units=units, reverse=reverse, mask=True), precision, isa)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@every_isa
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("units", [60, 64])
def test_results_beyond_the_caches(units: int, cell: str, isa: str, precision: str) -> None:
    # More than a megabyte of them; with 64 units they fill whole lines of memory, and are written past the caches.
    case = Case(cell, steps=96, batch=64, inputs=5, units=units, ragged=True, reverse=True, record=True, threads=3)
    check(case, precision, isa)


@every_isa
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [0, 3])
def test_no_sequences(cell: str, steps: int, isa: str) -> None:
    for ragged in (False, True):
        check(Case(cell, steps, batch=0, inputs=3, units=5, ragged=ragged, record=True), "float32", isa)


@every_isa
@pytest.mark.parametrize("cell", CELLS)
def test_without_gradients_the_results_are_the_same(cell: str, isa: str) -> None:
    call, _ = call_of(Case(cell, steps=7, batch=5, inputs=17, units=33, ragged=True), torch.float32, torch.float32)
    for mode in (torch.no_grad, torch.inference_mode):
        with native(isa, 2):
            expected = tt.kernels.run(call, "native")
            with mode():
                found = tt.kernels.run(call, "native")
        assert not found.outputs.requires_grad
        assert torch.equal(found.outputs, expected.outputs)
        assert all(torch.equal(a, b) for a, b in zip(found.final_state, expected.final_state, strict=True))


@every_isa
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_no_number_stays_none_and_stays_in_its_row(cell: str, isa: str) -> None:
    call, _ = call_of(Case(cell, steps=6, batch=5, inputs=4, units=19), torch.float32, torch.float32)
    inputs = call.inputs.detach().clone()
    inputs[2, 1, 3], inputs[3, 4, 0] = float("nan"), float("inf")
    call = replace(call, inputs=inputs)
    expected = tt.kernels.run(call, "reference").outputs
    with native(isa, 2):
        outputs = tt.kernels.run(call, "native").outputs
    assert outputs[2, 1].isnan().any()
    assert torch.equal(outputs.isnan(), expected.isnan())
    torch.testing.assert_close(outputs, expected, equal_nan=True)


@every_isa
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("scale", [30.0, 1e4, 1e30])
def test_gates_that_are_wide_open_or_shut(cell: str, scale: float, isa: str) -> None:
    found = []
    for engine in ("native", "reference"):
        call, leaves = call_of(Case(cell, steps=3, batch=5, inputs=4, units=19), torch.float32, torch.float32)
        with torch.no_grad():
            call.inputs.mul_(scale)
        with native(isa, 2):
            unfolded = tt.kernels.run(call, engine)
            gradients = torch.autograd.grad(unfolded.outputs.sum(), list(leaves.values()))
        found.append([unfolded.outputs, *unfolded.final_state, *gradients])
    # A gate that is all open or shut is so to some roundings, by which the slope there is not quite zero.
    slope = 64 * torch.finfo(torch.float32).eps
    for got, right in zip(*found, strict=True):
        torch.testing.assert_close(got, right, rtol=2e-5, atol=slope * scale)
    if cell in ("rnn", "lstm", "lstm with peepholes", "gru", "gru reset before"):
        assert largest(found[0][0]) <= max(1.0, largest(call.state[0]))
