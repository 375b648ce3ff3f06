"""What a cell's step computes, found by running it on two small rows and noting every operation.

Nothing of the step is guessed: what is noted are the calls that PyTorch itself makes (its `aten` operators). Tensors
that depend on parameters alone are `fixed`: their operations, whatever they are, are done once a call, not once a step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from throughtime.kernels.modes import EagerMode

# Rows of the example. Two, so that what is one row's alone can be told from what is not.
ROWS = 2

_READS = {"_local_scalar_dense", "is_nonzero", "item", "equal", "allclose"}
PRODUCTS = {"mm", "addmm", "linear"}


class Untraceable(Exception):
    """Why a step is not "projections, then pointwise"; it becomes the engine's refusal."""


@dataclass(frozen=True)
class Ref:
    """A node as an argument of another."""

    node: int


@dataclass(frozen=True)
class Node:
    """One tensor of the step.

    `function` is an operator's name, or "projected", "state", "parameter" (then `arguments` say which one).
    """

    function: str
    overload: Any
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    output: int | None  # which of several tensors that the operator returns
    shape: tuple[int, ...]
    dtype: torch.dtype
    fixed: bool  # the same for all rows and steps
    detached: bool  # computed where gradients are off
    runs: tuple[tuple[int, int], ...] | None = None  # of a rearrangement: first element and length, see `_runs`


@dataclass(frozen=True)
class Trace:
    """A step as nodes, sources first; equal traces are the same computation. No tensor is in it."""

    nodes: tuple[Node, ...]
    results: tuple[int, ...]  # the fields of the new state
    sizes: tuple[int, ...]
    projected_size: int
    dtype: torch.dtype


def signature(cell: Any, projected: Tensor, state: Any) -> tuple[Any, ...] | None:
    """What identifies the step as it is now: the same for two that have the same trace. None where the step fails.

    A step is run for this at each call, as attributes, and what depends on them, may have changed since the last; so
    this is `trace` in short.

    Raises:
        Untraceable: the step changes its cell.
    """
    with apart(cell):
        examples = _examples(projected, state)
        listener = _Listener(_names(cell), examples)
        try:
            with listener:
                after = cell.step(examples[0], type(state)(*examples[1:]))
        except Exception:  # `trace` says what it was
            return None
    shapes = tuple(example.shape[-1] for example in examples)
    results = tuple(map(listener.code, after)) if isinstance(after, tuple) else None
    return shapes, projected.dtype, tuple(listener.calls), results


def trace(cell: Any, projected: Tensor, state: Any) -> Trace:
    """The step of `cell` on rows such as those of `projected` (·, G) and of the state's fields (·, size).

    Raises:
        Untraceable: with the reason, when the step is not such as the native engine can run.
    """
    with apart(cell):
        examples = _examples(projected, state)
        recorder = _Recorder(_names(cell))
        recorder.leaf("projected", (), examples[0], fixed=False)
        for field, example in enumerate(examples[1:]):
            recorder.leaf("state", (field,), example, fixed=False)
        try:
            with recorder:
                after = cell.step(examples[0], type(state)(*examples[1:]))
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(f"step() fails on an example of {ROWS} rows: {type(error).__name__}: {error}") from error
    if not isinstance(after, tuple) or len(after) != len(state):
        raise Untraceable(f"step() returns {type(after).__name__}, not its State")
    results = []
    for result, example in zip(after, examples[1:], strict=True):
        if not isinstance(result, Tensor) or result.shape != example.shape or result.dtype != example.dtype:
            raise Untraceable("step() returns a state of another shape or type than it was given")
        results.append(recorder.number(result))
    sizes = tuple(f.shape[-1] for f in state)
    return Trace(tuple(recorder.nodes), tuple(results), sizes, projected.shape[-1], projected.dtype)


def _names(cell: Any) -> dict[int, str]:
    """The names of parameters and buffers by their identity."""
    return {id(tensor): name for name, tensor in (*cell.named_buffers(), *cell.named_parameters())}


def _examples(projected: Tensor, state: Any) -> list[Tensor]:
    """Two rows of `projected` and of each field."""
    sizes = (projected.shape[-1], *(field.shape[-1] for field in state))
    return [torch.linspace(-1, 1, ROWS * size, dtype=projected.dtype).view(ROWS, size) for size in sizes]


@contextmanager
def apart(cell: torch.nn.Module) -> Iterator[None]:
    """Whatever modes the caller is in, a step is run in none of them, and changes nothing.

    Raises:
        Untraceable: it does change its cell.
    """
    with _preserved(cell), torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield


@contextmanager
def _preserved(cell: torch.nn.Module) -> Iterator[None]:
    """Put back what running a step changes in a cell's attributes, and say that it does.

    Raises:
        Untraceable: something was changed: one step more than the user's would show.
    """
    before = [(m, dict(vars(m)), {k: list(v) for k, v in vars(m).items() if type(v) is list}) for m in cell.modules()]
    try:
        yield
    finally:
        changed = None
        for module, attributes, lists in before:
            now = vars(module)
            names = {n for n in now.keys() | attributes.keys() if now.get(n, cell) is not attributes.get(n, cell)}
            names |= {name for name, old in lists.items() if len(attributes[name]) != len(old)}
            for name in sorted(names):
                changed = name
                if name in attributes:
                    now[name] = attributes[name]
                else:
                    del now[name]
            for name, old in lists.items():
                attributes[name][:] = old
    if changed is not None:
        raise Untraceable(f"step() changes the cell's attribute {changed}")


class _Listener(EagerMode):
    """Notes which operations are called on what, and no more."""

    def __init__(self, named: dict[int, str], examples: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []
        self._named = named
        self._alive = list(examples)  # an id is a tensor's only as long as it lives
        self._numbers = {id(example): number for number, example in enumerate(examples)}
        self._moving = set(range(len(examples)))  # the numbers of what depends on rows
        self._moves = False  # whether such a tensor has been met among the arguments at hand

    def code(self, value: Any) -> Any:
        """An argument, a tensor being a number or a name in a tuple."""
        if isinstance(value, Tensor):
            number = self._numbers.get(id(value))
            self._moves = self._moves or number in self._moving
            return (self._named.get(id(value)),) if number is None else (number,)
        return tuple(map(self.code, value)) if isinstance(value, list | tuple) else value

    def __torch_dispatch__(self, overload: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._moves = False
        options = tuple((name, self.code(value)) for name, value in kwargs.items()) if kwargs else ()
        self.calls.append((overload, tuple(map(self.code, args)), options, torch.is_grad_enabled()))
        name, moves = overload._overloadpacket.__name__, self._moves
        result = _empty_product(name, args) if moves and name in PRODUCTS else overload(*args, **(kwargs or {}))
        for output in result if isinstance(result, list | tuple) else (result,):
            if isinstance(output, Tensor):
                if moves:
                    self._moving.add(len(self._alive))
                self._numbers[id(output)] = len(self._alive)
                self._alive.append(output)
        return result


class _Recorder(EagerMode):
    def __init__(self, named: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self._named = named
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is a tensor's only as long as it lives

    def leaf(self, function: str, arguments: tuple[Any, ...], tensor: Tensor, *, fixed: bool) -> int:
        shape = tuple(tensor.shape)
        return self._note(Node(function, None, arguments, (), None, shape, tensor.dtype, fixed, False), tensor)

    def number(self, tensor: Tensor) -> int:
        known = self._numbers.get(id(tensor))
        if known is not None:
            return known
        name = self._named.get(id(tensor))
        if name is None:
            raise Untraceable("step() uses a tensor that is neither a parameter nor a buffer of the cell")
        return self.leaf("parameter", (name,), tensor, fixed=True)

    def _note(self, node: Node, tensor: Tensor) -> int:
        self.nodes.append(node)
        self._alive.append(tensor)
        self._numbers[id(tensor)] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def __torch_dispatch__(self, overload: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = overload._overloadpacket.__name__
        encoded, keywords = tree_map(self._encode, (args, kwargs))
        refs = [leaf for leaf in tree_leaves((encoded, keywords)) if isinstance(leaf, Ref)]
        fixed = all(self.nodes[ref.node].fixed for ref in refs)
        if torch.Tag.nondeterministic_seeded in overload.tags:
            raise Untraceable(f"step() draws random numbers ({name})")
        if overload._schema.is_mutable:
            raise Untraceable(f"step() changes a tensor in place ({name}); the same without the underscore is taken")
        if name in _READS and not fixed:
            raise Untraceable("step() reads a number out of a tensor that depends on the state or the input")
        result = _empty_product(name, args) if name in PRODUCTS and not fixed else overload(*args, **kwargs)
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        runs = None
        if not fixed and name in _REARRANGEMENTS:
            if any(self.nodes[ref.node].fixed for ref in refs):
                raise Untraceable(f"step() calls {name.strip('_')} on rows and on a parameter")
            shapes = {ref.node: self.nodes[ref.node].shape for ref in refs}
            runs = _runs(overload, _frozen(encoded), tuple(_frozen(keywords).items()), tuple(shapes.items()))
        for i, output in enumerate(outputs):
            if isinstance(output, Tensor):
                several = i if isinstance(result, tuple | list) else None
                node = Node(
                    name, overload, _frozen(encoded), tuple(sorted(_frozen(keywords).items())), several,
                    tuple(output.shape), output.dtype, fixed, not torch.is_grad_enabled() or name == "detach",
                    None if runs is None else runs[i],
                )  # fmt: skip
                self._note(node, output)
        return result

    def _encode(self, value: Any) -> Any:
        return Ref(self.number(value)) if isinstance(value, Tensor) else value


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that nodes can be compared and hashed."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    return {k: _frozen(v) for k, v in value.items()} if isinstance(value, dict) else value


def _empty_product(name: str, args: Any) -> Tensor:
    """A product's shape only: the example's values do not matter, and the weights may be large."""
    operand, weight = (args[1], args[2]) if name == "addmm" else (args[0], args[1])
    width = weight.shape[0] if name == "linear" else weight.shape[-1]
    empty: Tensor = operand.new_zeros(*operand.shape[:-1], width)
    return empty


_STRIDE = 1 << 40  # from row to row in the elements' numbers
_REARRANGEMENTS = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "slice", "select", "split", "split_with_sizes", "unbind",
    "unsqueeze", "squeeze", "expand", "permute", "transpose", "cat", "stack", "narrow", "clone", "alias", "detach",
    "contiguous", "repeat", "flip", "roll", "as_strided", "chunk", "lift_fresh",
}  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _runs(
    overload: Any, arguments: Any, keywords: Any, shapes: tuple[tuple[int, tuple[int, ...]], ...]
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For an operation that only moves elements about: where the elements of a row come from, as runs of neighbours.

    The operation is run on the elements' own numbers. Those of the first source's row are counted from zero, those of
    the second go on from there.

    Raises:
        Untraceable: rows do not stay apart.
    """
    name = overload._overloadpacket.__name__.strip("_")
    known = dict(shapes)
    begin = 0

    def numbers(value: Any) -> Any:
        nonlocal begin
        if isinstance(value, Ref):
            width = row_width(known[value.node])
            found = torch.arange(begin, begin + width) + _STRIDE * torch.arange(ROWS)[:, None]
            begin += width
            return found.view(known[value.node])
        return [numbers(v) for v in value] if isinstance(value, tuple) else value

    result = overload(*numbers(arguments), **{key: numbers(value) for key, value in keywords})
    found = []
    for output in result if isinstance(result, tuple | list) else [result]:
        if output.dim() < 2 or output.shape[0] != ROWS:
            raise Untraceable(f"step() calls {name}, and what were rows (B, units) are none any more")
        rows = output.reshape(ROWS, -1)
        if not torch.equal(rows[0] + _STRIDE, rows[1]):
            raise Untraceable(f"step() calls {name} across rows")
        cuts = [0, *(torch.diff(rows[0]) != 1).nonzero().flatten().add(1).tolist(), rows.shape[1]]
        firsts = rows[0][cuts[:-1]].tolist()
        found.append(tuple(zip(firsts, (b - a for a, b in pairwise(cuts)), strict=True)))
    return tuple(found)


def row_width(shape: tuple[int, ...]) -> int:
    """How many elements one row has."""
    width = 1
    for size in shape[1:]:
        width *= size
    return width


def replay(nodes: tuple[Node, ...], wanted: list[int], tensors: dict[str, Tensor]) -> dict[int, Tensor]:
    """The values of fixed nodes, from parameters and buffers by name, differentiably."""
    found: dict[int, Any] = {}

    def value(number: int) -> Any:
        if number not in found:
            node = nodes[number]
            if node.function == "parameter":
                found[number] = tensors[node.arguments[0]]
            else:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not node.detached):
                    result = node.overload(*_thawed(node.arguments), **dict(_thawed(node.keywords)))
                found[number] = result if node.output is None else result[node.output]
        return found[number]

    def _thawed(given: Any) -> Any:
        if isinstance(given, Ref):
            return value(given.node)
        return [_thawed(v) for v in given] if isinstance(given, tuple) else given

    return {number: value(number) for number in wanted}
