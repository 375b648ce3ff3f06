"""Cells of the user's own on the native engine."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from throughtime.errors import EngineError
from throughtime.kernels.native import library
from throughtime.kernels.native.custom.expressions import Value, evaluate
from throughtime.kernels.native.custom.linear import FORMATS, NativeLinear, linear
from throughtime.kernels.native.custom.planning import Plan, plan
from throughtime.kernels.native.custom.tracing import Untraceable, apart, replay, signature, trace
from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.twice import differentiable_twice

# Multiplications of one step for all its rows below which more threads cost more than they bring.
_SMALL = 1 << 16


def refusal(call: Recurrence) -> str | None:
    """Why the native engine does not run this cell; None where it does."""
    if torch.compiler.is_compiling():
        return "the native engine cannot trace a cell of one's own under torch.compile"
    if call.recurrent_mask is not None or call.zoneout is not None:
        return "the native engine has no recurrent dropout and no zoneout for a cell of one's own"
    if torch.is_autocast_enabled("cpu"):
        return "the native engine has no autocast for a cell of one's own"
    if any(tensor.dtype not in FORMATS for tensor in (call.inputs, *call.state)):
        return f"the native engine runs a cell of one's own in float32 and float64, not in {call.inputs.dtype}"
    if len({tensor.dtype for tensor in (call.inputs, *call.state)}) > 1:
        return "the native engine runs a cell of one's own in one type; inputs and state differ"
    if not call.inputs.shape[0] or not call.inputs.shape[1]:
        return "the native engine runs a cell of one's own over one step and one sequence at least"
    try:
        _latest.call = None
        _latest.plan = _planned(call.cell, _projected_like(call.cell, call.inputs), call.state)
        _latest.call = weakref.ref(call)
    except Untraceable as reason:
        return f"the native engine runs projections, then pointwise: {reason}"
    return None


def run(call: Recurrence) -> Unfolded:
    """Run the cell; the call has not been refused."""
    cell: Any = call.cell
    inputs = call.inputs
    if call.lengths is not None:
        # What stands in the padding must not matter, not even through 0 · nan in the backward pass.
        running = torch.arange(len(inputs), device=inputs.device)[:, None] < call.lengths  # (T, B)
        inputs = torch.where(running[..., None], inputs, 0)
    with NativeLinear():
        projected = cell.project_inputs(inputs)  # (T, B, G)
    planned = _plan_of(call, projected)
    named = dict((*cell.named_buffers(), *cell.named_parameters()))
    fixed = replay(planned.trace.nodes, planned.fixed_nodes, named)
    step = _Step(planned, _weights(planned, fixed))
    traced = Recurrence(
        step, _loop_inputs(planned, projected, fixed), call.state, call.lengths, call.resets, call.reverse,
        record=call.record,
    )  # fmt: skip
    return differentiable_twice(traced, _run)


# -- plans -------------------------------------------------------------------------------------------------------------

_widths: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
# By class of cell and by what its step does: the plan, or why there is none. No tensor is in it.
_plans: WeakKeyDictionary[type, dict[Any, Plan | str]] = WeakKeyDictionary()
_MOST_PLANS = 64  # of a class: a step may do something else each time
_latest = threading.local()  # the call that has been planned last, so that running it need not plan it again


def _plan_of(call: Recurrence, projected: Tensor) -> Plan:
    """The plan that `refusal` has made of this very call, and its like for any other."""
    latest = getattr(_latest, "call", None)
    if latest is not None and latest() is call and _latest.plan.trace.projected_size == projected.shape[-1]:
        made: Plan = _latest.plan
        return made
    return _planned(call.cell, projected, call.state)


def _projected_like(cell: Any, inputs: Tensor) -> Tensor:
    """A tensor as wide as what the cell projects its inputs to, learnt from one step of one sequence.

    Raises:
        Untraceable: it does not project these.
    """
    if cell not in _widths:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                _widths[cell] = cell.project_inputs(inputs[:1, :1]).shape[-1]
        except Exception as error:
            raise Untraceable(f"project_inputs() fails on one step: {type(error).__name__}: {error}") from error
    return inputs.new_empty(_widths[cell])


def _planned(cell: Any, projected: Tensor, state: Any) -> Plan:
    """The plan of the cell as it is now; plans are kept.

    Raises:
        Untraceable: it is not such as the native engine runs.
    """
    known = _plans.setdefault(type(cell), {})
    key = signature(cell, projected, state)
    found = known.get(key)
    if found is None:
        try:
            found = plan(trace(cell, projected, state))
            _verify(found, cell, projected.shape[-1])
        except Untraceable as reason:
            found = str(reason)
        if key is not None:
            if len(known) >= _MOST_PLANS:
                known.clear()
            known[key] = found
    if isinstance(found, str):
        raise Untraceable(found)
    return found


def _verify(planned: Plan, cell: Any, width: int) -> None:
    """Compare the traced step with the cell's own, results and gradients, on three rows of other values.

    What a trace does not see shows here: gradients of the user's own making, values that have gone through NumPy.

    Raises:
        Untraceable: they differ.
    """
    dtype = planned.trace.dtype
    rows, sizes = 3, (width, *planned.trace.sizes)
    with apart(cell):
        wide = [torch.linspace(0.9, -0.8, rows * size, dtype=dtype).view(rows, size) for size in sizes]
        named = dict((*cell.named_buffers(), *cell.named_parameters()))
        leaves = [tensor.requires_grad_() for tensor in wide] + [p for p in cell.parameters() if p.requires_grad]
        fixed = replay(planned.trace.nodes, planned.fixed_nodes, named)
        step = _Step(planned, _weights(planned, fixed))
        own = cell.step(wide[0], cell.State(*wide[1:]))
        ours, _ = step.advance(_loop_inputs(planned, wide[0], fixed), cell.State(*wide[1:]), None)
        compared = list(zip(own, ours, strict=True))
        compared += list(zip(_gradients(own, leaves), _gradients(ours, leaves), strict=True))
    scale = 1e-3 if dtype == torch.float32 else 1e-9
    for a, b in compared:
        if not torch.allclose(a, b, rtol=scale, atol=scale * (1 + float(a.detach().abs().max())), equal_nan=True):
            raise Untraceable("step() does more than PyTorch's operations show, or has gradients of its own")


def _gradients(fields: Any, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum in which every element counts otherwise; zeros where nothing flows."""
    total = torch.cat([field * field + field for field in fields], 1).sum()
    if not total.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(total, leaves, materialize_grads=True)


# -- what a call's parameters make -------------------------------------------------------------------------------------


class _Weights(tuple[Tensor, ...]):
    """What the traced step is given besides inputs and state: its vectors, one after another, and each product's W."""

    __slots__ = ()

    def __new__(cls, *tensors: Tensor) -> _Weights:
        return super().__new__(cls, tensors)


def _rows(weight: Tensor, rows: Any, ranges: Any) -> list[Tensor]:
    """Ranges (begin, length) of a weight's rows (outputs, inputs), with the columns that `rows` names."""
    whole = weight.mT if rows.transposed else weight
    parts = [whole if length == len(whole) else whole[begin : begin + length] for begin, length in ranges]
    if rows.columns == ((0, whole.shape[1]),):
        return parts
    return [torch.cat([part[:, begin : begin + length] for begin, length in rows.columns], 1) for part in parts]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weights(planned: Plan, fixed: dict[int, Tensor]) -> _Weights:
    vectors = [_vector(v, fixed) for v in planned.vectors]
    like = next(iter(fixed.values()), torch.empty(0, dtype=planned.trace.dtype))
    weights = []
    for product in planned.products:
        parts: list[Tensor] = []
        gates = list(product.gates)
        while gates:
            first = gates.pop(0).detail
            length = first.length
            while gates and (n := gates[0].detail) == replace(first, begin=first.begin + length, length=n.length):
                length += n.length
                gates.pop(0)
            parts += _rows(fixed[first.node], first, [(first.begin, length)])
        weights.append(_joined(parts))
    return _Weights(_joined(vectors) if vectors else like.new_empty(0, dtype=planned.trace.dtype), *weights)


def _vector(value: Value, fixed: dict[int, Tensor]) -> Tensor:
    """A parameter's elements, spread over a row and cut out of it."""
    detail = value.detail
    tensor = fixed[detail.node]
    if tensor.dim() > len(detail.row_shape):
        tensor = tensor[0]
    row = tensor.expand(detail.row_shape).reshape(-1)
    return row[detail.begin : detail.begin + value.width]


def _loop_inputs(planned: Plan, projected: Tensor, fixed: dict[int, Tensor]) -> Tensor:
    """What the loop reads of x, (..., G): `projected`, and products of it that no state goes into."""

    def leaf(value: Value) -> Tensor:
        if value.operation == "projected":
            return projected[..., value.detail : value.detail + value.width]
        return _vector(value, fixed)

    parts = [projected] if planned.takes_projected else []
    for part in planned.hoisted:
        # A number, of an operand that is constant, spreads over the operand's width.
        found = zip(part.operands, evaluate(list(part.operands), leaf, projected), strict=True)
        values = [value.expand(*projected.shape[:-1], operand.width) for operand, value in found]
        operand = values[0] if len(values) == 1 else torch.cat(values, -1)
        parts.append(linear(operand, _joined(_rows(fixed[part.rows.node], part.rows, part.ranges))))
    if not parts:
        return projected[..., :0]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


@dataclass(frozen=True)
class _Step:
    """The traced step in plain torch, as the reference engine takes it: for second derivatives, and to be compared."""

    family: ClassVar[str] = "traced"
    plan: Plan
    weights: _Weights

    def project_inputs(self, inputs: Tensor) -> Tensor:
        """The loop's inputs have been made already."""
        return inputs

    def advance(
        self, projected: Tensor, state: Any, recurrent_mask: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The next state; there are no gates."""
        planned = self.plan
        vectors, *weights = self.weights
        rows = {g.number: (q, i) for q, p in enumerate(planned.products) for i, g in enumerate(p.gates)}

        def leaf(value: Value) -> Tensor:
            if value.operation == "state":
                field: Tensor = state[value.detail]
                return field
            if value.operation == "gate":
                q, gate = rows[value.number]
                return weights[q][gate * value.width : (gate + 1) * value.width]
            source, columns = (vectors, planned.vector_offsets) if value.operation == "fixed" else (
                projected, planned.columns
            )  # fmt: skip
            begin = columns[value.number]
            return source[..., begin : begin + value.width]

        fields = evaluate(list(planned.fields), leaf, projected)
        return type(state)(*(v.expand_as(old) for v, old in zip(fields, state, strict=True))), ()


# -- the native call ---------------------------------------------------------------------------------------------------


def _run(call: Recurrence) -> Unfolded:
    step: Any = call.cell
    fields = len(call.state)
    results = _Native.apply(call, *call.state, call.inputs, *step.weights)  # type: ignore[no-untyped-call]
    state: Any = type(call.state)
    last, histories = results[:fields], results[fields:]
    return Unfolded(histories[0], state(*last), *((state(*histories), ()) if call.record else ()))


class _Native(torch.autograd.Function):
    """The loop: the state's fields after the last step, and the first field, or all with `record`, after each."""

    @staticmethod
    def forward(ctx: Any, call: Recurrence, *tensors: Tensor) -> tuple[Tensor, ...]:
        step: Any = call.cell
        planned: Plan = step.plan
        keep = any(ctx.needs_input_grad)
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        steps, batch, _ = call.inputs.shape
        sizes = planned.trace.sizes
        new = call.inputs.new_zeros if call.lengths is not None else call.inputs.new_empty
        kept = len(sizes) if keep or call.record else 1
        histories = [new(steps, batch, size) for size in sizes[:kept]]
        last = [call.inputs.new_empty(batch, size) for size in sizes]
        saved = [call.inputs.new_empty(steps, batch, planned.training["saved"])] if keep else []
        ctx.options = (planned, steps, batch, call.reverse)
        ctx.save_for_backward(call.lengths, call.resets, *tensors, *histories, *saved)
        ctx.set_materialize_grads(False)
        addresses = dict(_named(ctx.options, (call.lengths, call.resets, *tensors, *histories, *saved)))
        addresses |= {f"last{f}": tensor for f, tensor in enumerate(last)}
        _call("forward", ctx.options, addresses, training=keep)
        return (*last, *histories[: len(sizes) if call.record else 1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise EngineError("the native engine's gradient of a cell of one's own cannot be differentiated again")
        planned, steps, batch, _ = ctx.options
        fields = len(planned.trace.sizes)
        named = dict(_named(ctx.options, ctx.saved_tensors))
        inputs, vectors = named["inputs"], named["vectors"]
        for f, gradient in enumerate(gradients):
            if gradient is not None:
                named[f"d_last{f}" if f < fields else f"d_after{f - fields}"] = gradient.contiguous()
        zero_behind = not planned.covered or named.get("lengths") is not None
        named["d_inputs"] = inputs.new_zeros(inputs.shape) if zero_behind else inputs.new_empty(inputs.shape)
        named["rows"] = inputs.new_empty(steps, batch, planned.training["rows"])
        first = range(1, 1 + fields)
        for f in first:
            if ctx.needs_input_grad[f]:
                named[f"d_first{f - 1}"] = inputs.new_empty(named[f"first{f - 1}"].shape)
        if ctx.needs_input_grad[fields + 2]:
            named["d_vectors"] = vectors.new_zeros(vectors.shape)
        for q in range(len(planned.products)):
            if ctx.needs_input_grad[fields + 3 + q]:
                named[f"d_weight{q}"] = inputs.new_empty(named[f"weight{q}"].shape)
        _call("backward", ctx.options, named, training=True)
        return (
            None,
            *(named.get(f"d_first{f - 1}") for f in first),
            named["d_inputs"] if ctx.needs_input_grad[fields + 1] else None,
            named.get("d_vectors"),
            *(named.get(f"d_weight{q}") for q in range(len(planned.products))),
        )


def _named(options: Any, tensors: Any) -> Iterator[tuple[str, Tensor]]:
    """The saved tensors under the names that the native code knows them by, without those that are None."""
    planned: Plan = options[0]
    fields, products = len(planned.trace.sizes), len(planned.products)
    names = ["lengths", "resets", *(f"first{f}" for f in range(fields)), "inputs", "vectors"]
    names += [f"weight{q}" for q in range(products)]
    rest = tensors[len(names) :]
    names += [f"after{f}" for f in range(min(len(rest), fields))]
    names += ["saved"] if len(rest) > fields else []
    return ((name, t) for name, t in zip(names, tensors, strict=True) if t is not None)


def _call(function: str, options: Any, tensors: dict[str, Tensor], *, training: bool) -> None:
    """Hand the addresses over. `tensors` keeps alive what they point to."""
    planned, steps, batch, reverse = options
    module = library.load()
    work = batch * sum(product.depth * product.units * len(product.gates) for product in planned.products)
    threads = 1 if work < _SMALL else torch.get_num_threads()
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    addresses = {name: tensor.data_ptr() for name, tensor in whole.items()}
    key = (module.__name__, training)
    if key not in planned.native:
        planned.native[key] = module.Plan(planned.training if training else planned.forward)
    run_native = getattr(module, f"custom_{function}")
    run_native(planned.native[key], FORMATS[planned.trace.dtype], steps, batch, reverse, addresses, threads)
