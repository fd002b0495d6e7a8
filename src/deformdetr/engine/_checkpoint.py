"""Checkpoints of training runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from deformdetr._files import FileError, check_stored_sums, read_tensor_file, write_tensor_file
from deformdetr.config import with_backbone_weights
from deformdetr.data import DataConfig, DecodeConfig, LabelMap
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.integrations import hub
from deformdetr.integrations.hub import InferenceSettings
from deformdetr.models import DETR, DeformableDETR

# In place of the folders and files of a dataset, for models that were published without it.
_UNKNOWN = Path("unknown-dataset")
_FORMAT = 1


def is_unknown(data: DataConfig) -> bool:
    """Return whether the config stands for the dataset of a published model, which is not known."""
    return _UNKNOWN in (data.val_images, data.val_annotations)


class _Content(BaseModel):
    """The content of a file, with the fields of `Checkpoint`."""

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
    """A trained model, with its experiment and labels.

    Attributes:
        model: State dict of the model: of the averaged weights, if training averages them (`train.ema`).
        experiment: The experiment, complete with the number of classes.
        label_map: The category of each label.
        epoch: Number of finished epochs.
        step: Number of finished optimizer steps.
        metrics: Metrics of the last evaluation. Empty before the first.
        training: State for resuming: that of the optimizer and the gradient scaler, the trained weights beside averaged
            ones, the best AP so far, and what an unfinished epoch has done. `None` in a checkpoint for inference only.

    Examples:
        >>> from deformdetr.engine import load_run
        >>> path, checkpoint = load_run("runs/detector")  # doctest: +SKIP
        >>> checkpoint.epoch, checkpoint.metrics["AP"], checkpoint.label_map.names  # doctest: +SKIP
    """

    model: dict[str, Tensor]
    experiment: Experiment
    label_map: LabelMap
    epoch: int
    step: int
    metrics: dict[str, Any]
    training: dict[str, Any] | None = None

    def save(self, path: str | Path) -> None:
        """Write the file atomically. It holds only tensors and plain values, and loads with `weights_only=True`.

        Raises:
            OSError: If the file cannot be written. An existing file is then unchanged.
        """
        plain = {
            "experiment": self.experiment.model_dump(mode="json"),
            "label_map": self.label_map.model_dump(mode="json"),
        }
        write_tensor_file({"format": _FORMAT, **vars(self), **plain}, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Return the checkpoint in a file that `save` wrote, on the CPU.

        Raises:
            RunError: If the file cannot be read, is damaged, or is not such a checkpoint.
        """
        try:
            check_stored_sums(Path(path))
            content = read_tensor_file(Path(path))
        except (FileError, FileNotFoundError) as error:
            raise RunError(str(error)) from error
        if not isinstance(content, dict) or "experiment" not in content:
            raise RunError(
                f"{path}: is not the checkpoint of a run; to start training from its weights, set train.init_checkpoint"
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

    @property
    def has_dataset(self) -> bool:
        """Whether the dataset of the training is known: that of a published model is not."""
        data = self.experiment.data
        return not (isinstance(data, DataConfig) and is_unknown(data))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Checkpoint":
        """Return a model that `deformdetr.integrations.hub` reads as a checkpoint without a dataset, on the CPU.

        `inference_settings` are those of the source. Without names of classes, the labels are named by their numbers.

        Args:
            source: A folder or a repository, as in `hub.from_pretrained`, which has the errors too.
        """
        config, settings = hub.pretrained_config(source), hub.pretrained_settings(source)
        unnamed = LabelMap.contiguous({label: str(label) for label in range(config.num_classes)})
        data = DataConfig(
            train_images=_UNKNOWN,
            train_annotations=_UNKNOWN,
            val_images=_UNKNOWN,
            val_annotations=_UNKNOWN,
            decode=DecodeConfig(orientation=settings.orientation, gray_bits=settings.gray_bits),
            eval_short_side=settings.short_side,
            eval_max_size=settings.max_size,
            image_mean=settings.image_mean,
            image_std=settings.image_std,
        )
        return cls(
            model=hub.from_pretrained(source).state_dict(),
            experiment=Experiment(model=config, data=data),
            label_map=settings.label_map or unnamed,
            epoch=0,
            step=0,
            metrics={} if settings.best_threshold is None else {"best_threshold": settings.best_threshold},
        )

    def build(self) -> DeformableDETR | DETR:
        """Return the model with the saved weights, in evaluation mode.

        Raises:
            RunError: If the weights do not fit the model that `experiment` describes.
        """
        # The backbone's initial weights would be replaced anyway, and their file may not exist any more.
        model = with_backbone_weights(self.experiment.model, None).build()
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            raise RunError(f"the checkpoint's weights do not fit the model that it describes: {error}") from error
        return model.eval()

    def inference_settings(self) -> InferenceSettings:
        """Return names of classes, preparation of images and best threshold, for `deformdetr.integrations.hub`."""
        data = self.experiment.data
        return InferenceSettings(
            label_map=self.label_map,
            image_mean=data.image_mean,
            image_std=data.image_std,
            short_side=data.eval_short_side,
            max_size=data.eval_max_size,
            orientation=data.decode.orientation,
            gray_bits=data.decode.gray_bits,
            best_threshold=self.metrics.get("best_threshold"),
        )
