"""Design A by hand: h(t) = tanh(b + W h(t-1) + U x(t)), o(t) = c + V h(t), ŷ(t) = softmax(o(t)).

Backwards, from τ to 1 (Goodfellow, Bengio & Courville 2016, section 10.2.2):

    (∇_o(t) L)_i = ŷ_i(t) - 1_{i = y(t)}                                     (10.17, 10.18)
    ∇_h(τ) L = Vᵀ ∇_o(τ) L                                                   (10.19)
    ∇_h(t) L = Wᵀ diag(1 - h(t+1)²) ∇_h(t+1) L + Vᵀ ∇_o(t) L                 (10.20, 10.21)
    ∇_c L = Σ_t ∇_o(t) L                                                     (10.22)
    ∇_b L = Σ_t diag(1 - h(t)²) ∇_h(t) L                                     (10.23)
    ∇_V L = Σ_t (∇_o(t) L) h(t)ᵀ                                             (10.24)
    ∇_W L = Σ_t diag(1 - h(t)²) (∇_h(t) L) h(t-1)ᵀ                           (10.25, 10.26)
    ∇_U L = Σ_t diag(1 - h(t)²) (∇_h(t) L) x(t)ᵀ                             (10.27, 10.28)

The t-th term of each sum is the gradient of that step's own copy: of W(t), of U(t), and so on. Rows are sequences
here, so that W h is `h @ W.mT` and an outer product summed over the batch is `a.mT @ b`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.recurrence.derivation.problem import Problem
from throughtime.recurrence.derivation.result import Contributions, Derivation, add

_COLUMNS = (("∇o(t)", "10.18", "nabla_o"), ("∇h(t)", "10.19-21", "nabla_h"))


class RNNStep(NamedTuple):
    """One time step t = 1..τ. Behind a sequence's length all is zero.

    L(t) of each sequence in nats (B,), h(t) (B, H), ŷ(t) (B, O), ∇_o(t) L (B, O), ∇_h(t) L (B, H), and what this step
    contributes to the parameters' gradients.
    """

    t: int
    loss: Tensor
    h: Tensor
    predictions: Tensor
    nabla_o: Tensor
    nabla_h: Tensor
    contributions: Contributions


def derive(problem: Problem) -> Derivation:
    """The gradient of design A, by eqs. 10.17-10.28."""
    weights, x, V = problem.equations.weights, problem.inputs, problem.V
    U, W, b = weights.weight_ih, weights.weight_hh, problem.bias

    # Forward, from 1 to τ. In code t counts from 0; h[t] is the state before step t, and h[t + 1] the one after it.
    h = [problem.state.h]
    for t in range(len(x)):
        a = b + h[t] @ W.mT + x[t] @ U.mT  # (B, H)                                   (10.8)
        h.append(problem.inside(t, torch.tanh(a)))  # (B, H)                          (10.9)

    # Backward, from τ to 1. A sequence that has ended has ∇_o = 0, so that nothing comes from behind its end.
    steps: list[RNNStep] = []
    from_next = torch.zeros_like(h[0])  # Wᵀ diag(1 - h(t+1)²) ∇_h(t+1) L; nothing comes after τ  (10.19)
    for t in reversed(range(len(x))):
        loss, y_hat, nabla_o = problem.outputs(t, h[t + 1])  #                         (10.17, 10.18)
        nabla_h = from_next + nabla_o @ V  # (B, H)                                   (10.19-10.21)
        nabla_a = (1 - h[t + 1] ** 2) * nabla_h  # (B, H): through the tanh of step t
        contributions = Contributions(
            U=nabla_a.mT @ x[t],  # (H, I)                                            (10.28)
            W=nabla_a.mT @ h[t],  # (H, H)                                            (10.26)
            b=nabla_a.sum(0),  # (H,)                                                 (10.23)
            V=nabla_o.mT @ h[t + 1],  # (O, H)                                        (10.24)
            c=nabla_o.sum(0),  # (O,)                                                 (10.22)
        )
        steps.append(RNNStep(t + 1, loss, h[t + 1], y_hat, nabla_o, nabla_h, contributions))
        from_next = nabla_a @ W  # (B, H): to h(t-1), the first term of                 (10.21)

    like = Contributions(U, W, W[:, 0], V, problem.c)
    return Derivation(
        title=f"tanh units, softmax outputs (design A): τ = {len(x)}, B = {x.shape[1]}, I = {x.shape[2]}, "
        f"H = {len(W)}, O = {len(V)}; from τ to 1",
        loss=sum((step.loss.sum() for step in steps), x.new_zeros(())),
        steps=tuple(reversed(steps)),
        sums=add([step.contributions for step in steps], like),
        nabla_start=(from_next,),
        columns=_COLUMNS,
        bias=weights.bias_ih is not None,
    )
