"""AdamW with the parameter groups and learning rates of Deformable DETR."""

import math
from typing import Any

import torch
from torch import nn

from deformdetr.engine._config import CosineSchedule, TrainConfig


def parameter_groups(
    model: nn.Module, *, lr: float, lr_backbone_multiplier: float = 0.1, lr_sampling_multiplier: float = 0.1
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into groups for an optimiser, each with its `name` and learning rate.

    `backbone` are the parameters of the module of that name; `sampling` those of layers that predict sampling offsets
    and reference points; `main` are all others. A group without parameters is left out.

    Args:
        model: A detector of this library, or another whose parameters are named alike.
        lr: Learning rate of the main group.
        lr_backbone_multiplier: Learning rate of the backbone relative to it.
        lr_sampling_multiplier: Learning rate of the sampling group relative to it.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4.
    """
    groups: dict[str, list[nn.Parameter]] = {"main": [], "backbone": [], "sampling": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(name)].append(parameter)
    multipliers = {"main": 1.0, "backbone": lr_backbone_multiplier, "sampling": lr_sampling_multiplier}
    return [
        {"name": name, "params": parameters, "lr": lr * multipliers[name]}
        for name, parameters in groups.items()
        if parameters
    ]


def _group_of(name: str) -> str:
    if name.startswith("backbone."):
        return "backbone"
    return "sampling" if "sampling_offsets." in name or "reference_points." in name else "main"


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW; weight decay applies to every parameter, as in the original.

    Raises:
        ValueError: If the model has no parameter that trains.
    """
    groups = parameter_groups(
        model,
        lr=config.lr,
        lr_backbone_multiplier=config.lr_backbone_multiplier,
        lr_sampling_multiplier=config.lr_sampling_multiplier,
    )
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


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


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a multiple of its first one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
