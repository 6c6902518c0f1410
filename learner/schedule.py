"""The learning rate over optimizer steps: linear warm-up, then constant or a cosine to 0."""

from __future__ import annotations

import math

from learner.config import LearnerConfig


def lr_factor(step: int, config: LearnerConfig) -> float:
    """Return the factor on `lr` of an optimizer step.

    Args:
        step: from 0.
        config: its `warmup_steps`, `schedule` and `total_steps`.

    Returns:
        (step + 1) / warmup_steps during the warm-up; after it 1, or the cosine's share.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    # A step after the last one keeps a rate of 0.
    progress = (step - config.warmup_steps) / (config.total_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
