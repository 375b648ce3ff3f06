"""Inputs that are rows of a table, as embeddings are: each row is multiplied once, however often it comes.

Of T · B inputs there are no more than V different ones. U x and the biases are computed for these, the recurrence looks
them up, and its backward pass adds their gradients up by row: three products of V rows in place of three of T · B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.native.custom import linear
from throughtime.kernels.native.operators import nobody_watches
from throughtime.kernels.recurrence import Lookup, Recurrence

# A table with more rows than this share of the inputs is left alone: adding up by row costs something too.
_SHARE = 0.5


def worthwhile(call: Recurrence) -> Lookup | None:
    """Where the call's inputs come from, if that is a table much shorter than they are many and nobody watches."""
    lookup = call.lookup
    if lookup is None or len(lookup.weight) > _SHARE * lookup.tokens.numel():
        return None
    return lookup if nobody_watches(call.inputs, lookup.weight, lookup.tokens) else None


class Table:
    """What each row of a table contributes to the summed inputs, in place of the inputs of a call.

    Raises:
        ShapeError: a token is no row's number.
    """

    def __init__(self, arguments: Arguments, lookup: Lookup) -> None:
        rows = len(lookup.weight)
        self.tokens = lookup.tokens.to("cpu", torch.int64).contiguous()
        if self.tokens.numel():
            least, most = int(self.tokens.min()), int(self.tokens.max())
            if least < 0 or most >= rows:
                raise ShapeError(f"lookup: tokens must be in 0..{rows - 1}, the table's rows, got {least}..{most}")
        dtype, precision = arguments.weight_ih.dtype, arguments.precision
        self._inputs = _rounded(lookup.weight.detach().to(dtype), precision).contiguous()  # (V, I)
        self._weight = _rounded(arguments.weight_ih, precision).contiguous()  # (G · H, I)
        # A reset gate acts on what W h and its bias contribute: that bias stays where it is.
        self._apart = arguments.cell.startswith("gru")
        bias = arguments.bias_ih
        if bias is not None and arguments.bias_hh is not None and not self._apart:
            bias = bias + arguments.bias_hh
        self._values = linear.product(self._inputs, self._weight, bias)  # (V, G · H)
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
        names = ("inputs", "weight_ih", "bias_ih")
        of_bias_hh = wanted["bias_hh"] and not self._apart
        needed = [wanted["inputs"], wanted["weight_ih"], wanted["bias_ih"] or of_bias_hh]
        found = dict(zip(names, linear.gradients(self._inputs, self._weight, of_table, needed), strict=True))
        if of_bias_hh:
            found["bias_hh"] = found["bias_ih"]
        return {name: gradient for name, gradient in found.items() if gradient is not None and wanted[name]}


def _rounded(operand: Tensor, precision: str) -> Tensor:
    """An operand of a product as its precision has it; sums stay in the type that it has."""
    return operand.bfloat16().to(operand.dtype) if precision == "bfloat16" else operand
