"""A penalty on gradients that change their length from one time step to the one before.

    Ω = Σ_t ( ‖ (∇_h(t) L) ∂h(t)/∂h(t-1) ‖ / ‖ ∇_h(t) L ‖ − 1 )²                                              (10.52)

∇_h(t) L, the gradient of the whole loss by h(t), and the states h(t) themselves count as constants: what remains is the
parameters' immediate part in each step's Jacobian. The steps then do not depend on each other, and all of them are one
batch of T · B rows.

Source: Pascanu, Mikolov & Bengio 2013, section 3.3, eqs. 9-10; Goodfellow, Bengio & Courville 2016, eq. 10.52.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.recurrence.jacobians import Fields, Link, links
from throughtime.recurrence.lengths import inside


def information_flow(
    layer: Any,
    inputs: Any,
    d_outputs: Float[Tensor, "T B H"],
    *,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> Float[Tensor, " B"]:
    """Ω of each sequence, the sum over its steps and the layers; to be differentiated by the parameters.

        >>> import torch, throughtime as tt
        >>> cell, x = tt.nn.LSTMCell(3, 5), torch.randn(7, 2, 3)
        >>> outputs, _ = tt.unfold(cell, x)
        >>> loss = outputs[-1].square().mean()
        >>> (d_outputs,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        >>> penalty = tt.bptt.information_flow(cell, x, d_outputs).mean()
        >>> (loss + 0.1 * penalty).backward()

    Steps at which nothing of the loss arrives, and the first step of a sequence, of which there is no h(t-1) to learn
    from, have no part in it. For an LSTM it is h alone that counts, at fixed c(t-1), as for any first field of a state.
    ∇_h(t) L costs one backward pass step by step; Ω itself is one batch.

    Args:
        layer: a `tt.Cell`, or a layer of `tt.nn` of one direction, which draws no masks.
        inputs: as the layer takes them.
        d_outputs: ∂L/∂outputs, time first, `torch.autograd.grad(L, outputs)`: what L has of each h(t) directly. Its
            scale makes no difference.
        state: what the layer begins with.
        lengths: the number of steps of each sequence.
        resets: where sequences begin anew.

    Raises:
        UsageError: a layer of another kind.
        ShapeError: tensors that do not fit.
    """
    chain = links(layer, inputs, state, lengths=lengths, resets=resets, who="information_flow")
    expected = chain[-1].states[0].shape
    if d_outputs.shape != expected:
        raise ShapeError(f"information_flow: d_outputs must be (T, B, H) = {tuple(expected)}, "
                         f"got {tuple(d_outputs.shape)}")  # fmt: skip
    gradients = hidden_gradients(chain, d_outputs, residual=getattr(layer, "residual", False))
    return torch.stack([penalty(link, gradient) for link, gradient in zip(chain, gradients, strict=True)]).sum(0)


@torch.no_grad()
def hidden_gradients(
    chain: Sequence[Link], d_outputs: Float[Tensor, "T B H"], *, residual: bool = False
) -> tuple[Tensor, ...]:
    """∇_h(t) L of every layer, each (T, B, H), given what L has of the outputs at each step directly."""
    adjoints: list[Fields] = [tuple(torch.zeros_like(field[0]) for field in link.before) for link in chain]
    found = [torch.zeros_like(link.states[0]) for link in chain]
    call = chain[-1].call
    counts = inside(call.lengths, call.inputs)[..., None]  # (T, B, 1)
    for t in reversed(range(len(d_outputs))):
        at = torch.tensor(t, device=d_outputs.device)
        above = d_outputs[t].to(found[-1].dtype) * counts[t]  # (B, H)
        for number in reversed(range(len(chain))):
            h, *others = adjoints[number]
            found[number][t] = h + above
            adjoints[number], d_x = chain[number].vjp(at, (h + above, *others), to_inputs=number > 0)
            if number:
                above = d_x + above if residual else d_x
    return tuple(found)


def penalty(link: Link, gradients: Float[Tensor, "T B H"]) -> Float[Tensor, " B"]:
    """Ω of one layer whose states are known, for each sequence."""
    steps = torch.arange(1, len(gradients), device=gradients.device)
    row = gradients.detach()[1:]  # (T-1, B, H)
    pulled = link.pull_back_output(steps, row)  # (T-1, B, H)
    arriving = row.norm(dim=-1)  # (T-1, B)
    counts = (arriving > 0) & link.reaches(steps, torch.ones_like(steps))
    # Where it does not count the norm is one of ones: at zero it has no derivative.
    length = torch.where(counts[..., None], pulled, 1).norm(dim=-1)
    ratio = length / torch.where(counts, arriving, 1)
    return torch.where(counts, (ratio - 1) ** 2, 0).sum(0)
