"""What a run saves: everything to predict with, and for the last one everything to go on training with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from deformdetr._files import FileError, read_tensor_file, write_tensor_file
from deformdetr.data import LabelMap
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.models import DETR, DeformableDETR

_FORMAT = 1


class _Content(BaseModel):
    """What a file holds; fields are those of `Checkpoint`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)

    model: dict[str, Tensor]
    experiment: Experiment
    label_map: LabelMap
    epoch: NonNegativeInt
    step: NonNegativeInt
    metrics: dict[str, Any]
    training: dict[str, Any] | None


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
        """Write the file atomically; it holds tensors and plain values only, so that it loads with `weights_only`.

        Raises:
            OSError: If the file cannot be written; an older one is left as it was.
        """
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
        write_tensor_file(content, path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote, onto the CPU.

        Raises:
            RunError: If it cannot be read, or is not such a file.
        """
        try:
            content = read_tensor_file(path)
        except (FileError, FileNotFoundError) as error:
            raise RunError(str(error)) from error
        if not isinstance(content, dict) or "experiment" not in content:
            raise RunError(
                f"{path}: is not the checkpoint of a run; to train from the weights of another, name it in "
                "train.init_checkpoint"
            )
        version = content.get("format")
        if not isinstance(version, int) or version != _FORMAT:
            raise RunError(f"{path}: has format {version!r:.80}, but this version reads format {_FORMAT}")
        try:
            fields = dict(_Content.model_validate(content))
        except RecursionError as error:
            raise RunError(f"{path}: is not a checkpoint of a run: it is nested too deeply") from error
        except ValidationError as error:
            first, *others = error.errors(include_url=False, include_input=False)
            where = ".".join(map(str, first["loc"]))
            more = f", and {len(others)} more" if others else ""
            raise RunError(
                f"{path}: is not a checkpoint that this version reads: {where}: {first['msg']}{more}"
            ) from error
        return cls(**fields)

    def build(self) -> DeformableDETR | DETR:
        """Build the model with the saved weights, in evaluation mode.

        Raises:
            RunError: If the weights are not those of the model that `experiment` describes.
        """
        # The weights that the backbone started from are replaced anyway, and may be gone.
        config = self.experiment.model
        if getattr(config.backbone, "weights", None) is not None:
            config = config.replace(backbone=config.backbone.replace(weights=None))
        model = config.build()
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            raise RunError(f"the checkpoint's weights do not fit the model that it describes: {error}") from error
        return model.eval()
