"""A cell through time."""

from throughtime.recurrence.lengths import checked_lengths, checked_resets
from throughtime.recurrence.placement import MemoryBudget
from throughtime.recurrence.truncated import Truncated, truncated
from throughtime.recurrence.unfold import unfold

__all__ = ["MemoryBudget", "Truncated", "checked_lengths", "checked_resets", "truncated", "unfold"]
