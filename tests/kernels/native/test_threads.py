"""The engine's threads among a program's own: forks, Python threads, interrupts, and the end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.kernels.native import library

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

# What each program begins with: a layer large enough for several threads, and what it gives. All else is so small that
# PyTorch takes no threads of OpenMP, which do not survive a fork. Python warns of one in a process with threads.
BEGINNING = """
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch
import throughtime as tt

torch.set_num_threads(1)
torch.manual_seed(1)
layer = tt.nn.LSTM(64, 64, engine="native")
x = torch.randn(10, 32, 64)
long_x = x.repeat(300, 1, 1)
torch.set_num_threads(4)

def results():
    layer.zero_grad()
    outputs, _ = layer(x)
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in layer.parameters())]

def long_call():
    with torch.no_grad():
        layer(long_x)

expected = results()

def agree():
    return all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))
"""


def run(program: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGINNING + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def check(program: str) -> None:
    """The program ends well, says "done" last, and nothing on stderr."""
    result = run(program)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("done\n")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@needs_fork
def test_a_child_and_its_child_make_threads_of_their_own() -> None:
    check("""
def child(depth):
    process = os.fork()
    if process == 0:
        code = 0 if agree() else 7
        if depth:
            code = code or child(depth - 1)
        os._exit(code or (0 if agree() else 8))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

for _ in range(3):
    assert child(depth=1) == 0
    assert agree()
print("done")
""")


@needs_fork
def test_a_fork_in_the_middle_of_another_threads_call() -> None:
    check("""
stop = threading.Event()

def busy():
    while not stop.is_set():
        long_call()

thread = threading.Thread(target=busy)
thread.start()
for _ in range(5):
    time.sleep(0.05)
    process = os.fork()
    if process == 0:
        signal.alarm(60)  # a child that waits for threads that it has not
        os._exit(0 if agree() else 7)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
stop.set()
thread.join()
assert agree()
print("done")
""")


@needs_fork
def test_the_workers_of_a_data_loader() -> None:
    check("""
from torch.utils.data import DataLoader, Dataset

class Computed(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        torch.set_num_threads(1 + index % 3)  # a worker begins with one
        return torch.tensor(agree())

warnings.simplefilter("ignore", UserWarning)  # that there are more workers than cores
loader = DataLoader(Computed(), batch_size=2, num_workers=2, multiprocessing_context="fork")
assert [batch.tolist() for batch in loader] == [[True, True]] * 3
assert agree()
print("done")
""")


def everything(layer: Any, x: Tensor) -> list[Tensor]:
    outputs, _ = layer(x)
    return [outputs.detach(), *torch.autograd.grad(outputs.square().sum(), list(layer.parameters()))]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_several_threads_at_once_get_what_one_gets(name: str) -> None:
    torch.manual_seed(1)
    layers = [getattr(tt.nn, name)(48, 64, num_layers=2, engine="native") for _ in range(4)]
    inputs = [torch.randn(15, 24, 48) for _ in layers]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = [everything(layer, x) for layer, x in zip(layers, inputs, strict=True)]
        with ThreadPoolExecutor(4) as threads:
            # Each is computed by several threads, and by several at the same time.
            order = [k % len(layers) for k in range(32)]
            found = list(threads.map(lambda k: everything(layers[k], inputs[k]), order))
    finally:
        torch.set_num_threads(before)
    for k, got in zip(order, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected[k], strict=True))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list a process's threads")
def test_no_more_threads_than_asked_for() -> None:
    check("""
from concurrent.futures import ThreadPoolExecutor

def count():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
small = tt.nn.LSTM(2, 3, engine="native")
with torch.no_grad():
    start = count()      # the three others of the first call are there, and stay
    small(torch.zeros(5, 2, 2))
    long_call()
    assert count() <= start, (count(), start)
    torch.set_num_threads(6)
    long_call()
    assert count() <= start + 2, (count(), start)
    # A thread of Python's has a team of its own for PyTorch's operations; the engine makes no other.
    gate = threading.Barrier(4)
    def torchs(_):
        gate.wait()
        torch.zeros(1 << 22).add_(1)
    def ours(_):
        gate.wait()
        long_call()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(torchs, range(4)))
        there = count()
        list(threads.map(ours, range(4)))
        assert count() <= there, (count(), there)
print("done")
""")


@pytest.mark.usefixtures("unmeasured")
def test_an_interrupt_in_the_middle_of_a_long_call() -> None:
    check("""
def interrupt():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)

caught = 0
for _ in range(3):
    threading.Thread(target=interrupt).start()
    try:
        for _ in range(1000):
            long_call()
    except KeyboardInterrupt:
        caught += 1
    assert agree()
assert caught == 3
print("done")
""")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.usefixtures("unmeasured")
def test_an_interrupt_that_nobody_catches_ends_the_process() -> None:
    result = run("""
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
while True:
    long_call()
""")
    assert result.returncode == -signal.SIGINT
    assert result.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    "ending",
    [
        "print('done')",
        "import atexit; atexit.register(lambda: print('done' if agree() else 'wrong'))",
        "thread = threading.Thread(target=long_call); thread.start(); print('done')",
    ],
    ids=["falls off the end", "used at exit", "a thread still at work"],
)
def test_the_process_ends_while_the_threads_live(ending: str) -> None:
    check(ending)
