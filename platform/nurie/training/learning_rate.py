"""Learning rate by step: linear warm-up, then constant or cosine."""

from __future__ import annotations

import math

from nurie.config.train import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step.

    Args:
        config: Peak, warm-up and schedule.
        step: Optimizer step, from 0.
        total_steps: Steps of the stage.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    rest = max(1, total_steps - config.warmup_steps)
    progress = (step - config.warmup_steps) / rest
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
