"""Settings of training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from deformdetr.config import DefaultedConfig
from deformdetr.config._base import default_kind


class StepSchedule(DefaultedConfig):
    """A constant learning rate with drops after given epochs.

    Examples:
        >>> from deformdetr.engine import StepSchedule, TrainConfig
        >>> TrainConfig(epochs=12, schedule=StepSchedule(drop_epochs=(11,))).schedule.drop_factor
        0.1
    """

    kind: Literal["step"] = "step"
    drop_epochs: tuple[PositiveInt, ...] = Field(
        default=(40,), description="Finished epochs after which the learning rate drops."
    )
    drop_factor: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="Factor of each drop.")


class CosineSchedule(DefaultedConfig):
    """A learning rate that falls along a half cosine over the whole run.

    Examples:
        >>> from deformdetr.engine import CosineSchedule, TrainConfig
        >>> TrainConfig(epochs=12, schedule=CosineSchedule(final_factor=0.1)).schedule.final_factor
        0.1
    """

    kind: Literal["cosine"] = "cosine"
    final_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="The last learning rate as a share of the first."
    )
    epochs: PositiveInt | None = Field(
        default=None, description="Epochs over which it falls, and then stays; null: all epochs of the run."
    )


Schedule = Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind"), default_kind("step")]


class EMAConfig(DefaultedConfig):
    """An exponential moving average of the weights, which is evaluated and saved in place of the trained weights.

    After n updates, the average keeps a share of `decay` or, if that is less, of (1 + n) / (10 + n), so that it forgets
    the first weights in short runs too.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9997, description="Share of the average that each optimizer step keeps; less in the first steps."
    )


class EarlyStoppingConfig(DefaultedConfig):
    """The end of a run whose average precision does not rise any more."""

    patience: PositiveInt = Field(default=10, description="Evaluations without a rise of AP that end the run.")
    min_rise: NonNegativeFloat = Field(default=0.0, description="Only a larger rise of AP counts; 0.01 is one percent.")


class TrackingConfig(DefaultedConfig):
    """Services that get settings and metrics, through accelerate. Their packages must be installed.

    TensorBoard's files are written to the folder `tracking` of the run. Weights & Biases and MLflow read their own
    environment variables.
    """

    tools: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Field(min_length=1)] = Field(
        default=("tensorboard",), description="Any of tensorboard, wandb and mlflow."
    )
    project: str = Field(default="deformdetr", description="Project of wandb, experiment of mlflow.")


class TrainConfig(DefaultedConfig):
    """Settings of training. The defaults are those of Deformable DETR on COCO.

    In an `Experiment`, settings that are not given are those of the model's `recipe`.

    Examples:
        >>> from deformdetr.engine import TrainConfig
        >>> TrainConfig(batch_size=4).replace(lr=1e-4).batch_size
        4
    """

    epochs: PositiveInt = Field(default=50, description="Passes over the training images.")
    max_steps: PositiveInt | None = Field(
        default=None, description="Stop after this many optimizer steps, even within an epoch."
    )
    batch_size: PositiveInt = Field(default=2, description="Images per process and forward pass.")
    accumulate_steps: PositiveInt = Field(
        default=1,
        description="Batches whose gradients are accumulated for one optimizer step, as if they were one large batch.",
    )
    lr: PositiveFloat = Field(default=2e-4, description="Learning rate of AdamW.")
    lr_backbone_multiplier: NonNegativeFloat = Field(
        default=0.1,
        description="Learning rate of the backbone relative to `lr`; 1 suits a backbone with random weights.",
    )
    lr_sampling_multiplier: NonNegativeFloat = Field(
        default=0.1, description="The same for the layers that predict sampling offsets and reference points."
    )
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Schedule = Field(default=StepSchedule(), description="How the learning rate changes.")
    warmup_steps: NonNegativeInt = Field(
        default=0, description="Optimizer steps in which the learning rate rises linearly from 0."
    )
    max_grad_norm: PositiveFloat | None = Field(
        default=0.1,
        description="Limit of the gradient's L2 norm, to which larger gradients are scaled; null sets no limit.",
    )
    ema: EMAConfig | None = Field(
        default=None,
        description="Evaluate and save a moving average of the weights: {decay: 0.9997}; null: the weights themselves.",
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="End the run if AP does not rise any more: {patience: 10}; null: never."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of matrix products and convolutions; weights stay float32."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute backbone, encoder and decoder in the backward pass to save memory."
    )
    compile: bool = Field(
        default=False,
        description="Compile the model by torch.compile: slow at the start, faster later.",
    )
    seed: NonNegativeInt = 42
    eval_every: PositiveInt = Field(
        default=1, description="Epochs between evaluations; the last epoch is always evaluated."
    )
    max_detections: Annotated[int, Field(ge=100)] = Field(
        default=100,
        description="Detections per image that evaluation keeps, and counts per class; for crowded images.",
    )
    save_every: PositiveInt = Field(
        default=1, description="Epochs between checkpoints; the last epoch is always saved."
    )
    save_every_steps: PositiveInt | None = Field(
        default=None,
        description="Optimizer steps between checkpoints during an epoch, for long epochs; null: only after epochs.",
    )
    log_every: PositiveInt = Field(
        default=50, description="Optimizer steps per line of output if there is no progress bar."
    )
    tracking: TrackingConfig | None = Field(
        default=None, description="Send metrics to {tools: [tensorboard]}, wandb or mlflow too; null: to files alone."
    )
    init_checkpoint: str | Path | None = Field(
        default=None,
        description="Weights to start from, in any format that load_checkpoint reads: a path, a URL, or user/name on "
        "the Hugging Face Hub; class heads may differ, and a mask head may be missing.",
    )
    trainable: tuple[str, ...] = Field(
        default=(),
        description="Parts of the model to train, such as mask_head; others are frozen. Empty trains all.",
    )
