"""How much memory a segment takes forward and backward, found by running a few steps of it and watching its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from throughtime.kernels.modes import EagerMode
from throughtime.recurrence.placement import Footprint

# Steps of the shorter and the longer run whose difference is what a step takes.
_STEPS = (4, 8)
# An operation leaves a node in autograd's graph and a tensor's own description, in the memory of the processor.
_BYTES_OF_AN_OPERATION = 1024


class LiveTensors(EagerMode):
    """Counts the bytes of the tensors that operations within it make, as long as these are alive.

    `peak` is the most at a time. What was there before, and views of it, count nothing. `operations` is their number.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.operations = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as ever, and count what is new."""
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, made_here=False)
        results = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in _tensors(results):
            self._meet(tensor, made_here=True)
        self.peak = max(self.peak, self.now)
        return results

    def _meet(self, tensor: Tensor, *, made_here: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes() if made_here else 0
        self.now += size
        weakref.finalize(storage, self._part, key, size)

    def _part(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def measured(run: Callable[[int], None], steps: int, of_a_state: int) -> Footprint:
    """The footprint of segments, of which `run(n)` runs one of n steps forward and backward; there are two at least.

    What does not grow with n is of the parameters' sizes, which is no part of a budget, or of a state's.
    """
    short, long = (max(1, steps // 2), steps) if steps < _STEPS[1] else _STEPS
    peaks = []
    for number in (short, long):
        with LiveTensors() as live:
            run(number)
        peaks.append(live.peak + live.operations * _BYTES_OF_AN_OPERATION)
    of_a_step = -(-(peaks[1] - peaks[0]) // (long - short))
    # The states that a segment begins from and ends with, and the gradients of both.
    return Footprint(4 * of_a_state, of_a_step, of_a_state)
