"""What a run saves: everything to predict with, and for the last one everything to go on training with."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from deformdetr.data import LabelMap
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.engine._files import write_atomically
from deformdetr.models import DETR, DeformableDETR

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model with its meaning.

    Attributes:
        model: State dict.
        experiment: How it was trained; complete, with the number of classes.
        label_map: Which category each label means.
        epoch: Finished epochs.
        step: Finished optimiser steps.
        metrics: The last evaluation's numbers; empty before the first.
        training: What else training needs to go on: state of the optimiser and of the gradient scaler, the best AP so
            far. `None` in a checkpoint that is only for use.
    """

    model: dict[str, Tensor]
    experiment: Experiment
    label_map: LabelMap
    epoch: int
    step: int
    metrics: dict[str, Any]
    training: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        """Write the file atomically; it holds tensors and plain values only, so that it loads with `weights_only`."""
        content = {
            "format": _FORMAT,
            "model": self.model,
            "experiment": self.experiment.model_dump(mode="json"),
            "label_map": self.label_map.model_dump(mode="json"),
            "epoch": self.epoch,
            "step": self.step,
            "metrics": self.metrics,
            "training": self.training,
        }
        write_atomically(path, lambda file: torch.save(content, file))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote, onto the CPU.

        Raises:
            RunError: If it cannot be read, or is not such a file.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise RunError(f"{path}: is not a checkpoint: {error}") from error
        if not isinstance(content, dict) or "experiment" not in content:
            raise RunError(
                f"{path}: is not the checkpoint of a run; to train from the weights of another, name it in "
                "train.init_checkpoint"
            )
        if content["format"] != _FORMAT:
            raise RunError(f"{path}: has format {content['format']}, but this version reads format {_FORMAT}")
        try:
            return cls(
                model=content["model"],
                experiment=Experiment.model_validate(content["experiment"]),
                label_map=LabelMap.model_validate(content["label_map"]),
                epoch=content["epoch"],
                step=content["step"],
                metrics=content["metrics"],
                training=content["training"],
            )
        except (KeyError, ValidationError) as error:
            raise RunError(f"{path}: is not a checkpoint that this version reads: {error}") from error

    def build(self) -> DeformableDETR | DETR:
        """Build the model with the saved weights, in evaluation mode."""
        # The weights that the backbone started from are replaced anyway, and may be gone.
        config = self.experiment.model
        if getattr(config.backbone, "weights", None) is not None:
            config = config.replace(backbone=config.backbone.replace(weights=None))
        model = config.build()
        model.load_state_dict(self.model)
        return model.eval()
