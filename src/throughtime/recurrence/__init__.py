"""A cell through time."""

from throughtime.recurrence.lengths import checked_lengths, checked_resets
from throughtime.recurrence.unfold import unfold

__all__ = ["checked_lengths", "checked_resets", "unfold"]
