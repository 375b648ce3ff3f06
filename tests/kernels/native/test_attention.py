"""The native attention against its equations in float64, and the laws that it keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.attention import PackedAttention, PackedMemory

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))


def some(sources: int, each: int, positions: int, units: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W, h, keys, values and the positions inside, of which the first source has none."""
    generator = torch.Generator().manual_seed(sources + each + positions + units)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inside = torch.rand(sources, positions, generator=generator) < 0.7
    inside[0] = False
    scale = units**-0.25
    return (
        normal(units, units) / units**0.5,
        normal(sources * each, units) * scale,
        normal(sources, positions, units) * scale,
        normal(sources, positions, units),
        inside,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (3, 2, 7, 5), (4, 5, 30, 64), (2, 20, 33, 150), (40, 7, 9, 129), (1, 13, 100, 33)]
)
def test_it_follows_the_equations(isa: str, sizes: tuple[int, int, int, int], masked: bool) -> None:
    sources, each, _, units = sizes
    weight, h, keys, values, inside = some(*sizes)
    found = PackedAttention(weight).attend(h, keys, values, inside if masked else None)
    queries = h.double().view(sources, each, units)
    scores = queries @ keys.double().mT
    if masked:
        scores = scores.masked_fill(~inside[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    expected = torch.tanh(weights @ values.double() + queries @ weight.double().T)
    torch.testing.assert_close(found.weights.double(), weights.flatten(0, 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.outputs.double(), expected.flatten(0, 1), rtol=0, atol=3e-6)


def test_rows_padding_and_threads_change_nothing(isa: str, threads: Callable[[int], None]) -> None:
    weight, h, keys, values, inside = some(12, 11, 40, 530)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(PackedAttention(weight).attend(h, keys, values, inside))
    for other in results[1:]:
        assert torch.equal(results[0].outputs, other.outputs)
        assert torch.equal(results[0].weights, other.weights)
    packed = PackedAttention(weight)
    one = packed.attend(h[44:55:11].contiguous(), keys[4:5], values[4:5], inside[4:5].contiguous())
    assert torch.equal(one.outputs, results[0].outputs[44:45])
    longer = [torch.cat([part, torch.full_like(part, 9)], 1) for part in (keys, values)]
    padded = packed.attend(h, *longer, torch.cat([inside, torch.zeros_like(inside)], 1))
    assert torch.equal(padded.outputs, results[0].outputs)
    assert torch.equal(padded.weights[:, :40], results[0].weights)
    assert not padded.weights[:, 40:].any()


def test_large_scores_do_not_overflow_and_what_is_no_number_stays() -> None:
    packed = PackedAttention(torch.zeros(2, 2))
    keys = torch.tensor([[[1e4, 0.0], [-1e4, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    h = torch.tensor([[100.0, 0.0], [torch.nan, 0.0]])
    found = packed.attend(h, keys, keys)
    assert found.weights[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-37)
    assert found.weights[1].isnan().all()
    assert found.outputs[1].isnan().all()


def test_nothing_to_attend_for() -> None:
    packed = PackedAttention(torch.zeros(2, 2))
    found = packed.attend(torch.empty(0, 2), torch.ones(3, 4, 2), torch.ones(3, 4, 2))
    assert found.outputs.shape == (0, 2)
    found = packed.attend(torch.ones(3, 2), torch.ones(3, 0, 2), torch.ones(3, 0, 2))
    assert found.weights.shape == (3, 0)
    assert not found.outputs.any()


def test_what_does_not_fit_is_refused() -> None:
    packed = PackedAttention(torch.zeros(2, 2))
    memory = torch.ones(2, 3, 2)
    with pytest.raises(ShapeError, match="as many rows for each"):
        packed.attend(torch.ones(3, 2), memory, memory)
    with pytest.raises(ShapeError, match="values must be"):
        packed.attend(torch.ones(4, 2), memory, memory.double())
    with pytest.raises(ShapeError, match=r"inside must be.*not contiguous"):
        packed.attend(torch.ones(4, 2), memory, memory, torch.ones(3, 2, dtype=torch.bool).T)
    with pytest.raises(ShapeError, match="weight must be"):
        PackedAttention(torch.zeros(2, 3))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 7, 5), (4, 30, 64), (40, 9, 129), (2, 200, 33)])
def test_memory_follows_the_equations(
    isa: str, threads: Callable[[int], None], sizes: tuple[int, int, int], masked: bool
) -> None:
    sources, positions, units = sizes
    of_values, _, m, _, inside = some(sources, 1, positions, units)
    of_keys = of_values.flip(0)
    real = inside if masked else torch.ones_like(inside)
    outputs = m.transpose(0, 1).contiguous()  # (S, G, H)
    packed = PackedMemory(of_keys, of_values)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(packed.remember(outputs, inside if masked else None))
    for name, weight in (("keys", of_keys), ("values", of_values)):
        expected = (m.double() @ weight.double().T) * real[..., None]
        found = [getattr(result, name) for result in results]
        torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-5)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    of_dot = PackedMemory(None, of_values).remember(outputs, inside if masked else None)
    assert torch.equal(of_dot.keys, m * real[..., None])
    assert torch.equal(of_dot.values, results[0].values)


def test_memory_of_nothing_and_of_what_does_not_fit() -> None:
    packed = PackedMemory(None, torch.eye(4))
    assert packed.remember(torch.zeros(5, 0, 4)).keys.shape == (0, 5, 4)
    assert packed.remember(torch.zeros(0, 3, 4)).values.shape == (3, 0, 4)
    assert not packed.remember(torch.ones(2, 3, 4), torch.zeros(3, 2, dtype=torch.bool)).values.any()
    with pytest.raises(ShapeError, match=r"PackedMemory: outputs must be \(2, 3, 4\) torch.float32, contiguous"):
        packed.remember(torch.zeros(2, 3, 5))
    with pytest.raises(ShapeError, match=r"PackedMemory: inside must be .* not contiguous"):
        packed.remember(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool).T)
    with pytest.raises(ShapeError, match=r"PackedMemory: of_keys must be \(4, 4\)"):
        PackedMemory(torch.eye(3), torch.eye(4))
