"""What the native engine's backward pass hands out, as factors of each parameter's gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.native.autograd import BackwardPass
from throughtime.recurrence.gradients.factors import Factors, Product
from throughtime.recurrence.lengths import inside


def factors_of(found: BackwardPass) -> dict[str, Factors]:
    """The factors of dL/dθ(t), θ by the name it has in its cell; one gradient for each step, summed over the batch."""
    arguments = found.arguments
    _, _, _, units, state = arguments.sizes
    by_slot = found.deltas.sums.chunk(arguments.saved_values, 2)  # S of (T, B, H)
    gates = arguments.weight_ih.shape[0] // units
    of_inputs = found.deltas.sums[..., : gates * units]  # (T, B, G · H)
    saved = found.saved.chunk(arguments.saved_values, 2)
    h = _before(found.outputs, arguments.h_first, arguments)  # (T, B, P)
    if arguments.recurrent_mask is not None:
        h = h * arguments.recurrent_mask
    of_bias = Product(of_inputs, None)
    products = {"weight_ih": [Product(of_inputs, _seen_inputs(arguments))], "bias_ih": [of_bias]}
    if arguments.cell == "gru":
        # The candidate's W_n h + b_hn is scaled by r before x joins it.
        lefts = [found.deltas.sums[..., : 2 * units], by_slot[3]]
        products["weight_hh"] = [Product(left, h) for left in lefts]
        products["bias_hh"] = [Product(left, None) for left in lefts]
    elif arguments.cell == "gru_before":
        # The candidate's W_n sees r ⊙ h(t-1).
        products["weight_hh"] = [Product(found.deltas.sums[..., : 2 * units], h), Product(by_slot[2], saved[3])]
        products["bias_hh"] = [of_bias]
    else:
        products["weight_hh"], products["bias_hh"] = [Product(of_inputs, h)], [of_bias]
    if arguments.weight_hr is not None:
        products["weight_hr"] = [Product(by_slot[4][..., :state], saved[4])]
    if arguments.weight_peephole is not None:
        products["weight_peephole"] = [Product(_peepholes(found), None)]
    given = {name: getattr(arguments, name) for name in products}
    return {
        name: Factors(given[name].shape, tuple(parts)) for name, parts in products.items() if given[name] is not None
    }


def _seen_inputs(arguments: Arguments) -> Float[Tensor, "T B I"]:
    """x(t), zero behind a sequence's length, where nothing may come through, not even 0 · nan."""
    if arguments.lengths is None:
        return arguments.inputs
    return torch.where(inside(arguments.lengths, arguments.inputs)[..., None], arguments.inputs, 0)


def _before(states: Float[Tensor, "T B P"], first: Float[Tensor, "B P"], arguments: Arguments) -> Tensor:
    """The state that each step begins with: (T, B, P)."""
    parts = [states[1:], first[None]] if arguments.reverse else [first[None], states[:-1]]
    before = torch.cat(parts)[: len(states)]
    if arguments.reverse and arguments.lengths is not None:
        rows = arguments.lengths.nonzero().flatten()
        before[arguments.lengths[rows] - 1, rows] = first[rows]
    if arguments.resets is not None:
        before = torch.where(arguments.resets[..., None], 0, before)
    return before


def _peepholes(found: BackwardPass) -> Float[Tensor, "T B three_H"]:
    """δ_i ⊙ c(t-1), δ_f ⊙ c(t-1) and δ_o ⊙ c(t), one behind the other."""
    assert found.arguments.c_first is not None
    slots = found.arguments.saved_values
    d_i, d_f, _, d_o, *_ = found.deltas.sums.chunk(slots, 2)
    i, f, g, *_ = found.saved.chunk(slots, 2)
    c = _before(found.cells, found.arguments.c_first, found.arguments)
    return torch.cat([d_i * c, d_f * c, d_o * (f * c + i * g)], 2)  # c(t) before zoneout
