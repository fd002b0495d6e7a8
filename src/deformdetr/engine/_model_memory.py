"""Refusal of models whose training cannot fit into memory, before the memory is taken."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from deformdetr.config import with_backbone_weights
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._trainable import freeze_all_but

# float32 weights, their gradients and the two averages of AdamW.
_COPIES = 4


def refuse_large_model(experiment: Experiment, device: torch.device) -> None:
    """Check that the parameters of a model, with what training adds to them, are smaller than the device's memory.

    Raises:
        ConfigError: If they are not, with the largest parameters in the message, or if `train.trainable` names no part.
    """
    with torch.device("meta"):
        model = with_backbone_weights(experiment.model, None).build()
    freeze_all_but(model, experiment.train.trainable)
    parameters = sorted(model.named_parameters(), key=lambda item: -item[1].numel())
    averages = 0 if experiment.train.ema is None else 1
    copies = {True: _COPIES + averages, False: 1 + averages}
    needed = sum(parameter.nbytes * copies[parameter.requires_grad] for _, parameter in parameters)
    memory = _memory(device)
    if needed > memory:
        largest = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters[:3])
        raise ConfigError(
            f"the model needs {needed / 1e9:,.1f} GB to train (weights, gradients and averages), and this process may "
            f"use {memory / 1e9:,.1f} GB of {device}; its largest parameters are {largest}"
        )


def _memory(device: torch.device) -> int:
    """Return the size of a device's memory in bytes, or less if this process may only use a part of it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield the memory limits of this process's control groups, and of those around them, in bytes.

    Args:
        groups: File with a line for each hierarchy of groups, of version 1 or 2.
        root: Where hierarchies are mounted. In containers, this may be the own group itself.
    """
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            hierarchy, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            hierarchy, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for each in (group, *group.parents):
            file = hierarchy / each / name
            if file.is_file() and (limit := file.read_text().strip()) != "max":
                yield int(limit)
