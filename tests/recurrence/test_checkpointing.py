"""tt.unfold(checkpoint=): the gradients of full BPTT, the placement of states, and what a budget holds."""

from __future__ import annotations

import heapq
from functools import cache
from itertools import count
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime import kernels
from throughtime.errors import EngineError, UsageError
from throughtime.kernels import Recurrence
from throughtime.kernels.native import library
from throughtime.recurrence import MemoryBudget
from throughtime.recurrence.checkpointing import run_checkpointed
from throughtime.recurrence.footprint import LiveTensors
from throughtime.recurrence.placement import Footprint, Placement, advances, first_border, within_budget

needs_native = pytest.mark.skipif(
    library.missing_reason() is not None, reason="bytes and rounding of the native engine, which is missing"
)

I, H = 2, 3  # noqa: E741


class OwnState(NamedTuple):
    h: Tensor
    memory: Tensor


class OwnCell(tt.Cell):
    """Two fields, one with an axis more; a first state that is learnt."""

    State = OwnState

    def __init__(self) -> None:
        super().__init__(I, H)
        self.U, self.W = nn.Linear(I, H), nn.Linear(H, H)
        self.start = nn.Parameter(torch.full((2, H), 0.1))

    def initial_state(self, batch_size: int, *, dtype: Any = None, device: Any = None) -> OwnState:
        return OwnState(torch.zeros(batch_size, H, dtype=dtype, device=device), self.start.expand(batch_size, 2, H))

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)

    def step(self, projected: Tensor, state: OwnState) -> OwnState:
        memory = 0.9 * state.memory + torch.stack([projected, self.W(state.h)], dim=1)
        return OwnState(torch.tanh(memory.sum(1)), memory)


class NativeCell(OwnCell):
    """One that the native engine takes."""

    def step(self, projected: Tensor, state: OwnState) -> OwnState:
        return OwnState(torch.tanh(projected + self.W(state.h)) * torch.sigmoid(state.memory), 0.5 * state.memory)

    def initial_state(self, batch_size: int, *, dtype: Any = None, device: Any = None) -> OwnState:
        return OwnState(*(torch.ones(batch_size, H, dtype=dtype, device=device) for _ in range(2)))


CELLS: dict[str, Any] = {
    "own": OwnCell,
    "own, native": NativeCell,
    "rnn": lambda: tt.nn.RNNCell(I, H, bias=False),
    "projected lstm": lambda: tt.nn.LSTMCell(I, H, proj_size=2, peepholes=True),
    "lstm": lambda: tt.nn.LSTMCell(I, H),
    "gru": lambda: tt.nn.GRUCell(I, H),
}


def made(kind: str) -> Any:
    torch.manual_seed(6)
    return CELLS[kind]().double()


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-9, atol=1e-11)


def everything(cell: Any, x: Tensor, loss: Any, **arguments: Any) -> list[Tensor]:
    """Outputs, the final state, and all gradients."""
    outputs, final = tt.unfold(cell, x, **arguments)
    wanted = [x, *(arguments.get("state") or ()), *cell.parameters()]
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    found = torch.autograd.grad(loss(outputs, final), wanted, allow_unused=True, materialize_grads=True)
    return [outputs, *final, *found]


LOSSES: dict[str, Any] = {
    "outputs": lambda outputs, final: outputs.sin().sum(),
    "final state": lambda outputs, final: sum(f.cos().sum() for f in final),
    "both": lambda outputs, final: outputs.sin().sum() + sum(f.cos().sum() for f in final),
    "early outputs": lambda outputs, final: outputs[:2].sum(),
}


# -- gradients ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.data())
def test_gradients_are_those_of_full_bptt(data: Any) -> None:
    draw = data.draw
    cell = made(draw(st.sampled_from(sorted(CELLS))))
    steps, batch = draw(st.integers(0, 9)), draw(st.integers(0, 3))
    x = torch.randn(steps, batch, I, dtype=torch.float64, requires_grad=draw(st.booleans()))
    arguments: dict[str, Any] = {"reverse": draw(st.booleans())}
    if draw(st.booleans()):
        state = cell.initial_state(batch, dtype=torch.float64)
        arguments["state"] = cell.State(*(torch.randn_like(field).requires_grad_() for field in state))
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
        arguments["lengths"] = torch.tensor(lengths, dtype=torch.int64)
    if not arguments["reverse"] and draw(st.booleans()):
        arguments["resets"] = torch.rand(steps, batch, generator=torch.Generator().manual_seed(1)) < 0.3
    loss = LOSSES[draw(st.sampled_from(sorted(LOSSES)))]
    checkpoint = draw(st.sampled_from(["sqrt", 1, 2, 4, 100, MemoryBudget(10**5), MemoryBudget(10**9)]))
    for engine in tt.kernels.engine_names():
        explained = tt.kernels.explain(cell, x, engine=engine, **arguments)
        if explained.engines != ("none",):
            full = everything(cell, x, loss, engine=engine, **arguments)
            same(everything(cell, x, loss, engine=engine, checkpoint=checkpoint, **arguments), full)


def test_masks_and_zoneout_are_part_of_the_call() -> None:
    layer = tt.nn.LSTM(I, H, recurrent_dropout=0.5, zoneout=0.3, weight_dropout=0.5, dtype=torch.float64)
    x = torch.randn(9, 2, I, dtype=torch.float64, requires_grad=True)
    call: Recurrence = next(iter(layer.recurrences(x)))[1]
    found = []
    for run in (kernels.run, lambda *given: run_checkpointed(*given, 3, who="LSTM")):
        unfolded = run(call, "auto")
        loss = unfolded.outputs.sin().sum() + unfolded.final_state.c.sum()
        found.append([*unfolded[:1], *torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True)])
    same(found[1], found[0])


class Noisy(OwnCell):
    """Draws random numbers from torch's generator and from one of its own, within the step and before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(nn.functional.dropout(inputs, 0.5))

    def step(self, projected: Tensor, state: OwnState) -> OwnState:
        noise = torch.randn(projected.shape, generator=self.generator, dtype=projected.dtype)
        after = super().step(projected + noise, state)
        return OwnState(nn.functional.dropout(after.h, 0.3), after.memory)


@pytest.mark.parametrize("checkpoint", ["sqrt", MemoryBudget(80_000)])
@pytest.mark.parametrize("again", [False, True])
def test_random_numbers_within_a_step_are_the_same_in_both_passes(checkpoint: Any, again: bool) -> None:
    torch.manual_seed(2)
    cell = Noisy().double()
    x = torch.randn(12, 2, I, dtype=torch.float64)
    weight = torch.linspace(-1, 1, H, dtype=torch.float64).requires_grad_()

    def loss(scaled: Tensor) -> Tensor:  # a function of the recurrent bias along one direction
        torch.manual_seed(7)
        cell.generator.manual_seed(8)
        cell.W.bias.data.copy_(scaled)
        return tt.unfold(cell, x, checkpoint=checkpoint)[0].sin().sum()

    total = loss(weight.detach())
    state_after = torch.get_rng_state(), cell.generator.get_state()
    total.backward(retain_graph=again)
    if again:
        cell.zero_grad()
        total.backward()
    for before, now in zip(state_after, (torch.get_rng_state(), cell.generator.get_state()), strict=True):
        assert torch.equal(before, now)
    found, small = cell.W.bias.grad.clone(), 1e-6
    with torch.no_grad():
        for unit in range(H):
            step = torch.zeros(H, dtype=torch.float64)
            step[unit] = small
            # Without a gradient there is no segment: random numbers of the inputs come in another order.
            with torch.enable_grad():
                slope = (loss(weight.detach() + step) - loss(weight.detach() - step)).detach() / (2 * small)
            torch.testing.assert_close(found[unit], slope, rtol=1e-5, atol=1e-6)


def test_a_graph_can_be_gone_through_twice_and_gradients_be_differentiated() -> None:
    for kind, reverse in (("lstm", False), ("own", True)):
        cell = made(kind)
        x = torch.randn(7, 2, I, dtype=torch.float64, requires_grad=True)
        found = []
        for checkpoint in (None, 3, MemoryBudget(60_000)):
            outputs, _ = tt.unfold(cell, x, reverse=reverse, checkpoint=checkpoint)
            loss = outputs.sin().sum()
            first = torch.autograd.grad(loss, [x, *cell.parameters()], retain_graph=True)
            second = torch.autograd.grad(loss, [x, *cell.parameters()], retain_graph=True)
            same(second, first)
            (to_differentiate,) = torch.autograd.grad(loss, x, create_graph=True)
            found.append([*first, *torch.autograd.grad(to_differentiate.square().sum(), [x, *cell.parameters()])])
        same(found[1], found[0])
        same(found[2], found[0])


def test_finite_differences() -> None:
    cell = made("gru")
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tt.unfold(cell, x, lengths=[3, 1], checkpoint=2)[0], [x])
    assert torch.autograd.gradgradcheck(lambda x: tt.unfold(cell, x, lengths=[3, 1], checkpoint=2)[1][0], [x])


@needs_native
def test_under_autocast_segments_run_in_its_precision() -> None:
    torch.manual_seed(1)
    cell, x = tt.nn.LSTMCell(8, 8), torch.randn(12, 2, 8)
    found = []
    for checkpoint in (None, 3):
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _ = tt.unfold(cell, x, checkpoint=checkpoint)
        cell.zero_grad()
        outputs.sum().backward()
        found.append([outputs, cell.weight_hh.grad])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_weights_of_low_precision_get_sums_of_higher() -> None:
    torch.manual_seed(1)
    cell, x = tt.nn.RNNCell(2, 2), torch.ones(9, 1, 2)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    cell.bfloat16()
    of_outputs = torch.tensor([1.0] * 8 + [256.0]).bfloat16()[:, None, None].expand(9, 1, 2)
    tt.unfold(cell, x.bfloat16(), checkpoint=9)[0].backward(of_outputs)
    # 256 + 1 is 256 in bfloat16, and 256 + 8 is 264.
    assert cell.bias_hh.grad.tolist() == [264, 264]


def test_a_weight_changed_before_the_backward_pass_is_noticed() -> None:
    cell = made("lstm")
    outputs, _ = tt.unfold(cell, torch.randn(9, 2, I, dtype=torch.float64), checkpoint=3)
    with torch.no_grad():
        cell.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


# -- placement ---------------------------------------------------------------------------------------------------------


def least_by_search(segments: int, snapshots: int) -> int:
    """The fewest segments run for a state alone, by trying everything: Dijkstra over all that may be done."""
    # Where we stand, which states are kept, and which segment is to be differentiated next.
    begin: tuple[int, frozenset[int], int] = (0, frozenset(), segments - 1)
    tie = count()
    queue, done = [(0, next(tie), begin)], set()
    while queue:
        cost, _, now = heapq.heappop(queue)
        if now in done:
            continue
        done.add(now)
        place, kept, target = now
        if target < 0:
            return cost
        following = [(1, (place + 1, kept, target))] if place < target else []
        following += [(0, (back, kept, target)) for back in {0, *kept}]
        following += [(0, (place, kept - {one}, target)) for one in kept]
        if len(kept) < snapshots:
            following.append((0, (place, kept | {place}, target)))
        if place == target:
            following.append((0, (0, kept, target - 1)))
        for more, after in following:
            heapq.heappush(queue, (cost + more, next(tie), after))
    raise AssertionError


@pytest.mark.parametrize("snapshots", range(3))
def test_no_order_of_running_runs_fewer_segments(snapshots: int) -> None:
    for segments in range(1, 7):
        assert advances(segments, snapshots) == least_by_search(segments, snapshots)


def test_the_closed_form_is_the_dynamic_program() -> None:
    @cache
    def least(segments: int, snapshots: int) -> int:
        if segments == 1 or not snapshots:
            return segments * (segments - 1) // 2
        return min(split(k, segments, snapshots) for k in range(1, segments))

    def split(k: int, segments: int, snapshots: int) -> int:
        return k + least(segments - k, snapshots - 1) + least(k, snapshots)

    for segments in range(1, 40):
        for snapshots in range(8):
            assert advances(segments, snapshots) == least(segments, snapshots)
            if segments > 1 and snapshots:
                assert split(first_border(segments, snapshots), segments, snapshots) == least(segments, snapshots)


@pytest.mark.parametrize(("segments", "snapshots"), [(9, 8), (9, 2), (10, 1), (5, 0)])
def test_as_many_segments_are_run_as_the_placement_says(
    segments: int, snapshots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement, runs = Placement(segments, snapshots), []
    monkeypatch.setattr("throughtime.recurrence.checkpointing.every_border", lambda _: placement)
    run = kernels.run

    def counted(call: Recurrence, engine: str) -> Any:
        runs.append((len(call.inputs), torch.is_grad_enabled()))
        return run(call, engine)

    monkeypatch.setattr("throughtime.kernels.run", counted)
    x = torch.randn(23, 1, I)
    outputs, _ = tt.unfold(tt.nn.RNNCell(I, H), x, checkpoint=segments)
    assert sum(steps for steps, _ in runs) == 23  # once each
    outputs.sum().backward()
    for_states = [steps for steps, differentiable in runs if not differentiable]
    assert len(for_states) == advances(segments, snapshots)
    assert sum(steps for steps, differentiable in runs if differentiable) == 23
    assert max(for_states) == -(-23 // segments)


def test_a_budget_takes_the_cheapest_placement_that_fits() -> None:
    footprint = Footprint(fixed=10, of_a_step=5, of_a_state=2)
    assert within_budget(100, MemoryBudget(510), footprint, who="x") == Placement(1, 0)  # all fits
    for budget in (15, 16, 20, 40, 80, 200, 509):
        found = within_budget(100, MemoryBudget(budget), footprint, who="x")
        longest = max(end - begin for begin, end in found.spans(100))
        assert footprint.of_segment(longest) + found.snapshots * footprint.of_a_state <= budget
    more = [within_budget(10**6, MemoryBudget(b), footprint, who="x") for b in (10**3, 10**4, 10**5)]
    again = [advances(p.segments, p.snapshots) / p.segments for p in more]
    assert again == sorted(again, reverse=True)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "engine", "share"),
    [
        ("lstm", "auto", 0.3),
        ("lstm", "auto", 0.5),
        ("lstm", "torch", 0.5),
        ("gru", "reference", 0.4),
        ("own", "auto", 0.4),
        ("own, native", "auto", 0.4),
    ],
)
def test_what_is_alive_at_once_fits_into_the_budget(kind: str, engine: str, share: float) -> None:
    cell = made(kind)
    x = torch.randn(40, 256, I, dtype=torch.float64, requires_grad=True)
    state = [field.detach() for field in cell.initial_state(256, dtype=torch.float64)]

    def peak(checkpoint: Any) -> int:
        with LiveTensors() as live:
            outputs, final = tt.unfold(cell, x, state, engine=engine, checkpoint=checkpoint)
            outputs.backward(of_outputs)
        x.grad = None
        cell.zero_grad()
        return live.peak - 8 * (outputs.numel() + x.numel() + sum(field.numel() for field in final))

    of_outputs = torch.randn(40, 256, H, dtype=torch.float64)
    full = peak(None)
    budget = int(share * full)
    of_parameters = 4 * sum(8 * parameter.numel() for parameter in cell.parameters())
    taken = peak(MemoryBudget(budget))
    assert taken <= budget + of_parameters
    assert taken >= 0.4 * budget  # it is made use of


@needs_native
def test_a_loss_on_the_final_state_makes_no_gradient_of_all_outputs() -> None:
    cell = tt.nn.LSTMCell(I, 16)
    outputs, final = tt.unfold(cell, torch.randn(400, 4, I), checkpoint="sqrt")
    with LiveTensors() as live:
        final.h.sum().backward()
    assert live.peak < outputs.numel() * 4


# -- misuse ------------------------------------------------------------------------------------------------------------

BAD = (
    r"RNNCell: checkpoint must be 'sqrt', a number of segments of at least 1, or a MemoryBudget, got {}; a budget of N"
)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"checkpoint": 0}, UsageError, BAD.format("0")),
        ({"checkpoint": True}, UsageError, BAD.format("True")),
        ({"checkpoint": "log"}, UsageError, BAD.format("'log'")),
        ({"checkpoint": 2.0}, UsageError, BAD.format("2.0")),
        (
            {"checkpoint": MemoryBudget(100)},
            UsageError,
            r"RNNCell: checkpoint must be a budget of at least (\d+) bytes, which one time step takes, got 100; "
            r"use MemoryBudget\(\1\) or more, or a smaller batch",
        ),
        ({"checkpoint": 2, "engine": "cuda"}, EngineError, "RNNCell: engine must be one of"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_misuse_is_told_in_one_line(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tt.unfold(tt.nn.RNNCell(I, H), torch.zeros(9, 2, I), **arguments)


def test_the_least_budget_that_the_error_names_is_enough() -> None:
    cell, x = tt.nn.RNNCell(I, H), torch.zeros(9, 2, I)
    with pytest.raises(UsageError, match="at least") as caught:
        tt.unfold(cell, x, checkpoint=MemoryBudget(1))
    least = int(str(caught.value).split("at least ")[1].split()[0])
    tt.unfold(cell, x, checkpoint=MemoryBudget(least))[0].sum().backward()
    with pytest.raises(UsageError, match="at least"):
        tt.unfold(cell, x, checkpoint=MemoryBudget(least - 1))


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "256MiB"])
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_budget_is_a_number_of_bytes(bad: Any) -> None:
    with pytest.raises(UsageError, match="MemoryBudget: expected a whole number of bytes of at least 1, got "):
        MemoryBudget(bad)


class Foreign(OwnCell):
    """Uses what is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def step(self, projected: Tensor, state: OwnState) -> OwnState:
        return super().step(self.scale * projected, state)


def test_a_gradient_that_would_be_missing_is_an_error() -> None:
    x = torch.zeros(9, 2, I, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"Foreign: checkpoint= finds gradients of parameters only, and step\(\) uses"):
        tt.unfold(Foreign().double(), x, checkpoint=2)
    cell = made("lstm")
    mask = torch.ones(2, H, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UsageError, match="LSTM: checkpoint= has no gradient of masks"):
        run_checkpointed(cell.recurrence(x, recurrent_mask=mask), "auto", 2, who="LSTM")
    with pytest.raises(UsageError, match="LSTM: checkpoint= cannot hand out every state and gate"):
        run_checkpointed(cell.recurrence(x, record=True), "auto", 2, who="LSTM")
    with pytest.raises(UsageError, match=r"LSTMCell: checkpoint= does not work under torch\.func"):
        torch.func.grad(lambda x: tt.unfold(cell, x, checkpoint=2)[0].sum())(x)
