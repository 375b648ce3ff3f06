"""A cell through time."""

from throughtime.recurrence.lengths import checked_lengths, checked_resets
from throughtime.recurrence.placement import MemoryBudget
from throughtime.recurrence.unfold import unfold

__all__ = ["MemoryBudget", "checked_lengths", "checked_resets", "unfold"]
