"""Noise, readouts and losses: what stands around recurrent layers."""

from throughtime.layers.attention import Attended, Attention, AttentionKind, Memory
from throughtime.layers.loss import linear_cross_entropy
from throughtime.layers.modes import in_evaluation_mode
from throughtime.layers.noise import LockedDropout, checked_probability, locked_mask, zoneout_masks
from throughtime.layers.outputs import OutputDistribution, output_distribution
from throughtime.layers.readout import IGNORED, Loss, Readout, SequenceLoss

__all__ = [
    "IGNORED",
    "Attended",
    "Attention",
    "AttentionKind",
    "LockedDropout",
    "Loss",
    "Memory",
    "OutputDistribution",
    "Readout",
    "SequenceLoss",
    "checked_probability",
    "in_evaluation_mode",
    "linear_cross_entropy",
    "locked_mask",
    "output_distribution",
    "zoneout_masks",
]
