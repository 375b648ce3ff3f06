"""Native layers in graphs: torch.compile and torch.export. A program that test_graphs.py runs.

The checks of shapes and types that tests put on every function cannot be traced: here are none. It prints a JSON
object: group, case, and what went wrong, or null.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import throughtime as tt
from throughtime.kernels.native.translation import arguments_of

T, B, I, H = 5, 3, 2, 4  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
RAGGED = torch.tensor([2, 0, T])
RESETS = torch.arange(T * B).reshape(T, B) % 4 == 1
# For the layer, and for its call.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "two layers, both directions": ({"num_layers": 2, "bidirectional": True}, {}),
    "batch first, a list of lengths": ({"batch_first": True}, {"lengths": [2, 1, 0, 2, 3]}),
    "lengths": ({"bidirectional": True}, {"lengths": RAGGED}),
    "resets": ({}, {"resets": RESETS}),
    "states": ({}, {"return_states": "all"}),
    "zoneout": ({"zoneout": 0.3}, {}),
}
# Calls whose way into a graph is the same for each kind of layer, and the one it is tested with.
ONE_LAYER = {
    "batch first, a list of lengths": ["RNN"],
    "resets": ["GRU"],
    "states": ["LSTM"],
    "zoneout": ["GRU"],
}
Case = tuple[str, Callable[[], None]]


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(2)
    return getattr(tt.nn, name)(I, H, **options)


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), generator=torch.Generator().manual_seed(4))


def compiled(run: Any, **options: Any) -> Any:
    return torch.compile(run, fullgraph=True, **{"backend": "aot_eager", **options})


def everything(layer: Any, run: Any, x: Tensor, **arguments: Any) -> list[Tensor]:
    """Outputs, final state, states, and the gradients of a loss that takes all of them."""
    x = x.clone().requires_grad_()
    results = [leaf for leaf in pytree.tree_leaves(run(x, **arguments)) if leaf is not None]
    loss = sum((result.float() * data(*result.shape)).sum() for result in results)
    return [*results, *torch.autograd.grad(loss, [x, *layer.parameters()])]


def same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(a, b), f"result {k} differs by up to {(a - b).abs().max()}"


def count_native(graph: torch.fx.Graph) -> int:
    """How often the graph holds the native operator."""
    native = torch.ops.throughtime.recurrence
    return sum(node.target in (native, native.default) for node in graph.nodes)


# -- the groups --------------------------------------------------------------------------------------------------------


def compiled_into_one_graph() -> Iterator[Case]:
    def check(name: str, options: Any, arguments: Any) -> None:
        layer = made(name, **options).eval()
        counts: list[int] = []

        def backend(module: torch.fx.GraphModule, example: Any) -> Any:
            counts.append(count_native(module.graph))
            return torch._dynamo.backends.debugging.aot_eager(module, example)

        run = torch.compile(layer, fullgraph=True, backend=backend)
        same(everything(layer, run, data(), **arguments), everything(layer, layer, data(), **arguments))
        assert counts == [layer.num_layers * layer.directions], counts

    for call, (options, arguments) in CALLS.items():
        for name in ONE_LAYER.get(call, LAYERS):
            yield f"{name} {call}", lambda n=name, o=options, a=arguments: check(n, o, a)


def compiled_to_machine_code() -> Iterator[Case]:
    def check() -> None:
        layer, readout = made("LSTM", batch_first=True), nn.Linear(H, 3)

        def loss(x: Tensor, lengths: Tensor) -> Tensor:
            outputs, _ = layer(torch.tanh(x), lengths=lengths)
            return readout(outputs).square().mean()

        found = []
        for run in (loss, compiled(loss, backend="inductor")):
            x = data(B, T, I).requires_grad_()
            found.append(torch.autograd.grad(run(x, RAGGED), [x, *layer.parameters()]))
        torch.testing.assert_close(*found)

    yield "LSTM with a readout", check


def one_graph_for_all_sizes() -> Iterator[Case]:
    def check(name: str) -> None:
        layer = made(name)
        run = compiled(layer, dynamic=True)
        for steps, batch in ((5, 3), (7, 2), (4, 9)):
            x, lengths = data(steps, batch, I), torch.arange(batch) % (steps + 1)
            same(everything(layer, run, x, lengths=lengths), everything(layer, layer, x, lengths=lengths))

    for name in LAYERS:
        yield name, lambda n=name: check(n)


def lengths_are_checked_when_it_runs() -> Iterator[Case]:
    def check(wrong: int) -> None:
        run = compiled(made("LSTM"))
        run(data(), lengths=RAGGED)
        with pytest.raises(RuntimeError, match=r"^LSTM: lengths must lie in 0\.\.T, the time steps of the inputs$"):
            run(data(), lengths=torch.tensor([2, wrong, T]))

    yield "too long", lambda: check(T + 1)
    yield "negative", lambda: check(-1)


def autocast() -> Iterator[Case]:
    def check(name: str) -> None:
        layer = made(name)
        run = compiled(layer)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = everything(layer, layer, data())
            same(everything(layer, run, data()), rounded)
        assert not torch.equal(rounded[0], layer(data())[0])

    for name in LAYERS:
        yield name, lambda n=name: check(n)


def random_masks() -> Iterator[Case]:
    def check(name: str) -> None:
        layer = made(name, recurrent_dropout=0.5, zoneout=0.3, weight_dropout=0.2, variational_dropout=0.2)
        run = compiled(layer)
        found = []
        for one in (layer, run, run):
            torch.manual_seed(1)
            found.append(everything(layer, one, data()))
        same(found[1], found[0])
        same(found[2], found[1])
        assert not torch.equal(run(data())[0], found[0][0])

    for name in LAYERS:
        yield name, lambda n=name: check(n)


def exported() -> Iterator[Case]:
    """With any number of steps and sequences, saved and loaded."""

    def check(name: str, strict: bool, ragged: bool) -> None:
        layer = made(name, batch_first=True, num_layers=2, bidirectional=True).eval()
        steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
        shapes: dict[str, Any] = {"inputs": {0: batch, 1: steps}}
        arguments: dict[str, Any] = {}
        if ragged:
            shapes["lengths"] = {0: batch}
            arguments["lengths"] = RAGGED
        program = torch.export.export(layer, (data(B, T, I),), kwargs=arguments, dynamic_shapes=shapes, strict=strict)
        assert count_native(program.graph) == 4
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        x = data(2, 9, I)
        arguments = {"lengths": torch.tensor([0, 9])} if ragged else {}
        for one in (program, torch.export.load(file)):
            same(pytree.tree_leaves(one.module()(x, **arguments)), pytree.tree_leaves(layer(x, **arguments)))

    strictly = [("LSTM", True, True)]  # as torch.compile traces, which is tested with every layer above
    for name, strict, ragged in [*itertools.product(LAYERS, [False], (False, True)), *strictly]:
        label = f"{name}{' strictly' if strict else ''}{' with lengths' if ragged else ''}"
        yield label, lambda n=name, s=strict, r=ragged: check(n, s, r)


def the_operator_itself() -> Iterator[Case]:
    """For changing sizes."""

    def check(name: str, ragged: bool) -> None:
        call = next(iter(made(name).recurrences(data(), lengths=RAGGED if ragged else None)))[1]
        arguments = arguments_of(call)
        leaves = {n: v.detach().clone().requires_grad_() for n, v in arguments._asdict().items() if _differentiable(v)}
        torch.library.opcheck(
            torch.ops.throughtime.recurrence.default,
            (*arguments._replace(**leaves), True),
            test_utils=["test_aot_dispatch_dynamic"],
        )

    for name, ragged in itertools.product(LAYERS, (False, True)):
        yield f"{name}{' with lengths' if ragged else ''}", lambda n=name, r=ragged: check(n, r)


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


GROUPS = [
    compiled_into_one_graph,
    compiled_to_machine_code,
    one_graph_for_all_sizes,
    lengths_are_checked_when_it_runs,
    autocast,
    random_masks,
    exported,
    the_operator_itself,
]


def main(names: list[str]) -> None:
    """Run the groups of those names."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)  # PyTorch's own, of its compiler
    found: dict[str, dict[str, str | None]] = {}
    for group in GROUPS:
        if group.__name__ not in names:
            continue
        cases = found[group.__name__] = {}
        for label, check in group():
            torch._dynamo.reset()
            try:
                check()
                cases[label] = None
            except Exception:
                cases[label] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
