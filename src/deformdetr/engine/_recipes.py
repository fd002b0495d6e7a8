"""The settings that models were published with."""

from collections.abc import Mapping
from typing import Any

from deformdetr.config import DeformableDETRConfig, DETRConfig
from deformdetr.engine._settings import merge
from deformdetr.engine._train_config import StepSchedule, TrainConfig

_DEFORMABLE_DETR = TrainConfig(
    epochs=50, lr=2e-4, lr_backbone_multiplier=0.1, lr_sampling_multiplier=0.1, schedule=StepSchedule(drop_epochs=(40,))
)
# DETR, DN-DETR and DINO train sampling offsets and reference points, as far as they have any, like all other parts.
_DETR = TrainConfig(
    epochs=300,
    lr=1e-4,
    lr_backbone_multiplier=0.1,
    lr_sampling_multiplier=1.0,
    schedule=StepSchedule(drop_epochs=(200,)),
)
_DETR_DC5_PLUS = _DETR.replace(epochs=50, schedule=StepSchedule(drop_epochs=(40,)))
_DN_DETR = _DETR.replace(epochs=50, schedule=StepSchedule(drop_epochs=(40,)))
_DINO = _DETR.replace(epochs=12, schedule=StepSchedule(drop_epochs=(11,)))


def recipe(model: DeformableDETRConfig | DETRConfig) -> TrainConfig:
    """Return the settings of training that a model was published with.

    They follow from the parts of the model, not from the name of a preset, so that changed presets keep them:

    * a DETR trains as DETR, and with a focal criterion as DETR-DC5+;
    * a Deformable DETR with learned anchors (`anchor_queries`) trains as DN-DETR, and with mixed query selection, too,
      as DINO;
    * any other Deformable DETR trains as Deformable DETR.

    Examples:
        >>> from deformdetr.config import preset
        >>> from deformdetr.engine import recipe
        >>> dino = recipe(preset("dino_r50_4scale"))
        >>> dino.epochs, dino.lr, dino.schedule.drop_epochs
        (12, 0.0001, (11,))

    References:
        The published implementations of DETR (`main.py`), Deformable DETR (`main.py`), DN-DETR (`main.py`) and DINO
        (`config/DINO/DINO_4scale.py`).
    """
    if isinstance(model, DETRConfig):
        return _DETR if model.criterion.kind == "softmax" else _DETR_DC5_PLUS
    if model.anchor_queries:
        return _DINO if model.query_selection == "mixed" else _DN_DETR
    return _DEFORMABLE_DETR


def complete_with_recipe(train: Any, model: DeformableDETRConfig | DETRConfig) -> Any:
    """Return settings of training, as far as they are given, on top of the model's recipe.

    What is neither a mapping nor a `TrainConfig` is returned as it is.
    """
    if isinstance(train, TrainConfig):
        train = {name: getattr(train, name) for name in train.model_fields_set}
    return merge(recipe(model).model_dump(), train) if isinstance(train, Mapping) else train
