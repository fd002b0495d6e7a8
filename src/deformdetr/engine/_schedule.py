"""Learning rates over the steps of a run."""

import math

from deformdetr.engine._train_config import CosineSchedule, TrainConfig


def learning_rate_factor(config: TrainConfig, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """Return the factor of the learning rates in a step.

    It depends only on the step, so that the schedule has no state to save.

    Args:
        config: Settings of training, with schedule and warm-up.
        step: Number of optimizer steps before this one.
        steps_per_epoch: Number of optimizer steps in an epoch.
        total_steps: Number of optimizer steps in the run.

    Examples:
        >>> from deformdetr.engine import TrainConfig, learning_rate_factor
        >>> learning_rate_factor(TrainConfig(warmup_steps=3), 1, steps_per_epoch=10, total_steps=500)
        0.5
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    schedule = config.schedule
    if isinstance(schedule, CosineSchedule):
        progress = min(1.0, step / max(1, total_steps - 1))
        final = schedule.final_factor
        return warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    drops = sum(step >= epoch * steps_per_epoch for epoch in schedule.drop_epochs)
    return warmup * schedule.drop_factor**drops
