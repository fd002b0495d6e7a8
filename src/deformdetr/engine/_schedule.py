"""Learning rates over the steps of a run."""

import math

from deformdetr.engine._errors import RunError
from deformdetr.engine._train_config import CosineSchedule, TrainConfig


def total_steps(config: TrainConfig, *, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a whole run."""
    steps = config.epochs * steps_per_epoch
    return steps if config.max_steps is None else min(steps, config.max_steps)


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
        length = total_steps if schedule.epochs is None else schedule.epochs * steps_per_epoch
        progress = min(1.0, step / max(1, length - 1))
        final = schedule.final_factor
        return warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
    drops = sum(step >= epoch * steps_per_epoch for epoch in schedule.drop_epochs)
    return warmup * schedule.drop_factor**drops


def check_past(old: TrainConfig, new: TrainConfig, *, epochs: int, steps_per_epoch: int) -> None:
    """Check that a run can go on with other settings: that they do not change the learning rate of finished epochs.

    Args:
        old: Settings that the run was trained with so far.
        new: Settings to go on with.
        epochs: Number of finished epochs.
        steps_per_epoch: Number of optimizer steps in an epoch.

    Raises:
        RunError: If they do. The message names the first such epoch, and what can be changed instead.
    """

    def factor(config: TrainConfig, step: int) -> float:
        total = total_steps(config, steps_per_epoch=steps_per_epoch)
        return learning_rate_factor(config, step, steps_per_epoch=steps_per_epoch, total_steps=total)

    for epoch in range(epochs):
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            before, now = factor(old, step), factor(new, step)
            if before != now:
                raise RunError(
                    f"the schedule would change the learning rate of finished epochs: in epoch {epoch + 1} it was "
                    f"{old.lr * before:.3g}, and would be {new.lr * now:.3g}; {_advice(old, epochs)}"
                )


def _advice(old: TrainConfig, epochs: int) -> str:
    if isinstance(old.schedule, CosineSchedule):
        length = old.schedule.epochs or old.epochs
        return f"with train.schedule.epochs={length} the run goes on with the rates that it had, and then with the last"
    drops = ", ".join(str(epoch) for epoch in old.schedule.drop_epochs if epoch < epochs)
    return f"train.schedule.drop_epochs may have others from {epochs} on, but before that exactly [{drops}]"


def describe_schedule(config: TrainConfig) -> str:
    """Return a line of text about the learning rates of a run.

    Examples:
        >>> from deformdetr.engine._schedule import describe_schedule
        >>> from deformdetr.engine import TrainConfig
        >>> describe_schedule(TrainConfig())
        'learning rate 0.0002 (backbone 2e-05, sampling 2e-05), times 0.1 after epoch 40'
        >>> describe_schedule(TrainConfig(epochs=9))
        'learning rate 0.0002 (backbone 2e-05, sampling 2e-05), without a drop: schedule.drop_epochs is 40, epochs is 9'
    """
    backbone, sampling = config.lr * config.lr_backbone_multiplier, config.lr * config.lr_sampling_multiplier
    rates = f"learning rate {config.lr:.3g} (backbone {backbone:.3g}, sampling {sampling:.3g})"
    warmup = f" after {config.warmup_steps} steps of warm-up" if config.warmup_steps else ""
    return f"{rates}{warmup}, {_describe_change(config)}"


def _describe_change(config: TrainConfig) -> str:
    schedule = config.schedule
    if isinstance(schedule, CosineSchedule):
        length = schedule.epochs or config.epochs
        return f"falling along a cosine to {schedule.final_factor:g} times as much over {length} epochs"
    if not schedule.drop_epochs:
        return "constant"
    reached = [str(epoch) for epoch in schedule.drop_epochs if epoch < config.epochs]
    if reached:
        return f"times {schedule.drop_factor:g} after epoch {', '.join(reached)}"
    planned = ", ".join(map(str, schedule.drop_epochs))
    return f"without a drop: schedule.drop_epochs is {planned}, epochs is {config.epochs}"
