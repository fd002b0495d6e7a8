"""Typed descriptions of datasets, their augmentation and the meaning of their labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deformdetr.config import Config
from deformdetr.models import IMAGENET_MEAN, IMAGENET_STD

Probability = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val"]
Channels = tuple[float, float, float]
PositiveChannels = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class LabelMap(Config):
    """Which category each label of a model means: label `i` is the category `category_ids[i]`, called `names[i]`.

    Labels count from 0 without holes; category ids are whatever integers the annotation file uses.
    """

    names: tuple[str, ...] = Field(min_length=1)
    category_ids: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.names) != len(self.category_ids):
            raise ValueError(f"{len(self.names)} names for {len(self.category_ids)} category ids: they go in pairs")
        repeated = sorted({number for number in self.category_ids if self.category_ids.count(number) > 1})
        if repeated:
            raise ValueError(f"category ids must be different, but these occur more than once: {repeated}")
        return self

    @classmethod
    def contiguous(cls, categories: Mapping[int, str]) -> Self:
        """Give labels to categories, which map id to name, in the order of their ids."""
        ids = tuple(sorted(categories))
        return cls(names=tuple(categories[number] for number in ids), category_ids=ids)

    @classmethod
    def sparse(cls, categories: Mapping[int, str]) -> Self:
        """Let every label equal its category id, as the published COCO checkpoints do; holes are called "N/A".

        Raises:
            ValueError: If an id is negative.
        """
        if categories and min(categories) < 0:
            raise ValueError(f"category id {min(categories)} cannot be a label: labels are not negative")
        ids = tuple(range(max(categories, default=-1) + 1))
        return cls(names=tuple(categories.get(number, "N/A") for number in ids), category_ids=ids)

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.names)

    def labels(self) -> dict[int, int]:
        """Give the label of each category id."""
        return {number: label for label, number in enumerate(self.category_ids)}


class AugmentConfig(Config):
    """How training images are varied; the defaults are the recipe of DETR and Deformable DETR for COCO.

    An image is flipped, then resized. With `crop`, half of the images (`crop_probability`) are first resized to a
    `crop_resize` side and cut to a random rectangle whose sides lie between `crop_min` and `crop_max`.
    """

    flip: Probability = Field(default=0.5, description="Probability of a horizontal flip.")
    short_sides: tuple[PositiveInt, ...] = Field(
        default=tuple(range(480, 801, 32)),
        description="The shorter side after resizing, in pixels, drawn from these; empty keeps the size.",
    )
    max_size: PositiveInt = Field(
        default=1333, description="Limit of the longer side in pixels, to which the shorter side gives way."
    )
    crop: bool = Field(default=True, description="Whether the branch with the random crop is ever taken.")
    crop_probability: Probability = Field(default=0.5, description="Probability of the branch with the random crop.")
    crop_resize: tuple[PositiveInt, ...] = Field(
        default=(400, 500, 600),
        description="The shorter side before the crop, in pixels, drawn from these; empty keeps the size.",
    )
    crop_min: PositiveInt = Field(
        default=384, description="Smallest side of the crop in pixels; a smaller image keeps its side."
    )
    crop_max: PositiveInt = Field(default=600, description="Largest side of the crop in pixels.")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.short_sides and self.max_size < max(self.short_sides):
            raise ValueError(
                f"max_size ({self.max_size}) is below the largest of short_sides ({max(self.short_sides)})"
            )
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min ({self.crop_min}) exceeds crop_max ({self.crop_max})")
        return self


class DataConfig(Config):
    """A dataset in COCO format: two folders of images and two annotation files.

    Paths may hold `~`, `$VARIABLE` and `${VARIABLE}`, which are replaced when the files are read, not before: a saved
    config keeps them as written. Relative paths are relative to the current directory.
    """

    kind: Literal["coco"] = "coco"
    train_images: Path = Field(description="Folder that the file names of the training images are relative to.")
    train_annotations: Path = Field(description="COCO JSON file of the training images.")
    val_images: Path = Field(description="Folder that the file names of the evaluation images are relative to.")
    val_annotations: Path = Field(description="COCO JSON file of the evaluation images.")
    label_map: LabelMap | None = Field(
        default=None,
        description="Which category each label means. None: the categories of the training annotations by rising id. "
        "A map with fewer categories than the files selects those.",
    )
    ignore_unknown_categories: bool = Field(
        default=False,
        description="Skip and count boxes of a category that the label map lacks, instead of refusing them.",
    )
    augment: AugmentConfig = AugmentConfig()
    eval_short_side: PositiveInt | None = Field(
        default=800, description="The shorter side of an image in evaluation, in pixels; None keeps the size."
    )
    eval_max_size: PositiveInt = Field(
        default=1333, description="Limit of the longer side in evaluation, to which the shorter side gives way."
    )
    image_mean: Channels = Field(
        default=IMAGENET_MEAN, description="Subtracted from red, green and blue, on a scale of 0 to 1."
    )
    image_std: PositiveChannels = Field(default=IMAGENET_STD, description="Red, green and blue are divided by this.")
    num_workers: NonNegativeInt = Field(
        default=2, description="Processes that load images beside the training process; 0 loads in it."
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.eval_short_side is not None and self.eval_max_size < self.eval_short_side:
            raise ValueError(f"eval_max_size ({self.eval_max_size}) is below eval_short_side ({self.eval_short_side})")
        return self


class ShapesConfig(Config):
    """Pictures of circles, rectangles and triangles on noise, drawn from a seed when the dataset is built."""

    kind: Literal["shapes"] = "shapes"
    seed: NonNegativeInt = Field(default=0, description="A picture depends on this, its split and its number alone.")
    num_train: PositiveInt = Field(default=2000, description="Pictures to train on.")
    num_val: PositiveInt = Field(default=200, description="Pictures to evaluate on.")
    image_size: int = Field(default=128, ge=32, description="Height and width in pixels.")
    min_objects: NonNegativeInt = Field(
        default=1, description="Fewest shapes per picture; 0 allows pictures without any."
    )
    max_objects: PositiveInt = Field(
        default=5, description="Most shapes per picture; one that finds no free place is left out."
    )
    min_size: float = Field(
        default=0.1, gt=0, le=1, description="Smallest longer side of a shape, as a fraction of the picture's."
    )
    max_size: float = Field(
        default=0.85, gt=0, le=0.95, description="Largest longer side of a shape, as a fraction of the picture's."
    )
    noise: int = Field(default=20, ge=0, le=100, description="Amplitude of the noise on every channel, of 255.")
    augment: AugmentConfig = AugmentConfig(short_sides=(), crop=False)
    eval_short_side: PositiveInt | None = Field(
        default=None, description="Side of a picture in evaluation, in pixels; None keeps the size."
    )
    eval_max_size: PositiveInt = Field(default=1333, description="Limit of the side in evaluation, in pixels.")
    image_mean: Channels = Field(
        default=IMAGENET_MEAN, description="Subtracted from red, green and blue, on a scale of 0 to 1."
    )
    image_std: PositiveChannels = Field(default=IMAGENET_STD, description="Red, green and blue are divided by this.")
    num_workers: NonNegativeInt = Field(
        default=0, description="Processes that load images beside the training process; 0 loads in it."
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects ({self.min_objects}) exceeds max_objects ({self.max_objects})")
        if self.min_size > self.max_size:
            raise ValueError(f"min_size ({self.min_size}) exceeds max_size ({self.max_size})")
        side = self.min_size * self.image_size
        if side < 6:
            raise ValueError(f"min_size ({self.min_size}) makes shapes of {side:.1f} pixels; at least 6 are needed")
        return self


AnyDataConfig = Annotated[DataConfig | ShapesConfig, Field(discriminator="kind")]
