"""Inputs that are rows of a table, as embeddings are: each row is multiplied once, however often it comes.

Of T · B inputs there are no more than V different ones. U x and the biases are computed for these, the recurrence looks
them up, and its backward pass adds their gradients up by row: three products of V rows in place of three of T · B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.recurrence import Lookup, Recurrence

# A table with more rows than this share of the inputs is left alone: adding up by row costs something too.
_SHARE = 0.5


def worthwhile(call: Recurrence) -> bool:
    """Whether the call's inputs are rows of a table that is much shorter than they are many."""
    if call.lookup is None or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return len(call.lookup.weight) <= _SHARE * call.lookup.tokens.numel()


class Table:
    """What each row of a table contributes to the summed inputs, in place of the inputs of a call."""

    def __init__(self, arguments: Arguments, lookup: Lookup) -> None:
        dtype, rows = arguments.weight_ih.dtype, len(lookup.weight)
        self.tokens = lookup.tokens.contiguous()
        if self.tokens.numel() and not 0 <= int(self.tokens.min()) <= int(self.tokens.max()) < rows:
            raise IndexError(f"tokens must be in 0..{rows - 1}")
        self._inputs = _rounded(lookup.weight.detach().to(dtype), arguments.precision)  # (V, I)
        self._weight = _rounded(arguments.weight_ih, arguments.precision)  # (G · H, I)
        # A reset gate acts on what W h and its bias contribute: that bias stays where it is.
        self._apart = arguments.cell.startswith("gru")
        biases = [arguments.bias_ih, None if self._apart else arguments.bias_hh]
        given = [bias for bias in biases if bias is not None]
        with _exact():
            table = self._inputs @ self._weight.mT  # (V, G · H)
        self._values = table + sum(given) if given else table
        self.arguments = arguments._replace(
            inputs=self._values.new_empty(*self.tokens.shape, 0),
            weight_ih=self._values.new_empty(len(self._weight), 0),
            bias_ih=None,
            bias_hh=arguments.bias_hh if self._apart else None,
        )

    def places(self) -> dict[str, Tensor]:
        """What compiled code reads."""
        return {"tokens": self.tokens, "table": self._values}

    def gradient(self) -> Tensor:
        """Where the table's gradient will stand."""
        return torch.zeros_like(self._values)

    def gradients(self, of_table: Tensor, wanted: dict[str, bool]) -> dict[str, Tensor]:
        """Of what the table was made of, by name, "inputs" being the table's rows (V, I)."""
        found: dict[str, Any] = {}
        with _exact():
            if wanted["inputs"]:
                found["inputs"] = of_table @ self._weight
            if wanted["weight_ih"]:
                found["weight_ih"] = of_table.mT @ self._inputs
        biases = ("bias_ih",) if self._apart else ("bias_ih", "bias_hh")
        return found | {name: of_table.sum(0) for name in biases if wanted[name]}


def _rounded(operand: Tensor, precision: str) -> Tensor:
    """An operand of a product as its precision has it; sums stay in the type that it has."""
    return operand.bfloat16().to(operand.dtype) if precision == "bfloat16" else operand


def _exact() -> torch.autocast:
    """Autocast off: it would round the products' results too."""
    return torch.autocast("cpu", enabled=False)
