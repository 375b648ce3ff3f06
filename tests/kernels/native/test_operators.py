"""The native operators among PyTorch's tools: autocast, checkpoints, hooks, several processes; and what is refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import throughtime as tt
from throughtime.errors import EngineError
from throughtime.kernels.native import library, memory, operators
from throughtime.kernels.native.translation import arguments_of

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

T, B, I, H = 5, 3, 2, 4  # noqa: E741
LAYERS = ["RNN", "LSTM", "GRU"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "rnn relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm with peepholes": ("LSTM", {"peepholes": True}),
    "lstm projected": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
    "gru reset before": ("GRU", {"reset_after": False}),
}


def made(kind: str, dtype: torch.dtype = torch.float32, engine: str = "native", **options: Any) -> Any:
    torch.manual_seed(2)
    name, own = KINDS.get(kind, (kind, {}))
    return getattr(tt.nn, name)(I, H, engine=engine, dtype=dtype, **own, **options)


def data(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), generator=torch.Generator().manual_seed(4)).to(dtype)


def everything(layer: Any, run: Any, x: Tensor, **arguments: Any) -> list[Tensor]:
    """Outputs, final state, and the gradients of a loss that takes all of them."""
    x = x.clone().requires_grad_()
    outputs, final, *_ = run(x, **arguments)
    results = [outputs, *([final] if isinstance(final, Tensor) else final)]
    loss = sum((result.float() * data(*result.shape)).sum() for result in results)
    return [*results, *torch.autograd.grad(loss, [x, *layer.parameters()])]


# -- the operators themselves ------------------------------------------------------------------------------------------


def operands(kind: str, how: str) -> list[Any]:
    """What the forward operator is called with, all that is differentiable asking for a gradient."""
    layer = made(kind, num_layers=1)
    options: dict[str, Any] = {}
    if how == "ragged, backwards":
        options = {"lengths": torch.tensor([2, 0, T])}
    elif how == "masked":
        options = {"resets": torch.arange(T * B).reshape(T, B) % 4 == 1}
    (_, call), *_ = layer.recurrences(data(), **options)
    if how == "masked":
        sizes = [field.shape[1] for field in call.state]
        call = replace(call, recurrent_mask=data(B, sizes[0]), zoneout=[data(T, B, size).abs() for size in sizes])
    arguments = arguments_of(replace(call, reverse=how == "ragged, backwards"))
    leaves = {
        name: getattr(arguments, name).detach().clone().requires_grad_()
        for name in operators.DIFFERENTIABLE
        if getattr(arguments, name) is not None
    }
    return list(arguments._replace(**leaves))


HOW = ["plain", "ragged, backwards", "masked"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_is_what_pytorch_expects_of_one(kind: str, how: str) -> None:
    # Its graphs for changing sizes: see test_graphs.py.
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"]
    torch.library.opcheck(torch.ops.throughtime.recurrence.default, (*operands(kind, how), True), test_utils=checks)
    torch.library.opcheck(
        torch.ops.throughtime.recurrence.default, (*operands(kind, how), False), test_utils=["test_schema"]
    )


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_so_is_the_operator_of_its_gradient(kind: str, how: str) -> None:
    given = [value.detach() if isinstance(value, Tensor) else value for value in operands(kind, how)]
    outputs, h_last, c_last, saved, cells = torch.ops.throughtime.recurrence(*given, True)
    incoming = [data(*result.shape) if result.numel() else None for result in (outputs, h_last, c_last, saved, cells)]
    wanted = [True] * len(operators.DIFFERENTIABLE)
    for asked in (wanted, [not flag for flag in wanted], [k % 2 == 0 for k in range(len(wanted))]):
        torch.library.opcheck(
            torch.ops.throughtime.recurrence_backward.default,
            (*given, outputs, saved, cells, *incoming, asked),
            test_utils=["test_schema", "test_faketensor"],
        )


def test_a_second_derivative_of_the_bare_operator_is_refused() -> None:
    given = operands("lstm", "plain")
    outputs = torch.ops.throughtime.recurrence(*given, True)[0]
    weights = [value for value in given if isinstance(value, Tensor)]
    with pytest.raises(
        EngineError, match=r"recurrence: its gradient cannot be differentiated again; tt\.nn layers and"
    ):
        torch.autograd.grad(outputs.sum(), weights, create_graph=True, allow_unused=True)


@pytest.mark.parametrize("lengths", [None, [2, 0, T]])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(kind: str, lengths: Any) -> None:
    layer = made(kind, torch.float64, bidirectional=lengths is not None)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        outputs, final, states = torch.func.functional_call(
            layer, dict(zip(names, weights, strict=True)), (x,), {"lengths": lengths, "return_states": "all"}
        )
        recorded = [gate for layer_states in states for one in layer_states for gate in one.gates]
        results = [outputs, *([final] if isinstance(final, Tensor) else final), *recorded]
        return torch.cat([result.flatten() for result in results])

    given = [data(dtype=torch.float64), *(w.detach() for w in layer.parameters())]
    given = [value.requires_grad_() for value in given]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    if lengths is None:  # seconds each
        assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    layer = made("LSTM", num_layers=2, bidirectional=True)
    real = layer(data(), lengths=torch.tensor([2, 5, 1]), return_states="all")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = layer(mode.from_tensor(data()), return_states="all")
    flat = [torch.utils._pytree.tree_leaves(results) for results in (real, fake)]
    for a, b in zip(*flat, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


# -- modes and tools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_decides_the_products_and_nothing_else(name: str) -> None:
    layer = made(name)
    plain = everything(layer, layer, data())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = everything(layer, layer, data())
        of_half_inputs = layer(data().bfloat16())[0]
    assert {result.dtype for result in rounded} == {torch.float32}, "states and gradients are not float32"
    assert of_half_inputs.dtype == torch.float32
    assert not torch.equal(rounded[0], plain[0])
    # The CPU's autocast to float16 has no instruction to go with it here: float32 it stays.
    with torch.autocast("cpu", torch.float16):
        for a, b in zip(everything(layer, layer, data()), plain, strict=True):
            assert torch.equal(a, b)
    with torch.autocast("cpu", enabled=False):
        for a, b in zip(everything(layer, layer, data()), plain, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_results_are_of_the_modules_type(name: str, dtype: torch.dtype) -> None:
    layer = made(name, dtype)
    results = everything(layer, layer, data(dtype=dtype))
    assert {result.dtype for result in results} == {dtype}
    states = layer(data(dtype=dtype), return_states="all")[2]
    assert {leaf.dtype for leaf in torch.utils._pytree.tree_leaves(states) if leaf is not None} == {dtype}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_within_activation_checkpointing(name: str, use_reentrant: bool) -> None:
    layer = made(name, recurrent_dropout=0.5, zoneout=0.2)

    def checkpointed(x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(lambda x: layer(x), x, use_reentrant=use_reentrant)

    found = []
    for run in (layer, checkpointed):
        torch.manual_seed(3)
        x = data().requires_grad_()
        run(x)[0].square().sum().backward()
        found.append([x.grad, *(p.grad for p in layer.parameters())])
        layer.zero_grad()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_the_deterministic_mode_changes_nothing(name: str) -> None:
    layer = made(name, num_layers=2, bidirectional=True)
    lengths = torch.tensor([2, 0, T])
    plain = everything(layer, layer, data(), lengths=lengths)
    torch.use_deterministic_algorithms(True)
    try:
        strict = everything(layer, layer, data(), lengths=lengths)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(strict, plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tensors_may_come_back_laid_out_otherwise(kind: str) -> None:
    layer = made(kind)

    def unpack(packed: Tensor) -> Tensor:
        turned = packed.permute(*reversed(range(packed.dim()))).contiguous()
        return turned.permute(*reversed(range(packed.dim())))

    expected = everything(layer, layer, data())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), unpack):
        got = everything(layer, layer, data())
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    with torch.autograd.graph.save_on_cpu():
        got = everything(layer, layer, data())
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_changes_in_place_are_noticed() -> None:
    layer = made("LSTM")
    for changed in ("inputs", "outputs"):
        x = data().requires_grad_() * 1.0
        outputs, _ = layer(x)
        loss = outputs.sin().sum()
        with torch.no_grad():
            (x if changed == "inputs" else outputs).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


DISTRIBUTED = """
import sys
import torch
from torch import distributed as dist, nn
import throughtime as tt

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = tt.nn.LSTM(3, 5, num_layers=2, bidirectional=True, engine="native")
        self.readout = nn.Linear(10, 2)

    def forward(self, x, lengths):
        return self.readout(self.layer(x, lengths=lengths)[0])

torch.manual_seed(1)
model, x, lengths = Model(), torch.randn(6, 4, 3), torch.tensor([6, 0, 3, 5])
dist.init_process_group("gloo")
mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
parallel = nn.parallel.DistributedDataParallel(model)
for step in range(2):  # the second time, the buckets stand in the order of the gradients
    parallel.zero_grad()
    parallel(x[:, mine], lengths[mine]).square().mean().backward()
shared = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
model(x, lengths).square().mean().backward()
for got, parameter in zip(shared, model.parameters(), strict=True):
    torch.testing.assert_close(got, parameter.grad)
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal") == 2


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(layer: Any, x: Tensor, reason: str) -> None:
    """Auto takes another engine, and says why; the native one by name raises."""
    choice = tt.kernels.explain(layer, x, engine="auto").choices[0]
    assert choice.engine != "native"
    assert dict(choice.refused)["native"] == reason
    with pytest.raises(EngineError) as raised:
        tt.kernels.run(next(iter(layer.recurrences(x)))[1], "native")
    assert str(raised.value) == f"engine='native' cannot run this: {reason}; engine='auto' takes one that can"


@pytest.mark.parametrize("name", LAYERS)
def test_layer_normalisation_is_refused(name: str) -> None:
    layer = made(name, engine="auto", layer_norm=True)
    refused(layer, data(), "the native engine has no layer normalisation inside the cell")


def test_other_devices_are_refused() -> None:
    layer = made("LSTM", engine="auto").to("meta")
    refused(layer, data().to("meta"), "the native engine is for processors, the inputs are on meta")


def test_other_types_are_refused() -> None:
    reason = "the native engine computes in float32, float64 and bfloat16, not in torch.float16"
    refused(made("GRU", torch.float16, engine="auto"), data(dtype=torch.float16), reason)


def test_gradients_of_masks_are_refused() -> None:
    (_, call), *_ = made("RNN").recurrences(data())
    call = replace(call, recurrent_mask=torch.ones(B, H, requires_grad=True))
    with pytest.raises(EngineError, match="cannot run this: the native engine has no gradient of masks"):
        tt.kernels.run(call, "native")
    tt.kernels.run(call, "auto").outputs.sum().backward()
    assert call.recurrent_mask is not None
    assert call.recurrent_mask.grad is not None


@contextlib.contextmanager
def transform() -> Iterator[None]:
    """Within torch.func.grad."""
    with torch._functorch.eager_transforms.grad_increment_nesting():
        yield


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Within forward-mode differentiation."""
    with torch.autograd.forward_ad.dual_level():
        yield


# torch builds its own forward derivatives with torch.jit.script when the first is asked for.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_function_transforms_are_refused() -> None:
    layer = made("LSTM", engine="auto")
    with transform():
        refused(layer, data(), "the native engine does not work under torch.func transforms")
    with forward_mode():
        refused(layer, data(), "the native engine has no forward-mode derivative")
    # Under auto, others see to them.
    expected = torch.autograd.grad(layer(data())[0].square().sum(), list(layer.parameters()))
    weights = dict(layer.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, weights, (data(),))[0].square().sum()

    for got, right in zip(torch.func.grad(loss)(weights).values(), expected, strict=True):
        torch.testing.assert_close(got, right)


def test_switched_off_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from throughtime.kernels.native import engine

    monkeypatch.setattr(engine, "_missing_reason", lambda: "it is not built")
    refused(made("LSTM", engine="auto"), data(), "it is not built")


# -- memory that later calls take over ---------------------------------------------------------------------------------


def test_what_is_still_held_is_not_written_over() -> None:
    """Outputs, states, gates and gradients large enough for kept memory, beside later calls that take it in turn."""
    torch.manual_seed(0)
    layer = tt.nn.LSTM(96, 96, engine="native")

    def results() -> list[Tensor]:
        x = torch.randn(40, 16, 96, requires_grad=True)
        outputs, _, states = layer(x, return_states="all")
        outputs.backward(torch.randn_like(outputs))
        gradients = [x.grad, *(parameter.grad for parameter in layer.parameters())]
        layer.zero_grad()
        return [outputs, states[0][0].c, *states[0][0].gates, *gradients]

    held = results()
    assert all(tensor.numel() >= memory._WORTH_KEEPING for tensor in held[:7])
    before = [tensor.detach().clone() for tensor in held]
    for _ in range(3):
        results()
    for tensor, expected in zip(held, before, strict=True):
        assert torch.equal(tensor, expected)


def test_a_ragged_batch_ends_in_zeros_in_memory_that_was_used_before() -> None:
    layer = tt.nn.GRU(96, 96, engine="native")
    x = torch.randn(40, 16, 96, requires_grad=True)
    for lengths in (None, torch.arange(16)):
        x.grad = None
        outputs, _ = layer(x, lengths=lengths)
        outputs.sum().backward()
    assert x.grad is not None
    for row in range(16):
        assert outputs[row:, row].eq(0).all()
        assert x.grad[row:, row].eq(0).all()
