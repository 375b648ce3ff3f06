"""return_states="all": h, c and gates of every layer, direction and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import throughtime as tt

T, B, I, H = 4, 3, 2, 3  # noqa: E741
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "lstm with everything": ("LSTM", {"proj_size": 2, "peepholes": True, "layer_norm": True}),
    "gru": ("GRU", {}),
    "gru of 2014": ("GRU", {"reset_after": False}),
}


def made(case: str, **options: Any) -> Any:
    torch.manual_seed(1)
    name, own = CASES[case]
    return getattr(tt.nn, name)(I, H, dtype=torch.float64, **own, **options)


def own_cell(layer: Any, suffix: str, size: int) -> Any:
    """The cell of one layer and direction, by itself."""
    options = {"proj_size": layer.proj_size, "peepholes": layer.peepholes} if isinstance(layer, tt.nn.LSTM) else {}
    if isinstance(layer, tt.nn.GRU):
        options["reset_after"] = layer.reset_after
    cell = layer.cell_type(size, H, dtype=torch.float64, layer_norm=layer.layer_norm, **options)
    named = {name.removesuffix(suffix): w for name, w in layer.state_dict().items() if name.endswith(suffix)}
    cell.load_state_dict(named, strict=True)
    return cell


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_they_are_what_stepping_the_cell_by_hand_gives(case: str, engine: str) -> None:
    layer = made(case, num_layers=2, bidirectional=True, engine=engine)
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), [2, 4, 0]
    outputs, final, states = layer(x, lengths=lengths, return_states="all")
    assert len(states) == 2
    assert all(len(directions) == 2 for directions in states)
    for number, directions in enumerate(states):
        for direction, found in enumerate(directions):
            cell = own_cell(layer, f"_l{number}" + ("_reverse" if direction else ""), x.shape[-1])
            for b, length in enumerate(lengths):
                state = cell.initial_state(1, dtype=torch.float64)
                for t in range(length)[:: -1 if direction else 1]:
                    step = cell.bind().advance(cell.project_inputs(x[t, b : b + 1]), state, None)
                    state, gates = step
                    torch.testing.assert_close(found.h[t, b], state[0][0])
                    if len(state) > 1:
                        torch.testing.assert_close(found.c[t, b], state[1][0])
                    for name, gate in gates._asdict().items():
                        torch.testing.assert_close(getattr(found.gates, name)[t, b], gate[0])
                fields = [final] if isinstance(final, Tensor) else final
                for field, own in zip(fields, state, strict=True):
                    torch.testing.assert_close(field[2 * number + direction, b], own[0])
                tensors = [found.h, *found.gates, *([] if found.c is None else [found.c])]
                assert not any(tensor[length:, b].any() for tensor in tensors)
        x = torch.cat([found.h for found in directions], dim=-1)
    torch.testing.assert_close(outputs, x)


@pytest.mark.parametrize("case", CASES)
def test_the_last_layers_h_are_the_outputs_whatever_the_layout(case: str) -> None:
    layer, turned = made(case), made(case, batch_first=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    outputs, final, states = layer(x, return_states="all")
    assert torch.equal(states[-1][0].h, outputs)
    torch.testing.assert_close(layer(x)[0], outputs)
    swapped, final_turned, found = turned(x.transpose(0, 1), return_states="all")
    torch.testing.assert_close(swapped, outputs.transpose(0, 1))
    torch.testing.assert_close(found[0][0].h, swapped)
    torch.testing.assert_close(final_turned, final)
    for gate in found[0][0].gates:
        assert gate.shape == (B, T, H)
    single, _, one = layer(x[:, 1], return_states="all")
    torch.testing.assert_close(single, outputs[:, 1])
    torch.testing.assert_close(one[0][0].h, single)
    for gate, batch in zip(one[0][0].gates, states[0][0].gates, strict=True):
        torch.testing.assert_close(gate, batch[:, 1])


def test_only_an_lstm_has_a_memory_and_each_kind_its_gates() -> None:
    x = torch.randn(T, B, I, dtype=torch.float64)
    kinds = {case: made(case)(x, return_states="all")[2][0][0] for case in ("rnn", "lstm", "gru")}
    assert {case: found.gates._fields for case, found in kinds.items()} == {
        "rnn": (),
        "lstm": ("i", "f", "g", "o"),
        "gru": ("r", "z", "n"),
    }
    assert [found.c is None for found in kinds.values()] == [True, False, True]


def test_of_a_packed_sequence_they_are_padded_in_the_callers_order() -> None:
    layer = made("lstm")
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, 4, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    _, _, found = layer(packed, return_states="all")
    _, _, expected = layer(x, lengths=lengths, return_states="all")
    assert torch.equal(found[0][0].h, expected[0][0].h)
    assert torch.equal(found[0][0].gates.o, expected[0][0].gates.o)


def test_of_no_steps_they_are_empty() -> None:
    outputs, _, states = made("lstm")(torch.zeros(0, B, I, dtype=torch.float64), return_states="all")
    assert outputs.shape == states[0][0].c.shape == states[0][0].gates.f.shape == (0, B, H)


def test_gradients_flow_through_them() -> None:
    layer = made("gru")
    _, _, states = layer(torch.randn(T, B, I, dtype=torch.float64), return_states="all")
    states[0][0].gates.z.sum().backward()
    assert layer.weight_hh_l0.grad[H : 2 * H].any()
