"""Typed descriptions of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from deformdetr.config import Config, DeformableDETRConfig, DETRConfig, ModelConfig, preset
from deformdetr.data import AnyDataConfig
from deformdetr.engine._settings import merge


class StepSchedule(Config):
    """A constant learning rate that drops after given epochs."""

    kind: Literal["step"] = "step"
    drop_epochs: tuple[PositiveInt, ...] = Field(
        default=(40,), description="Finished epochs after which the learning rate drops."
    )
    drop_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="What each drop multiplies it by."
    )


class CosineSchedule(Config):
    """A learning rate that falls along half a cosine over the whole run."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="The last learning rate as a share of the first."
    )


def _default_kind(kind: str) -> BeforeValidator:
    """Let settings that do not say which kind they are be of the usual one."""

    def fill(settings: Any) -> Any:
        return {"kind": kind, **settings} if isinstance(settings, Mapping) else settings

    return BeforeValidator(fill)


Schedule = Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind"), _default_kind("step")]


class TrainConfig(Config):
    """How a model is trained; the defaults are those of Deformable DETR on COCO."""

    epochs: PositiveInt = Field(default=50, description="Passes over the training images.")
    max_steps: PositiveInt | None = Field(
        default=None, description="Stop after this many optimiser steps, even within an epoch."
    )
    batch_size: PositiveInt = Field(default=2, description="Images per process and forward pass.")
    accumulate_steps: PositiveInt = Field(default=1, description="Batches whose gradients make one optimiser step.")
    lr: PositiveFloat = Field(default=2e-4, description="Learning rate of AdamW.")
    lr_backbone_multiplier: NonNegativeFloat = Field(
        default=0.1, description="Learning rate of the backbone relative to `lr`; 1 suits one with random weights."
    )
    lr_sampling_multiplier: NonNegativeFloat = Field(
        default=0.1, description="The same for the layers that predict sampling offsets and reference points."
    )
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Schedule = Field(default=StepSchedule(), description="How the learning rate changes.")
    warmup_steps: NonNegativeInt = Field(
        default=0, description="Optimiser steps in which the learning rate rises from 0."
    )
    max_grad_norm: PositiveFloat | None = Field(
        default=0.1, description="Gradients with a larger L2 norm are scaled down to it; null leaves them."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Of the model's matrix products and convolutions; weights stay float32."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute backbone, encoder and decoder in the backward pass, to save memory."
    )
    seed: NonNegativeInt = 42
    eval_every: PositiveInt = Field(default=1, description="Evaluate after every so many epochs, and after the last.")
    save_every: PositiveInt = Field(default=1, description="Save after every so many epochs, and after the last.")
    log_every: PositiveInt = Field(default=50, description="Steps per line of output where there is no progress bar.")
    init_checkpoint: Path | None = Field(
        default=None,
        description="Start from these weights, of any format that load_checkpoint reads; class heads may differ, and a "
        "mask head may be missing.",
    )
    trainable: tuple[str, ...] = Field(
        default=(),
        description="Parts of the model that train, such as mask_head, while all others stay as they are; none means "
        "all.",
    )


def _complete_model(model: Any) -> Any:
    """Put the given fields over those of the preset that the key `preset` names, or over the defaults.

    The number of classes is left out where it is not given, because a dataset decides it.
    """
    if not isinstance(model, Mapping):
        return model
    given = dict(model)
    name = given.pop("preset", None)
    default = DETRConfig() if given.get("kind") == "detr" else DeformableDETRConfig()
    base = default if name is None else preset(str(name))
    return merge(base.model_dump(mode="json", exclude={"num_classes"}), given)


class Experiment(Config):
    """A model, the dataset it learns from, and how.

    `model` may name a preset to start from: `{"preset": "deformable_detr_r50", "num_queries": 100}`. Where
    `model.num_classes` is not given, the dataset decides it when training starts.
    """

    model: Annotated[ModelConfig, BeforeValidator(_complete_model)] = Field(
        default_factory=lambda: DeformableDETRConfig.model_validate(_complete_model({})),
        description="The model; `preset` names the one whose fields are the defaults.",
    )
    data: Annotated[AnyDataConfig, _default_kind("coco")] = Field(description="What it learns from.")
    train: TrainConfig = Field(default=TrainConfig(), description="How it learns.")
