"""`PackedSequence` in and out."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def unpack(packed: PackedSequence, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The padded tensor, rows in the caller's own order, and the lengths (B,)."""
    return pad_packed_sequence(packed, batch_first=batch_first)


def pack_like(outputs: Tensor, lengths: Tensor, example: PackedSequence, batch_first: bool) -> PackedSequence:
    """`outputs`, padded, packed in the order of `example`, so that both go together element by element."""
    order = example.sorted_indices
    if order is not None:
        outputs = outputs.index_select(0 if batch_first else 1, order)
        lengths = lengths[order.cpu()]
    packed = pack_padded_sequence(outputs, lengths, batch_first=batch_first)
    return PackedSequence(packed.data, example.batch_sizes, order, example.unsorted_indices)
