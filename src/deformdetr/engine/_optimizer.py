"""AdamW with the parameter groups and learning rates of Deformable DETR."""

from typing import Any

import torch
from torch import nn

from deformdetr.engine._train_config import TrainConfig


def parameter_groups(
    model: nn.Module, *, lr: float, lr_backbone_multiplier: float = 0.1, lr_sampling_multiplier: float = 0.1
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups of a model, each with a `name` and a learning rate.

    Group `backbone` has the parameters of the module of that name. Group `sampling` has those of layers that predict
    sampling offsets and reference points. Group `main` has all others. Frozen parameters and empty groups are left out.

    Args:
        model: A detector of this library, or another one with the same parameter names.
        lr: Learning rate of the main group.
        lr_backbone_multiplier: Learning rate of the backbone, relative to `lr`.
        lr_sampling_multiplier: Learning rate of the sampling group, relative to `lr`.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4.

    Examples:
        >>> from deformdetr.config import preset
        >>> from deformdetr.engine import parameter_groups
        >>> {group["name"]: group["lr"] for group in parameter_groups(preset("demo").build(), lr=1e-3)}
        {'main': 0.001, 'backbone': 0.0001, 'sampling': 0.0001}
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
    """Return AdamW for a model. Weight decay applies to all parameters, as in the original.

    Raises:
        ValueError: If the model has no trainable parameter.

    Examples:
        >>> from deformdetr.config import preset
        >>> from deformdetr.engine import TrainConfig, build_optimizer
        >>> optimizer = build_optimizer(preset("demo").build(), TrainConfig(lr=1e-3))
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


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to its initial one times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
