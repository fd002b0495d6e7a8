"""The model that a training starts with."""

from pathlib import Path

import torch

from deformdetr._files import FileError
from deformdetr.config import with_backbone_weights
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._model_memory import refuse_large_model
from deformdetr.integrations import load_checkpoint, locate_checkpoint
from deformdetr.models import DETR, DeformableDETR


def initial_model(
    experiment: Experiment, checkpoint: Checkpoint | None, device: torch.device
) -> tuple[DeformableDETR | DETR, list[str]]:
    """Return the model with its initial weights, and messages about loading them."""
    if checkpoint is not None:
        return checkpoint.build(), []
    refuse_large_model(experiment, device)
    path = locate_initial_weights(experiment)
    if path is None:
        return experiment.model.build(), []
    # Without weights of the backbone, which the checkpoint replaces.
    model = with_backbone_weights(experiment.model, None).build()
    report = load_checkpoint(model, path, drop_class_head=True, new_mask_head=True)
    return model, [f"{experiment.train.init_checkpoint}: {report}"]


def locate_initial_weights(experiment: Experiment) -> Path | None:
    """Return the file of the initial weights, downloaded if they are not here, or `None` if there are none.

    Raises:
        ConfigError: If `train.init_checkpoint` names no single file.
        FileNotFoundError: If there is no such file.
        ConnectionError: If it cannot be downloaded.
    """
    source = experiment.train.init_checkpoint
    if source is None:
        return None
    try:
        return locate_checkpoint(source)
    except FileError as error:
        raise ConfigError(f"train.init_checkpoint: {error}") from error
