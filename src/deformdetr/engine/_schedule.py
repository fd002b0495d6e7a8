"""Learning rates as functions of the step, which need no state to resume from."""

import math

from deformdetr.engine._config import CosineSchedule, TrainConfig


def learning_rate_factor(config: TrainConfig, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """Give what the learning rates are multiplied by in a step.

    Args:
        config: Schedule and warm-up.
        step: Optimiser steps done before this one.
        steps_per_epoch: Optimiser steps in an epoch.
        total_steps: Optimiser steps in the whole run.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    schedule = config.schedule
    if isinstance(schedule, CosineSchedule):
        progress = min(1.0, step / max(1, total_steps - 1))
        final = schedule.final_factor
        return warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    drops = sum(step >= epoch * steps_per_epoch for epoch in schedule.drop_epochs)
    return warmup * schedule.drop_factor**drops
