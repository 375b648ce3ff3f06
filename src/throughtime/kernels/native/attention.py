"""Attention of the rows of a beam, and what a decoder makes of it, in C++: the rest of a step besides its layers.

    k_j, v_j = W_a m_j, W_c m_j            once for each position j inside a source

    α_j(t) = softmax_j h(t)·k_j            over the positions inside the source
    h̃(t)   = tanh(Σ_j α_j(t) v_j + W h(t))

This is Luong's attention, "dot" (W_a the unit matrix) or "general", and the layer behind it (Luong, Pham & Manning
2015, eqs. 5 and 8). Rows of one source look at one memory, which comes from far once for all of them. Results depend
neither on the rows beside one nor on the number of threads, nor on positions outside the source; nothing here is
differentiable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.tensors import check_tensor, float_tensor


class Attended(NamedTuple):
    """h̃(t) and α(t), zero outside; all zero where nothing is inside."""

    outputs: Float32[Tensor, "N H"]
    weights: Float32[Tensor, "N S"]


class Remembered(NamedTuple):
    """Keys and values of all positions, zero outside."""

    keys: Float32[Tensor, "G S H"]
    values: Float32[Tensor, "G S H"]


class PackedMemory:
    """W_a and W_c of the above (H, H), copied once into the order in which the products read them.

        >>> import torch
        >>> memory = PackedMemory(None, 2 * torch.eye(2))
        >>> memory.remember(torch.ones(3, 1, 2), torch.tensor([[True, True, False]])).values[0].tolist()
        [[2.0, 2.0], [2.0, 2.0], [0.0, 0.0]]

    Args:
        of_keys: W_a (H, H) float32 on the CPU; None for the unit matrix.
        of_values: W_c, the same.

    Raises:
        EngineError: the native engine is not there.
        ShapeError: a weight of another shape or type.
    """

    def __init__(self, of_keys: Tensor | None, of_values: Tensor) -> None:
        self.hidden_size = len(of_values)
        given = {"of_keys": of_keys, "of_values": of_values}
        held = {name: weight.detach().contiguous() for name, weight in given.items() if weight is not None}
        for name, weight in held.items():
            check_tensor(f"PackedMemory: {name}", weight, (self.hidden_size, self.hidden_size))
        addresses = [held[name].data_ptr() if name in held else 0 for name in given]
        self._native: Any = library.load().PackedMemory(*addresses, self.hidden_size, torch.get_num_threads())

    def remember(self, outputs: Float[Tensor, "S G H"], inside: Bool[Tensor, "G S"] | None = None) -> Remembered:
        """Keys and values of what an encoder has made, m; `inside` false on padding.

        Raises:
            ShapeError: tensors that do not fit each other, or are not contiguous on the CPU, float32 and bool.
        """
        positions, sources = outputs.shape[:2]
        check_tensor("PackedMemory: outputs", outputs, (positions, sources, self.hidden_size))
        given = {"outputs": outputs}
        if inside is not None:
            check_tensor("PackedMemory: inside", inside, (sources, positions), torch.bool)
            given["inside"] = inside
        made = Remembered(*(float_tensor(sources, positions, self.hidden_size) for _ in Remembered._fields))
        addresses = {name: tensor.data_ptr() for name, tensor in (given | made._asdict()).items()}
        self._native.remember((sources, positions), addresses, torch.get_num_threads())
        return made


class PackedAttention:
    """W of the above (H, H), copied once into the order in which the product reads it.

        >>> import torch
        >>> attention = PackedAttention(torch.zeros(2, 2))
        >>> memory = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> attention.attend(torch.zeros(3, 2), memory, memory).weights[0]
        tensor([0.5000, 0.5000])

    Args:
        weight: (H, H) float32 on the CPU.

    Raises:
        EngineError: the native engine is not there.
        ShapeError: a weight of another shape or type.
    """

    def __init__(self, weight: Tensor) -> None:
        self.hidden_size = len(weight)
        weight = weight.detach().contiguous()
        check_tensor("PackedAttention: weight", weight, (self.hidden_size, self.hidden_size))
        self._native: Any = library.load().PackedAttention(weight.data_ptr(), self.hidden_size, torch.get_num_threads())

    def attend(
        self,
        h: Float[Tensor, "N H"],
        keys: Float[Tensor, "G S H"],
        values: Float[Tensor, "G S H"],
        inside: Bool[Tensor, "G S"] | None = None,
    ) -> Attended:
        """One step of N = G · K rows, K in a row for each of G sources of S positions; `inside` false on padding.

        Raises:
            ShapeError: tensors that do not fit each other, or are not contiguous on the CPU, float32 and bool.
        """
        sources, positions, rows = len(keys), keys.shape[1], len(h)
        if rows % max(1, sources) or (rows and not sources):
            raise ShapeError(f"PackedAttention: h must have as many rows for each of {sources} sources, got {rows}")
        given = {"h": h, "keys": keys, "values": values}
        memory = (sources, positions, self.hidden_size)
        for (name, tensor), shape in zip(given.items(), ((rows, self.hidden_size), memory, memory), strict=True):
            check_tensor(f"PackedAttention: {name}", tensor, shape)
        if inside is not None:
            check_tensor("PackedAttention: inside", inside, (sources, positions), torch.bool)
            given["inside"] = inside
        found = Attended(float_tensor(rows, self.hidden_size), float_tensor(rows, positions))
        if rows:
            addresses = {name: tensor.data_ptr() for name, tensor in (given | found._asdict()).items()}
            self._native.attend((sources, rows // sources, positions), addresses, torch.get_num_threads())
        return found
