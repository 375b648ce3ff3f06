"""The learning rate as a pure function of how far the training is."""

from __future__ import annotations

import math

from throughtime.training.config import TrainingConfig

# As a part of the training: a warm-up must not swallow a short one.
_LONGEST_WARMUP = 0.1


def progress(config: TrainingConfig, *, step: int, epochs: float, minutes: float) -> float:
    """How much of the training is done, in [0, 1]: the largest part among the limits that are set.

    `step` and `epochs` count what is done; `minutes` is time trained. With `max_minutes` the result depends on the
    clock: only runs limited by steps or epochs can be repeated bit by bit.
    """
    parts = [
        done / limit
        for done, limit in (
            (step, config.max_steps),
            (epochs, config.max_epochs),
            (minutes, config.max_minutes),
        )
        if limit
    ]
    return min(1.0, max(parts))


def learning_rate_factor(config: TrainingConfig, *, step: int, progress: float, plateau: float = 1.0) -> float:
    """What the highest learning rate is multiplied by for the step after `step` done ones.

    It rises linearly over `warmup_steps`, or over the first tenth of the training where that is faster. This rise
    multiplies the schedule, cosine: r + (1-r)(1 + cos π·progress)/2 with r the `minimum_ratio`; plateau: `plateau`
    (the product of the falls so far), never below r; constant: 1.

    Source: the cosine is that of Loshchilov & Hutter 2017 (SGDR) without restarts.
    """
    lowest = config.minimum_ratio
    match config.schedule:
        case "cosine":
            factor = lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2
        case "plateau":
            factor = max(lowest, plateau)
        case "constant":
            factor = 1.0
    if step < config.warmup_steps:
        factor *= min(1.0, max((step + 1) / (config.warmup_steps + 1), progress / _LONGEST_WARMUP))
    return factor
