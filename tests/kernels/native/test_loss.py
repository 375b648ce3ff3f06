"""The native loss against the plain one in float64, and as an operator among PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from throughtime.kernels.native import library, loss
from throughtime.kernels.native.loss import linear_cross_entropy, plain_linear_cross_entropy, refusal

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

IGNORED = -100
SIZES = (1, 3, 17, 100, 129)
# The largest error allowed, relative to the largest value of each result.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}

Compute = Callable[..., Tensor]


class Problem(NamedTuple):
    h: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    d_nats: Tensor


def problem_of(positions: int, units: int, words: int, *, bias: bool = True, ignored: float = 0.2) -> Problem:
    """Leaves in float64; logits spread over several nats."""
    generator = torch.Generator().manual_seed(positions + 7 * units + 49 * words)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(words, (positions,), generator=generator)
    targets[torch.rand(positions, generator=generator) < ignored] = IGNORED
    return Problem(
        normal(positions, units),
        normal(words, units) * 3 / units**0.5,
        normal(words) if bias else None,
        targets,
        normal(positions),
    )


def results(compute: Compute, problem: Problem, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The losses and every gradient, the operands in `dtype`."""
    h, weight, bias = (t if t is None else t.to(dtype, copy=True).requires_grad_() for t in problem[:3])
    leaves = [t for t in (h, weight, bias) if t is not None]
    nats = compute(h, weight, bias, problem.targets, IGNORED)
    return [nats.detach(), *torch.autograd.grad(nats, leaves, problem.d_nats.to(nats.dtype))]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    assert [t.shape for t in found] == [t.shape for t in expected]
    return all(
        bool(((one - other).abs() <= tolerance * max(1.0, float(other.abs().max()))).all())
        for one, other in zip(found, expected, strict=True)
        if other.numel()
    )


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Whatever number of threads a test sets is its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads take part, however little there is to do."""
    monkeypatch.setattr(loss, "_SMALL", 0)


kept_or_not = pytest.mark.parametrize("kept_bytes", [1 << 25, -1], ids=["kept", "computed again"])


@kept_or_not
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=40)
@given(
    positions=st.sampled_from(SIZES),
    units=st.sampled_from(SIZES),
    words=st.sampled_from(SIZES),
    bias=st.booleans(),
    ignored=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_losses_and_gradients_are_those_of_the_plain_path(
    kept_bytes: int, dtype: torch.dtype, positions: int, units: int, words: int, bias: bool, ignored: float
) -> None:
    problem = problem_of(positions, units, words, bias=bias, ignored=ignored)
    expected = results(plain_linear_cross_entropy, problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_KEPT_BYTES", kept_bytes)
        found = results(linear_cross_entropy, problem, dtype)
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(gradient.dtype == dtype for gradient in found[1:])
    assert close(found, expected, TOLERANCES[dtype])


@kept_or_not
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(2500, 5, 40), (40, 5, 2000), (1300, 33, 1900)], ids=str)
def test_more_positions_and_words_than_one_block_holds(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(loss, "_KEPT_BYTES", kept_bytes)
    problem = problem_of(*sizes)
    expected = results(plain_linear_cross_entropy, problem)
    assert close(results(linear_cross_entropy, problem, dtype), expected, TOLERANCES[dtype])


@kept_or_not
@pytest.mark.usefixtures("always_shared")
@pytest.mark.parametrize("sizes", [(1, 3, 17), (129, 100, 129), (1300, 17, 1000)], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int, sizes: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(loss, "_KEPT_BYTES", kept_bytes)
    problem = problem_of(*sizes)
    torch.set_num_threads(1)
    alone = results(linear_cross_entropy, problem, torch.float32)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        together = results(linear_cross_entropy, problem, torch.float32)
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("isa", library.available_isas())
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_instruction_set_that_this_processor_runs(
    monkeypatch: pytest.MonkeyPatch, isa: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(library, "load", lambda: library.load_isa(isa))
    problem = problem_of(129, 100, 1000)
    expected = results(plain_linear_cross_entropy, problem)
    assert close(results(linear_cross_entropy, problem, dtype), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("sizes", [(0, 3, 5), (4, 3, 5)], ids=["empty", "all ignored"])
def test_no_position_that_counts(sizes: tuple[int, int, int]) -> None:
    for result in results(linear_cross_entropy, problem_of(*sizes, ignored=1.0), torch.float32):
        assert torch.equal(result, torch.zeros_like(result))


def test_the_losses_of_a_large_vocabulary_are_exact_to_rounding() -> None:
    problem = problem_of(50, 64, 20_000, ignored=0)
    expected = plain_linear_cross_entropy(*problem[:4], IGNORED)
    found = linear_cross_entropy(*(t if t is None else t.float() for t in problem[:3]), problem.targets, IGNORED)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_words_that_are_ruled_out() -> None:
    """A bias of −∞, also where a whole vector's words are ruled out before any other."""
    problem = problem_of(17, 3, 129, ignored=0)
    problem.bias[:100] = -torch.inf
    problem.targets.clamp_(min=100)
    expected = results(plain_linear_cross_entropy, problem)
    assert close(results(linear_cross_entropy, problem, torch.float32), expected, TOLERANCES[torch.float32])
    problem.targets[0] = 0
    assert linear_cross_entropy(*problem[:4], IGNORED)[0] == torch.inf


def test_what_is_not_finite_shows() -> None:
    problem = problem_of(17, 3, 129, ignored=0)
    problem.h[2, 1] = torch.nan
    nats, *gradients = results(linear_cross_entropy, problem, torch.float32)
    assert nats.isnan().tolist() == [position == 2 for position in range(17)]
    assert all(gradient.isnan().any() for gradient in gradients)


def test_ignored_positions_are_not_looked_at() -> None:
    problem = problem_of(17, 3, 129)
    expected = results(linear_cross_entropy, problem)
    problem.h[problem.targets == IGNORED] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(results(linear_cross_entropy, problem), expected, strict=True))


def test_tensors_in_any_layout() -> None:
    problem = problem_of(17, 100, 129)
    expected = results(linear_cross_entropy, problem)
    turned = Problem(
        problem.h.T.contiguous().T,
        problem.weight.repeat(2, 1)[::2].copy_(problem.weight),
        problem.bias.repeat_interleave(2)[::2],
        problem.targets.repeat_interleave(2)[::2],
        problem.d_nats.repeat_interleave(2)[::2],
    )
    assert not any(tensor.is_contiguous() for tensor in turned)

    def compute(h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, ignored: int) -> Tensor:
        h, weight, bias = h.T.contiguous().T, weight.repeat_interleave(2, 0)[::2], bias.repeat_interleave(2)[::2]
        return linear_cross_entropy(h, weight, bias, targets, ignored)

    assert all(torch.equal(a, b) for a, b in zip(results(compute, turned), expected, strict=True))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_of_what_is_not_frozen(wanted: tuple[bool, bool, bool]) -> None:
    problem = problem_of(17, 3, 129)
    _, *all_gradients = results(linear_cross_entropy, problem)
    leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip(problem[:3], wanted, strict=True)]
    torch.autograd.backward(linear_cross_entropy(*leaves, problem.targets, IGNORED), problem.d_nats)
    for leaf, expected, want in zip(leaves, all_gradients, wanted, strict=True):
        assert torch.equal(leaf.grad, expected) if want else leaf.grad is None


def test_logits_are_kept_where_a_gradient_may_come_and_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    call = loss._call
    monkeypatch.setattr(loss, "_call", lambda *given: (kept.append("logits" in given[3]), call(*given)))
    h, weight, bias, targets, _ = problem_of(17, 3, 129)
    linear_cross_entropy(h, weight, bias, targets, IGNORED)
    linear_cross_entropy(h.requires_grad_(), weight, bias, targets, IGNORED)
    with torch.no_grad():
        linear_cross_entropy(h, weight, bias, targets, IGNORED)
    monkeypatch.setattr(loss, "_KEPT_BYTES", 17 * 129 * 8 - 1)
    linear_cross_entropy(h, weight, bias, targets, IGNORED)
    assert kept == [False, True, False, False]


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    problem = problem_of(17, 3, 129)
    leaves = [tensor.requires_grad_() for tensor in problem[:3]]
    nats = linear_cross_entropy(*leaves, problem.targets, IGNORED)
    first = torch.autograd.grad(nats, leaves, problem.d_nats, retain_graph=True)
    second = torch.autograd.grad(nats, leaves, problem.d_nats)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_second_derivatives() -> None:
    problem = problem_of(5, 3, 7)
    leaves = tuple(tensor.requires_grad_() for tensor in problem[:3])

    def compute(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(h, weight, bias, problem.targets, IGNORED)

    assert torch.autograd.gradcheck(compute, leaves)
    assert torch.autograd.gradgradcheck(compute, leaves)


def test_second_derivatives_where_h_comes_from_the_weight() -> None:
    """As with tied embeddings: the path through h is followed once."""
    weight = problem_of(5, 3, 7).weight.requires_grad_()
    targets = torch.tensor([0, 6, IGNORED, 2])

    def twice(compute: Compute) -> Tensor:
        nats = compute(weight[:4].tanh(), weight, None, targets, IGNORED)
        (first,) = torch.autograd.grad(nats.sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        return second

    torch.testing.assert_close(twice(linear_cross_entropy), twice(plain_linear_cross_entropy))


# -- among PyTorch's operators -------------------------------------------------------------------------------------


@kept_or_not
def test_it_is_a_lawful_operator(kept_bytes: int) -> None:
    problem = problem_of(17, 3, 129)
    h, weight, bias = (tensor.float().requires_grad_() for tensor in problem[:3])
    operator = torch.ops.throughtime.linear_cross_entropy
    torch.library.opcheck(operator, ("float32", IGNORED, h, weight, bias, problem.targets, kept_bytes > 0))
    torch.library.opcheck(operator, ("float32", IGNORED, h, weight, None, problem.targets, kept_bytes > 0))


def test_under_autocast_products_are_of_bfloat16() -> None:
    problem = problem_of(129, 100, 1000)

    def autocast(compute: Compute) -> Compute:
        def inner(*given: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return compute(*given)

        return inner

    expected = results(plain_linear_cross_entropy, problem)
    exact = results(linear_cross_entropy, problem, torch.float32)
    found = results(autocast(linear_cross_entropy), problem, torch.float32)
    theirs = results(autocast(plain_linear_cross_entropy), problem, torch.float32)
    assert all(result.dtype == torch.float32 for result in found)
    assert not close(found, exact, 1e-4)
    assert close(found, expected, TOLERANCES[torch.bfloat16])
    assert close(found, theirs, TOLERANCES[torch.bfloat16])
    # float64 is left alone, as autocast leaves it.
    assert close(results(autocast(linear_cross_entropy), problem), expected, TOLERANCES[torch.float64])


def test_compiled_it_is_one_node() -> None:
    problem = problem_of(17, 3, 129)
    torch._dynamo.reset()
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    expected = results(linear_cross_entropy, problem)
    assert all(torch.equal(a, b) for a, b in zip(results(compiled, problem), expected, strict=True))


def test_a_target_out_of_bounds() -> None:
    h, weight, bias, targets, _ = problem_of(17, 3, 129)
    for wrong in (129, -1):
        targets[3] = wrong
        with pytest.raises(
            IndexError, match=rf"linear_cross_entropy: targets must be 0 to 128, or -100 where none counts, got {wrong}"
        ):
            linear_cross_entropy(h, weight, bias, targets, IGNORED)


# -- what it refuses ---------------------------------------------------------------------------------------------


def test_what_it_takes_and_what_it_refuses() -> None:
    h, weight, bias, targets, _ = problem_of(17, 3, 129)
    assert refusal(h, weight, bias, targets) is None
    assert refusal(h, weight, None, targets) is None
    assert refusal(h.to("meta"), weight, bias, targets) == "the native engine is for processors, a tensor is on meta"
    assert refusal(h, weight, bias, targets.int()) == "the native engine takes targets of int64, got torch.int32"
    assert refusal(h.half(), weight, bias, targets) == (
        "the native engine computes in float32, float64 and bfloat16, not in torch.float16"
    )
    assert refusal(h.float(), weight, bias, targets) == "the native engine takes h, weight and bias of one type"
    with torch.autocast("cpu", torch.bfloat16):
        assert refusal(h.bfloat16(), weight.float(), bias.float(), targets) is None
    with torch.autocast("cpu", torch.float16):
        assert refusal(h, weight, bias, targets) == "the native engine has no autocast to torch.float16"


def test_it_refuses_where_it_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing_reason", lambda: "nothing is built")
    assert refusal(*problem_of(1, 1, 1)[:4]) == "nothing is built"


def test_it_refuses_transforms_that_cannot_see_into_an_operator() -> None:
    h, weight, bias, targets, _ = problem_of(17, 3, 129)
    reasons = []

    def compute(h: Tensor) -> Tensor:
        reasons.append(refusal(h, weight, bias, targets))
        return h.sum()

    torch.func.grad(compute)(h)
    with torch.autograd.forward_ad.dual_level():
        compute(h)
    assert reasons == [
        "the native engine does not work under torch.func transforms",
        "the native engine has no forward-mode derivative",
    ]
