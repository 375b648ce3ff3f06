"""One time step at batch 1: `tt.nn.LayerStepper` against everything else that one could run on a CPU.

The others are `torch.nn.LSTM` called with one step, a loop over `torch.nn.LSTMCell`, PyTorch's dynamic int8
quantisation of `torch.nn.LSTM`, and ONNX Runtime, in float32 and dynamically quantised to int8. All have the same
weights and carry their state from step to step; they take turns in one process, in blocks of some milliseconds, and
what is compared is the medians over the blocks. The results of the float32 sides are compared with each other first.

    pip install --group bench
    python benchmarks/stepping.py [--hidden 128 256 512 1024] [--layers 1 2] [--rounds 30] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

import throughtime as tt

BLOCK_SECONDS = 0.01

Step = Callable[[], object]


def native(layer: tt.nn.LSTM, x: Tensor, precision: str) -> Step:
    stepper = tt.nn.LayerStepper(layer, precision=precision)
    row, out = x[0], torch.empty(1, layer.hidden_sizes[-1])
    return lambda: stepper.step(row, out=out)


def module(layer: nn.Module, x: Tensor) -> Step:
    state = None

    def step() -> Tensor:
        nonlocal state
        outputs, state = layer(x, state)
        return outputs[0]

    return step


def cells(layer: nn.LSTM, x: Tensor) -> Step:
    size = layer.hidden_size
    stack = [nn.LSTMCell(layer.input_size if index == 0 else size, size) for index in range(layer.num_layers)]
    with torch.no_grad():
        for index, cell in enumerate(stack):
            for name, parameter in cell.named_parameters():
                parameter.copy_(getattr(layer, f"{name}_l{index}"))
    states = [(torch.zeros(1, size), torch.zeros(1, size)) for _ in stack]

    def step() -> Tensor:
        h = x[0]
        for index, cell in enumerate(stack):
            states[index] = cell(h, states[index])
            h = states[index][0]
        return h

    return step


def onnx_file(layer: nn.LSTM, path: Path) -> None:
    """One step of the layers as a graph: inputs x, h, c; outputs y and the new h and c of each layer."""
    size = layer.hidden_size
    nodes, constants, inputs, outputs = [], [], [], []

    def in_onnx_order(tensor: Tensor) -> np.ndarray:
        i, f, g, o = tensor.detach().chunk(4)
        return torch.cat([i, o, f, g])[None].numpy()  # ONNX has i, o, f, c

    last = "x"
    for index in range(layer.num_layers):
        weights = {
            "W": in_onnx_order(getattr(layer, f"weight_ih_l{index}")),
            "R": in_onnx_order(getattr(layer, f"weight_hh_l{index}")),
            "B": np.concatenate(
                [in_onnx_order(getattr(layer, f"bias_{side}_l{index}")) for side in ("ih", "hh")], axis=1
            ),
        }
        constants += [numpy_helper.from_array(value, f"{name}{index}") for name, value in weights.items()]
        for name in ("h", "c"):
            inputs.append(helper.make_tensor_value_info(f"{name}{index}", TensorProto.FLOAT, [1, 1, size]))
            outputs.append(helper.make_tensor_value_info(f"{name}{index}_next", TensorProto.FLOAT, [1, 1, size]))
        nodes.append(
            helper.make_node(
                "LSTM",
                [last, f"W{index}", f"R{index}", f"B{index}", "", f"h{index}", f"c{index}"],
                ["", f"h{index}_next", f"c{index}_next"],
                hidden_size=size,
            )
        )
        last = f"h{index}_next"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, layer.input_size])
    graph = helper.make_graph(nodes, "step", [x, *inputs], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)


def onnx_step(path: Path, layer: nn.LSTM, x: Tensor, threads: int) -> Step:
    """One step with input and output bound to memory that stays, as a careful user would write it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    zeros = np.zeros((1, 1, layer.hidden_size), np.float32)
    names = [f"{name}{index}" for index in range(layer.num_layers) for name in ("h", "c")]
    # Two sets of states: one step reads the first and writes the second, the next the other way round.
    sets = [{name: onnxruntime.OrtValue.ortvalue_from_numpy(zeros.copy()) for name in names} for _ in range(2)]
    given = onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())
    bindings = []
    for read, written in (sets, sets[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", given)
        for name in names:
            binding.bind_ortvalue_input(name, read[name])
            binding.bind_ortvalue_output(f"{name}_next", written[name])
        bindings.append(binding)
    last = f"h{layer.num_layers - 1}"
    turn = 0

    def step() -> Tensor:
        nonlocal turn
        session.run_with_iobinding(bindings[turn])
        turn = 1 - turn
        return sets[turn][last]

    return step


def sides(hidden: int, layers: int, threads: int, folder: Path) -> dict[str, Step]:
    """Every side with the same weights, checked against torch.nn.LSTM over some steps."""
    torch.manual_seed(0)
    reference = nn.LSTM(hidden, hidden, layers).eval()
    ours = tt.nn.LSTM(hidden, hidden, layers).eval()
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(1, 1, hidden)
    onnx_file(reference, folder / "fp32.onnx")
    quantize_dynamic(folder / "fp32.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(reference, {nn.LSTM}, dtype=torch.qint8)
    found: dict[str, Step] = {
        "native fp32": native(ours, x, "fp32"),
        "native bf16": native(ours, x, "bf16"),
        "native int8": native(ours, x, "int8"),
        "torch.nn.LSTM": module(reference, x),
        "LSTMCell loop": cells(reference, x),
        "torch int8": module(quantised, x),
        "ONNX Runtime": onnx_step(folder / "fp32.onnx", reference, x, threads),
        "ONNX Runtime int8": onnx_step(folder / "int8.onnx", reference, x, threads),
    }
    expected = [found["torch.nn.LSTM"]() for _ in range(5)][-1]
    for name, step in found.items():
        if name == "torch.nn.LSTM":
            continue
        got = [step() for _ in range(5)][-1]
        got = got if isinstance(got, Tensor) else torch.from_numpy(got.numpy()).reshape(expected.shape)
        error = (got - expected).abs().max().item()
        assert error < (0.1 if "int8" in name else 0.02 if "bf16" in name else 1e-5), f"{name}: off by {error}"
    return found


def measure(found: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median microseconds of one step of each side; the sides take turns."""
    counts = {}
    for name, step in found.items():
        for _ in range(20):
            step()
        began = time.perf_counter()
        for _ in range(20):
            step()
        counts[name] = max(5, int(BLOCK_SECONDS * 20 / (time.perf_counter() - began)))
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        for name in list(found)[:: 1 if number % 2 else -1]:
            step, count = found[name], counts[name]
            for _ in range(count // 5):
                step()  # the caches are this side's again
            began = time.perf_counter()
            for _ in range(count):
                step()
            seconds[name].append((time.perf_counter() - began) / count)
    return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print a table of microseconds for each size, and the ratios that matter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the medians here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    print(f"microseconds a step at batch 1, {options.threads} threads, medians of {options.rounds} rounds")
    for layers in options.layers:
        for hidden in options.hidden:
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                medians = measure(sides(hidden, layers, options.threads, Path(folder)), options.rounds)
            results.append({"hidden": hidden, "layers": layers, **medians})
            print(f"LSTM {hidden} x {layers}: " + ", ".join(f"{name} {value:.1f}" for name, value in medians.items()))
            ratios = [
                f"{ours} is {medians[theirs] / medians[ours]:.2f} x {theirs}"
                for ours, theirs in (
                    ("native fp32", "torch.nn.LSTM"),
                    ("native fp32", "LSTMCell loop"),
                    ("native fp32", "ONNX Runtime"),
                    ("native int8", "ONNX Runtime"),
                    ("native int8", "ONNX Runtime int8"),
                    ("native int8", "torch int8"),
                )
            ]
            print("    " + ", ".join(ratios))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
