"""Configs of experiments: a model, a dataset and the settings of training."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from deformdetr.config import Config, DeformableDETRConfig, DETRConfig, ModelConfig, preset
from deformdetr.config._base import default_kind
from deformdetr.data import AnyDataConfig
from deformdetr.engine._recipes import complete_with_recipe
from deformdetr.engine._settings import merge
from deformdetr.engine._train_config import TrainConfig


def _complete_model(model: Any) -> Any:
    """Fill in missing fields from the preset that the key `preset` names, or from the defaults.

    A missing number of classes stays missing, because the dataset determines it.
    """
    if not isinstance(model, Mapping):
        return model
    given = dict(model)
    name = given.pop("preset", None)
    default = DETRConfig() if given.get("kind") == "detr" else DeformableDETRConfig()
    base = default if name is None else preset(str(name))
    return merge(base.model_dump(mode="json", exclude={"num_classes"}), given)


class Experiment(Config):
    """A model, a dataset and the settings of training.

    `model` may name a preset whose fields are the defaults: `{"preset": "deformable_detr_r50", "num_queries": 100}`.
    Without `model.num_classes`, the dataset determines it when training starts. Settings of `train` that are not given,
    also those of a `TrainConfig`, are those of the model's `recipe`.

    Examples:
        >>> from deformdetr.engine import Experiment
        >>> experiment = Experiment(model={"preset": "demo"}, data={"kind": "shapes"}, train={"epochs": 2})
        >>> experiment.train.lr
        0.0002
        >>> Experiment(model={"preset": "dino_r50_4scale"}, data={"kind": "shapes"}).train.lr
        0.0001
    """

    model: Annotated[ModelConfig, BeforeValidator(_complete_model)] = Field(
        default_factory=lambda: DeformableDETRConfig.model_validate(_complete_model({})),
        description="The model; `preset` names the preset whose fields are the defaults.",
    )
    data: Annotated[AnyDataConfig, default_kind("coco")] = Field(description="The dataset.")
    train: TrainConfig = Field(
        default=TrainConfig(),
        validate_default=True,
        description="Settings of training; the defaults are those that the model was published with.",
    )

    @field_validator("train", mode="before")
    @classmethod
    def _complete_train(cls, train: Any, info: ValidationInfo) -> Any:
        model = info.data.get("model")
        return train if model is None else complete_with_recipe(train, model)
