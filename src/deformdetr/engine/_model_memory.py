"""Refusal of models whose training cannot fit into memory, before the memory is taken."""

import os

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
    copies = {True: _COPIES, False: 1}
    needed = sum(parameter.nbytes * copies[parameter.requires_grad] for _, parameter in parameters)
    memory = _memory(device)
    if needed > memory:
        largest = ", ".join(f"{name} {tuple(parameter.shape)}" for name, parameter in parameters[:3])
        raise ConfigError(
            f"the model needs {needed / 1e9:,.1f} GB to train (weights, gradients and averages of AdamW), and {device} "
            f"has {memory / 1e9:,.1f} GB; its largest parameters are {largest}"
        )


def _memory(device: torch.device) -> int:
    """Return the size of a device's memory in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
