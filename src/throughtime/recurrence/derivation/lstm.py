"""The LSTM by hand, with the outputs o(t) = c + V h(t), ŷ(t) = softmax(o(t)) of design A.

Forwards, with the gates i, f, g, o of `throughtime.cells.lstm` (10.40-10.44):

    c(t) = f(t) ⊙ c(t-1) + i(t) ⊙ g(t),   h(t) = o(t) ⊙ tanh(c(t)).

Backwards, from τ to 1, where dc(t) stands for ∂L/∂c(t), a_k(t) for what gate k is the σ or tanh of, and ∇_o(t) L for
the gradient of the softmax's argument as in 10.18:

    ∇_h(t) L = Vᵀ ∇_o(t) L + Σ_k W_kᵀ da_k(t+1)            to the outputs, and to each gate of the next step
    do(t) = ∇_h(t) L ⊙ tanh(c(t))
    dc(t) = ∇_h(t) L ⊙ o(t) ⊙ (1 - tanh²(c(t)))            through h(t), and
          + f(t+1) ⊙ dc(t+1)                               through c(t+1): no weights, no tanh, only the forget gate
    df(t) = dc(t) ⊙ c(t-1)     di(t) = dc(t) ⊙ g(t)     dg(t) = dc(t) ⊙ i(t)
    da_k(t) = dk(t) ⊙ k(t) ⊙ (1 - k(t))  for the sigmoids k = i, f, o;   da_g(t) = dg(t) ⊙ (1 - g(t)²)
    ∇_U L = Σ_t da(t) x(t)ᵀ     ∇_W L = Σ_t da(t) h(t-1)ᵀ     ∇_b L = Σ_t da(t)

The sums of 10.22-10.28 are as they were, da(t) standing where diag(1 - h²) ∇_h did.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.cells import LSTMGates
from throughtime.recurrence.derivation.problem import Problem
from throughtime.recurrence.derivation.result import Contributions, Derivation, add

_COLUMNS = (
    ("∇o(t)", "10.18", "nabla_o"),
    ("∇h(t)", "10.43", "nabla_h"),
    ("dc", "10.41", "dc"),
    ("di", "10.42", "di"),
    ("df", "10.40", "df"),
    ("dg", "10.41", "dg"),
    ("do", "10.44", "do"),
)


class LSTMStep(NamedTuple):
    """One time step t = 1..τ. Behind a sequence's length all is zero.

    L(t) of each sequence in nats (B,), h(t) and c(t) (B, H), the gates (B, H) each, ŷ(t) (B, O), ∇_o(t) L (B, O) of
    the outputs, ∇_h(t) L (B, H), the gradients dc, di, df, dg, do (B, H) of the memory and of the gates after their
    nonlinearities, and what this step contributes to the parameters' gradients.
    """

    t: int
    loss: Tensor
    h: Tensor
    c: Tensor
    gates: LSTMGates
    predictions: Tensor
    nabla_o: Tensor
    nabla_h: Tensor
    dc: Tensor
    di: Tensor
    df: Tensor
    dg: Tensor
    do: Tensor
    contributions: Contributions


def derive(problem: Problem) -> Derivation:
    """The gradient of an LSTM with softmax outputs, by the equations above."""
    weights, x, V = problem.equations.weights, problem.inputs, problem.V
    U, W = weights.weight_ih, weights.weight_hh

    # Forward, from 1 to τ. In code t counts from 0; h[t] is the state before step t, and h[t + 1] the one after it.
    h, c, gates = _forward(problem)

    # Backward, from τ to 1. A sequence that has ended has ∇_o = 0, so that nothing comes from behind its end.
    steps: list[LSTMStep] = []
    h_from_next = torch.zeros_like(h[0])  # Σ_k W_kᵀ da_k(t+1)
    c_from_next = torch.zeros_like(c[0])  # f(t+1) ⊙ dc(t+1)
    for t in reversed(range(len(x))):
        i, f, g, o = gates[t]
        loss, y_hat, nabla_o = problem.outputs(t, h[t + 1])
        nabla_h = nabla_o @ V + h_from_next  # (B, H)
        tanh_c = torch.tanh(c[t + 1])
        do = nabla_h * tanh_c
        dc = nabla_h * o * (1 - tanh_c**2) + c_from_next
        df, di, dg = dc * c[t], dc * g, dc * i
        da = torch.cat([di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], dim=-1)  # (B, 4H)
        contributions = Contributions(
            U=da.mT @ x[t],  # (4H, I)
            W=da.mT @ h[t],  # (4H, H)
            b=da.sum(0),  # (4H,)
            V=nabla_o.mT @ h[t + 1],  # (O, H)
            c=nabla_o.sum(0),  # (O,)
        )
        states = (h[t + 1], c[t + 1], gates[t])
        steps.append(
            LSTMStep(t + 1, loss, *states, y_hat, nabla_o, nabla_h, dc, di, df, dg, do, contributions),
        )
        h_from_next = da @ W  # (B, H): Σ_k W_kᵀ da_k(t), in one product
        c_from_next = f * dc  # (B, H)

    like = Contributions(U, W, W[:, 0], V, problem.c)
    return Derivation(
        title=f"LSTM, softmax outputs: τ = {len(x)}, B = {x.shape[1]}, I = {x.shape[2]}, H = {W.shape[1]}, "
        f"O = {len(V)}; from τ to 1",
        loss=sum((step.loss.sum() for step in steps), x.new_zeros(())),
        steps=tuple(reversed(steps)),
        sums=add([step.contributions for step in steps], like),
        nabla_start=(h_from_next, c_from_next),
        columns=_COLUMNS,
        bias=weights.bias_ih is not None,
    )


def _forward(problem: Problem) -> tuple[list[Tensor], list[Tensor], list[LSTMGates]]:
    """h(0..τ), c(0..τ) and the gates of each step (10.40-10.44)."""
    weights, x = problem.equations.weights, problem.inputs
    U, W, b = weights.weight_ih, weights.weight_hh, problem.bias
    h, c, gates = [problem.state.h], [problem.state.c], []
    for t in range(len(x)):
        a = b + h[t] @ W.mT + x[t] @ U.mT  # (B, 4H)
        a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)  # (B, H) each
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        gates.append(LSTMGates(*(problem.inside(t, gate) for gate in (i, f, g, o))))
        c.append(problem.inside(t, f * c[t] + i * g))
        h.append(problem.inside(t, o * torch.tanh(c[t + 1])))
    return h, c, gates
