"""What a model needs beside its config and weights to detect objects in photographs."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from deformdetr._coco_types import LabelMap
from deformdetr.config import Config
from deformdetr.models import IMAGENET_MEAN, IMAGENET_STD

_Mean = tuple[float, float, float]
_Std = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class InferenceSettings(Config):
    """Names of classes, and the preparation of images; the defaults are those of the published models.

    The fields are the label map, the arguments of `deformdetr.models.prepare_image`, and those of
    `deformdetr.data.DecodeConfig`, apart from the limit of an image's size, which is left to the program that loads
    images, and the threshold that suits the model.

    Examples:
        >>> from deformdetr.data import LabelMap
        >>> InferenceSettings(label_map=LabelMap.contiguous({17: "cat", 18: "dog"}), short_side=640).max_size
        1333
    """

    label_map: LabelMap | None = Field(default=None, description="Name and category of each label, if they are known.")
    image_mean: Annotated[_Mean, Field(description="Subtracted from red, green and blue, from 0 to 1.")] = IMAGENET_MEAN
    image_std: Annotated[_Std, Field(description="Red, green and blue are divided by this.")] = IMAGENET_STD
    short_side: PositiveInt | None = Field(
        default=800, description="Shorter side of an image after resizing, in pixels; None keeps the size."
    )
    max_size: PositiveInt | None = Field(default=1333, description="Limit of the longer side; None sets no limit.")
    orientation: Literal["upright", "stored"] = Field(
        default="upright", description="Whether photographs are turned by their EXIF orientation."
    )
    gray_bits: Annotated[int, Field(ge=8, le=16)] | None = Field(
        default=None,
        description="Bits that 16-bit grayscale really uses; None: the fewest that hold an image's values.",
    )

    best_threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Threshold of scores with the highest F1 in the evaluation of the model, if it is known.",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> "InferenceSettings":
        if self.short_side is not None and self.max_size is not None and self.max_size < self.short_side:
            raise ValueError(f"max_size ({self.max_size}) is below short_side ({self.short_side})")
        return self
