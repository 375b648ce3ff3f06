"""Attention: each score against its equation, written as loops; ragged sources; coverage; blocks of steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from throughtime.errors import ShapeError, UsageError
from throughtime.layers import attention as module
from throughtime.layers.attention import KINDS, Attention

TIGHT: dict[str, float] = {"rtol": 1e-11, "atol": 1e-12}
S, T, B, H = 5, 3, 4, 3
LENGTHS = [5, 2, 0, 1]


def made(kind: Any, memory_size: int = H, **options: Any) -> Attention:
    torch.manual_seed(3)
    attention = Attention(kind, H, memory_size, **options).double()
    if attention.weight_coverage is not None:
        torch.nn.init.normal_(attention.weight_coverage)
    return attention


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def score(attention: Attention, h: Tensor, m: Tensor, seen: float) -> float:
    """The score of h and m_j as the module's equations have it, `seen` the weights of earlier steps at position j."""
    w = attention.weight_coverage
    more = torch.zeros(H).double() if w is None else w * seen
    if attention.kind == "dot":
        found = h @ (m + more)
    elif attention.kind == "general":
        found = h @ (attention.weight @ m + more)
    elif attention.kind == "additive":
        found = attention.direction[0] @ torch.tanh(attention.weight_query @ h + attention.weight_memory @ m + more)
    else:
        found = attention.direction[0] @ torch.tanh(attention.weight @ torch.cat([h, m]) + more)
    return float(found.detach())


def by_loops(attention: Attention, query: Tensor, outputs: Tensor, lengths: list[int], coverage: Tensor | None) -> Any:
    """c(t) and α(t), one sequence, step and position at a time."""
    context = torch.zeros(len(lengths), query.shape[1], outputs.shape[-1]).double()
    weights = torch.zeros(len(lengths), query.shape[1], len(outputs)).double()
    for b, length in enumerate(lengths):
        for t in range(query.shape[1]):
            seen = [0.0] * length if coverage is None else coverage[b, :length].tolist()
            scores = [score(attention, query[b, t], outputs[j, b], seen[j]) for j in range(length)]
            total = sum(math.exp(one) for one in scores)
            for j in range(length):
                weights[b, t, j] = math.exp(scores[j]) / total
                context[b, t] += weights[b, t, j] * outputs[j, b]
    return context, weights


@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_its_equation(kind: str, covered: bool) -> None:
    attention = made(kind, H if kind == "dot" else 2, coverage=covered)
    query, outputs = numbers(B, T, H), numbers(S, B, attention.memory_size, seed=1)
    coverage = numbers(B, S, seed=2).abs() if covered else None
    found = attention(query, attention.remember(outputs, torch.tensor(LENGTHS)), coverage)
    context, weights = by_loops(attention, query, outputs, LENGTHS, coverage)
    torch.testing.assert_close(found.weights, weights, **TIGHT)
    torch.testing.assert_close(found.context, context, **TIGHT)
    assert found.weights.sum(-1)[:, 0].tolist() == pytest.approx([1, 1, 0, 1])


@given(st.lists(st.integers(0, S), min_size=1, max_size=4), st.sampled_from(KINDS), st.booleans())
def test_padding_changes_nothing(lengths: list[int], kind: str, covered: bool) -> None:
    """A ragged batch is its members, each with the positions that it has and no others; padding gets no gradient."""
    attention, rows = made(kind, coverage=covered), len(lengths)
    query, outputs = numbers(rows, T, H), numbers(S, rows, H, seed=1).requires_grad_()
    coverage = numbers(rows, S, seed=2).abs() if covered else None
    found = attention(query, attention.remember(outputs, torch.tensor(lengths)), coverage)
    for row, length in enumerate(lengths):
        seen = None if coverage is None else coverage[row : row + 1, :length]
        alone = attention(query[row : row + 1], attention.remember(outputs[:length, row : row + 1]), seen)
        torch.testing.assert_close(found.context[row : row + 1], alone.context, **TIGHT)
        torch.testing.assert_close(found.weights[row : row + 1, :, :length], alone.weights, **TIGHT)
        assert not found.weights[row, :, length:].any()
    (gradient,) = torch.autograd.grad((found.context * numbers(*found.context.shape, seed=3)).sum(), outputs)
    assert gradient.isfinite().all()
    assert not any(gradient[length:, row].any() for row, length in enumerate(lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    attention = made(kind, coverage=True)
    names = dict(attention.named_parameters())

    def attend(query: Tensor, outputs: Tensor, coverage: Tensor, *weights: Tensor) -> Any:
        swapped = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(_Whole(attention), {f"part.{k}": v for k, v in swapped.items()},
                                          (query, outputs, coverage))  # fmt: skip

    given_ = [numbers(B, 2, H), numbers(S, B, H, seed=1), numbers(B, S, seed=2).abs()]
    inputs = [tensor.detach().clone().requires_grad_() for tensor in [*given_, *names.values()]]
    assert torch.autograd.gradcheck(attend, inputs)


class _Whole(torch.nn.Module):
    """Memory and attention in one call."""

    def __init__(self, part: Attention) -> None:
        super().__init__()
        self.part = part

    def forward(self, query: Tensor, outputs: Tensor, coverage: Tensor) -> Any:
        return tuple(self.part(query, self.part.remember(outputs, torch.tensor(LENGTHS)), coverage))


@pytest.mark.parametrize("most", [1, 130])
@pytest.mark.parametrize("kind", ["additive", "concat"])
def test_blocks_of_steps_are_one_piece(kind: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few sums may stand in memory, values and gradients are those of all steps at once."""
    attention = made(kind)
    found = []
    for limit in (1 << 22, most):
        monkeypatch.setattr(module, "_MOST_SUMS", limit)
        query, outputs = numbers(B, 7, H).requires_grad_(), numbers(S, B, H, seed=1).requires_grad_()
        attended = attention(query, attention.remember(outputs, torch.tensor(LENGTHS)))
        loss = (attended.context * numbers(B, 7, H, seed=4)).sum() + (attended.weights**2).sum()
        gradients = torch.autograd.grad(loss, [query, outputs, *attention.parameters()])
        found.append([attended.context, attended.weights, *gradients])
    for one, blocks in zip(*found, strict=True):
        torch.testing.assert_close(one, blocks, **TIGHT)


@pytest.mark.parametrize(("most", "kept"), [(1 << 22, B * 40 * S * H), (B * S * H, B * 40 * S)])
def test_blocks_keep_no_sums(most: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that the backward pass waits for: tanh of all sums, or in blocks only the weights."""
    monkeypatch.setattr(module, "_MOST_SUMS", most)
    held: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    attention, query = made("additive"), numbers(B, 40, H).requires_grad_()
    memory = attention.remember(numbers(S, B, H, seed=1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(query, memory)
    assert max(held) == kept


def test_the_memory_of_some_sources() -> None:
    attention = made("general")
    memory = attention.remember(numbers(S, B, H, seed=1), torch.tensor(LENGTHS))
    rows, query = torch.tensor([3, 0, 0]), numbers(B, T, H)
    torch.testing.assert_close(
        attention(query[rows], memory.select(rows)).context, attention(query, memory).context[rows]
    )
    everything = attention.remember(numbers(S, B, H, seed=1)).select(rows)
    assert everything.inside is None


def test_the_defaults_score_in_a_range_that_trains() -> None:
    """Queries and memory of unit variance: weights neither uniform nor on one position."""
    for kind in ("additive", "general", "concat"):
        torch.manual_seed(0)
        attention = Attention(kind, 64, 64)  # type: ignore[arg-type]
        weights = attention(torch.randn(8, 5, 64).tanh(), attention.remember(torch.randn(20, 8, 64).tanh())).weights
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean()
        assert 0.3 < float(entropy.detach()) < 3.0, kind  # log 20 = 2.996


# -- what is refused -------------------------------------------------------------------------------------------------


def test_misuse_is_refused(unchecked_shapes: None) -> None:
    with pytest.raises(
        UsageError, match="Attention: kind must be one of additive, dot, general, concat, got 'bilinear'"
    ):
        Attention("bilinear", 3, 3)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match='"dot" needs queries and memory of one size, got 3 and 4; take "general"'):
        Attention("dot", 3, 4)
    with pytest.raises(ShapeError, match=r"Attention: memory must be \(S, B, 3\), got \(5, 2, 4\)"):
        Attention("dot", 3, 3).remember(torch.zeros(5, 2, 4))
    with pytest.raises(ShapeError, match=r"Attention: memory must be \(S, B, 3\), got \(5, 3\)"):
        Attention("dot", 3, 3).remember(torch.zeros(5, 3))
    plain, covering = made("general"), made("general", coverage=True)
    query, outputs = numbers(B, T, H), numbers(S, B, H)
    with pytest.raises(UsageError, match="Attention: made without coverage, got some"):
        plain(query, plain.remember(outputs), numbers(B, S))
    with pytest.raises(UsageError, match="Attention: made with coverage, got none"):
        covering(query, covering.remember(outputs))


def test_what_it_is_made_of_is_told() -> None:
    assert repr(made("general", 2, coverage=True)) == "Attention('general', 3, 2, coverage=True)"
    assert repr(made("dot")) == "Attention('dot', 3, 3)"
