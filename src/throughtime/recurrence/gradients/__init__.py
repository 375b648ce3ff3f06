"""Gradients before they are summed: by time step, and by sequence."""

from throughtime.recurrence.gradients.clipping import ClippedGradients, clip_by_sequence
from throughtime.recurrence.gradients.sequences import SequenceGradients, sequence_gradients
from throughtime.recurrence.gradients.steps import StepGradients, step_gradients

__all__ = [
    "ClippedGradients",
    "SequenceGradients",
    "StepGradients",
    "clip_by_sequence",
    "sequence_gradients",
    "step_gradients",
]
