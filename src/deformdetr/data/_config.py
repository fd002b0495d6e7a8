"""Configs of datasets and their augmentation."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deformdetr._coco_types import LabelMap
from deformdetr.config import Config, DefaultedConfig, Source
from deformdetr.models import IMAGENET_MEAN, IMAGENET_STD

Probability = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val"]
# Far above what images and networks have: a larger number is a slip.
Pixels = Annotated[int, Field(ge=1, le=65_536)]

# Fields of several kinds of datasets.
_Labels = Annotated[
    LabelMap | None,
    Field(
        description="The category of each label. None: the categories of the training annotations by ascending id. A "
        "map with fewer categories than the files selects those.",
    ),
]
_IgnoreUnknown = Annotated[
    bool, Field(description="Skip and count boxes whose category is not in the label map, instead of raising an error.")
]
_EvalShortSide = Annotated[
    Pixels | None, Field(description="The shorter side of an image in evaluation, in pixels; None keeps the size.")
]
_EvalMaxSize = Annotated[
    Pixels | None,
    Field(
        description="Limit of the longer side in evaluation; the shorter side shrinks to keep the aspect ratio. None "
        "sets no limit."
    ),
]
_ImageMean = Annotated[
    tuple[Probability, Probability, Probability],
    Field(description="Subtracted from red, green and blue, on a scale of 0 to 1."),
]
# Smaller ones would be zero in float32, or give images of infinite colors.
_Deviation = Annotated[float, Field(ge=1e-6)]
_ImageStd = Annotated[
    tuple[_Deviation, _Deviation, _Deviation], Field(description="Red, green and blue are divided by this.")
]
_NumWorkers = Annotated[
    int,
    Field(ge=0, le=128, description="Processes that load images beside the training process; 0 loads in it."),
]


_Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(description="Least and largest factor.")]


class ColorConfig(DefaultedConfig):
    """Random changes of color: torchvision's `RandomPhotometricDistort`, after SSD.

    Brightness, contrast, saturation and hue change independently, each with `probability`, and the channels are
    permuted with it.
    """

    probability: Probability = Field(default=0.5, description="Probability of each change.")
    brightness: _Range = (0.875, 1.125)
    contrast: _Range = (0.5, 1.5)
    saturation: _Range = (0.5, 1.5)
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.05, description="Largest shift, as a fraction of the color circle."
    )


class ZoomOutConfig(DefaultedConfig):
    """Images on a larger canvas of the mean color, so that objects become smaller: torchvision's `RandomZoomOut`."""

    probability: Probability = Field(default=0.5, description="Probability that an image is zoomed out.")
    max_side: Annotated[float, Field(ge=1, le=8)] = Field(
        default=2.0,
        description="Largest side of the canvas, as a multiple of the image's; memory grows with its square.",
    )


class DecodeConfig(DefaultedConfig):
    """How image files become pixels: the same for training, checks, evaluation, prediction and export.

    Examples:
        >>> from deformdetr.data import DecodeConfig
        >>> DecodeConfig(gray_bits=12).orientation
        'upright'
    """

    orientation: Literal["upright", "stored"] = Field(
        default="upright",
        description="Whether photographs are turned by their EXIF orientation, as browsers show them, or used as "
        "stored; boxes must refer to the same.",
    )
    gray_bits: Annotated[int, Field(ge=8, le=16)] | None = Field(
        default=None,
        description="Bits that 16-bit grayscale really uses, such as 12; None: the fewest of 8, 10, 12, 14 and 16 that "
        "hold all values of the file.",
    )
    max_pixels: PositiveInt | None = Field(
        default=None,
        description="Largest number of pixels of an image; None keeps Pillow's limit against decompression bombs, 179 "
        "million.",
    )
    allow_outside: bool = Field(
        default=False,
        description="Read images outside the folder of images, to which absolute names, `..` or links lead.",
    )


DEFAULT_DECODING = DecodeConfig()
_Decode = Annotated[DecodeConfig, Field(description="How image files become pixels.")]


class AugmentConfig(DefaultedConfig):
    """Augmentation of training images. The defaults are the recipe of DETR and Deformable DETR for COCO.

    With `color`, colors are changed, and with `zoom_out`, images are placed on a larger canvas. Then images are flipped
    and resized. With `crop`, half of them (`crop_probability`) are first resized so that their shorter side is one of
    `crop_resize`, and cropped to a random rectangle with sides from `crop_min` to `crop_max`.

    Examples:
        >>> from deformdetr.data import AugmentConfig, ShapesConfig
        >>> config = ShapesConfig(augment=AugmentConfig(short_sides=(96, 128), crop=False))
        >>> config.augment.flip
        0.5
    """

    color: ColorConfig | None = Field(
        default=None,
        description="Change colors: {probability: 0.5}, also brightness, contrast, saturation, hue; null: not.",
    )
    zoom_out: ZoomOutConfig | None = Field(
        default=None, description="Place images on a larger canvas: {probability: 0.5, max_side: 2}; null: not."
    )
    flip: Probability = Field(default=0.5, description="Probability of a horizontal flip.")
    vertical_flip: Probability = Field(
        default=0.0, description="Probability of a vertical flip, for pictures without up and down."
    )
    short_sides: tuple[Pixels, ...] = Field(
        default=tuple(range(480, 801, 32)),
        description="The shorter side after resizing, in pixels, is drawn from these; empty keeps the size.",
    )
    max_size: Pixels = Field(
        default=1333,
        description="Limit of the longer side in pixels; the shorter side shrinks to keep the aspect ratio.",
    )
    crop: bool = Field(default=True, description="Whether to crop images at random.")
    crop_probability: Probability = Field(default=0.5, description="Probability that an image is cropped.")
    crop_resize: tuple[Pixels, ...] = Field(
        default=(400, 500, 600),
        description="The shorter side before the crop, in pixels, is drawn from these; empty keeps the size.",
    )
    crop_min: Pixels = Field(
        default=384, description="Smallest side of the crop in pixels; a smaller image keeps its side."
    )
    crop_max: Pixels = Field(default=600, description="Largest side of the crop in pixels.")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.short_sides and self.max_size < max(self.short_sides):
            raise ValueError(
                f"max_size ({self.max_size}) is below the largest of short_sides ({max(self.short_sides)})"
            )
        if self.color is not None:
            for name in ("brightness", "contrast", "saturation"):
                low, high = getattr(self.color, name)
                if low > high:
                    raise ValueError(f"color.{name} must be a least and a largest factor, got {low} and {high}")
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min ({self.crop_min}) exceeds crop_max ({self.crop_max})")
        return self


def _check_eval_sizes(config: Any) -> Any:
    short_side, max_size = config.eval_short_side, config.eval_max_size
    if short_side is not None and max_size is not None and max_size < short_side:
        raise ValueError(f"eval_max_size ({max_size}) is below eval_short_side ({short_side})")
    return config


class DataConfig(Config):
    """A dataset in COCO format: two folders of images and two annotation files.

    Paths may contain `~`, `$VARIABLE` and `${VARIABLE}`. They are expanded when the files are read, so that a saved
    config keeps them as written. Relative paths are relative to the current directory.

    Examples:
        >>> from deformdetr.data import DataConfig
        >>> config = DataConfig(
        ...     train_images="$COCO/train2017",
        ...     train_annotations="$COCO/annotations/instances_train2017.json",
        ...     val_images="$COCO/val2017",
        ...     val_annotations="$COCO/annotations/instances_val2017.json",
        ... )
        >>> config.eval_short_side
        800
    """

    kind: Literal["coco"] = "coco"
    train_images: Path = Field(description="Folder that the file names of the training images are relative to.")
    train_annotations: Path = Field(description="COCO JSON file of the training images.")
    val_images: Path = Field(description="Folder that the file names of the evaluation images are relative to.")
    val_annotations: Path = Field(description="COCO JSON file of the evaluation images.")
    label_map: _Labels = None
    ignore_unknown_categories: _IgnoreUnknown = False
    decode: _Decode = DEFAULT_DECODING
    augment: AugmentConfig = AugmentConfig()
    eval_short_side: _EvalShortSide = 800
    eval_max_size: _EvalMaxSize = 1333
    image_mean: _ImageMean = IMAGENET_MEAN
    image_std: _ImageStd = IMAGENET_STD
    num_workers: _NumWorkers = 2

    _check_sizes = model_validator(mode="after")(_check_eval_sizes)


class ShardsConfig(Config):
    """A dataset in shards: tar files with images, in folders or at URLs, beside an index and COCO annotations.

    `deformdetr shards` writes them. From folders, images are read where they lie in the shards. From a URL, each image
    is fetched by a request for its bytes, so that data need not fit the disk.

    Examples:
        >>> from deformdetr.data import ShardsConfig
        >>> config = ShardsConfig(train="https://host/photos/train", val="$PHOTOS/val")
        >>> config.cache_gb
        100.0
    """

    kind: Literal["shards"] = "shards"
    train: Source = Field(min_length=1, description="Folder or http(s) URL of the shards of the training images.")
    val: Source = Field(min_length=1, description="Folder or http(s) URL of the shards of the evaluation images.")
    cache: Path | None = Field(
        default=None, description="Folder that keeps images from URLs for later epochs; None keeps none."
    )
    cache_gb: PositiveFloat = Field(
        default=100.0, description="Most gigabytes that the cache keeps of each split: the images of its first shards."
    )
    label_map: _Labels = None
    ignore_unknown_categories: _IgnoreUnknown = False
    decode: _Decode = DEFAULT_DECODING
    augment: AugmentConfig = AugmentConfig()
    eval_short_side: _EvalShortSide = 800
    eval_max_size: _EvalMaxSize = 1333
    image_mean: _ImageMean = IMAGENET_MEAN
    image_std: _ImageStd = IMAGENET_STD
    num_workers: _NumWorkers = 2

    _check_sizes = model_validator(mode="after")(_check_eval_sizes)


class ShapesConfig(DefaultedConfig):
    """Images of circles, rectangles and triangles on noise, drawn from a seed when the dataset is built.

    Examples:
        >>> from deformdetr.data import ShapesConfig, build_dataset
        >>> dataset = build_dataset(ShapesConfig(num_train=4, max_objects=2), "train")
        >>> len(dataset), dataset.label_map.names
        (4, ('circle', 'rectangle', 'triangle'))
    """

    kind: Literal["shapes"] = "shapes"
    seed: NonNegativeInt = Field(default=0, description="An image depends only on this, its split and its index.")
    num_train: int = Field(default=2000, ge=1, le=10_000_000, description="Training images.")
    num_val: int = Field(default=200, ge=1, le=10_000_000, description="Evaluation images.")
    image_size: int = Field(default=128, ge=32, le=2048, description="Height and width in pixels.")
    min_objects: NonNegativeInt = Field(default=1, description="Fewest shapes per image; 0 allows empty images.")
    max_objects: Annotated[int, Field(ge=1, le=1_000)] = Field(
        default=5, description="Most shapes per image; a shape that finds no free place is left out."
    )
    min_size: float = Field(
        default=0.1, gt=0, le=1, description="Smallest longer side of a shape, as a fraction of the image's."
    )
    max_size: float = Field(
        default=0.85, gt=0, le=0.95, description="Largest longer side of a shape, as a fraction of the image's."
    )
    noise: int = Field(
        default=20, ge=0, le=100, description="Amplitude of the noise on every channel, on a scale of 0 to 255."
    )
    stuff: bool = Field(
        default=False,
        description="Paint stripes on a part of the background, and annotate both parts, plain and striped, as stuff.",
    )
    decode: _Decode = DEFAULT_DECODING
    augment: AugmentConfig = AugmentConfig(short_sides=(), crop=False)
    eval_short_side: Pixels | None = Field(
        default=None, description="Side of an image in evaluation, in pixels; None keeps the size."
    )
    eval_max_size: Pixels | None = Field(
        default=1333, description="Limit of the side in evaluation, in pixels; None sets no limit."
    )
    image_mean: _ImageMean = IMAGENET_MEAN
    image_std: _ImageStd = IMAGENET_STD
    num_workers: _NumWorkers = 0

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


AnyDataConfig = Annotated[DataConfig | ShapesConfig | ShardsConfig, Field(discriminator="kind")]
