"""Augmentation and resizing of images, boxes and masks together, with torchvision's v2 transforms.

A sample is a dictionary of an image, boxes, labels and, optionally, masks. torchvision's v2 transforms take one too,
and can be combined with those of this module.
"""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Float32, Int64, Real, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from deformdetr.boxes import xyxy_to_cxcywh
from deformdetr.data._config import AnyDataConfig, AugmentConfig
from deformdetr.models import normalize_image, prepare_image, resize_image, resized_size
from deformdetr.structures import Target


class Sample(TypedDict):
    """Input and output of transforms.

    Images are `tv_tensors.Image`. Boxes are `tv_tensors.BoundingBoxes`, xyxy in pixels. Masks are `tv_tensors.Mask`, 1
    inside the object.
    """

    image: Any
    boxes: Any
    labels: Tensor
    masks: NotRequired[Any]


SampleTransform = Callable[[Sample], Sample]


def make_sample(
    image: UInt8[Tensor, "3 height width"],
    boxes: Float32[Tensor, "n 4"],
    labels: Int64[Tensor, " n"],
    masks: UInt8[Tensor, "n height width"] | None = None,
) -> Sample:
    """Wrap an image, boxes (xyxy in pixels) and masks for torchvision's transforms.

    Examples:
        >>> import torch
        >>> from deformdetr.data import ResizeShortSide, make_sample, split_sample
        >>> image = torch.zeros(3, 40, 80, dtype=torch.uint8)
        >>> sample = make_sample(image, torch.tensor([[0.0, 0.0, 40.0, 20.0]]), torch.tensor([1]))
        >>> image, target = split_sample(ResizeShortSide([20])(sample))
        >>> image.shape
        torch.Size([3, 20, 40])
        >>> target["boxes"]
        tensor([[0.2500, 0.2500, 0.5000, 0.5000]])
    """
    height, width = image.shape[1:]
    corners = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    sample: Sample = {"image": tv_tensors.Image(image), "boxes": corners, "labels": labels}
    if masks is not None:
        sample["masks"] = tv_tensors.Mask(masks)
    return sample


def split_sample(sample: Sample) -> tuple[Real[Tensor, "3 height width"], Target]:
    """Return the image and target of a sample as plain tensors, with boxes as fractions of the image.

    Examples:
        >>> import torch
        >>> from deformdetr.data import make_sample, split_sample
        >>> image = torch.zeros(3, 40, 80, dtype=torch.uint8)
        >>> sample = make_sample(image, torch.tensor([[0.0, 0.0, 40.0, 20.0]]), torch.tensor([1]))
        >>> split_sample(sample)[1]["boxes"]
        tensor([[0.2500, 0.2500, 0.5000, 0.5000]])
    """
    image = sample["image"].as_subclass(Tensor)
    height, width = image.shape[1:]
    boxes = sample["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height], dtype=torch.float32)
    target: Target = {
        "boxes": xyxy_to_cxcywh(boxes),
        "labels": sample["labels"],
        "size": torch.tensor([height, width]),
    }
    if "masks" in sample:
        target["masks"] = sample["masks"].as_subclass(Tensor).bool()
    return image, target


class ResizeShortSide:
    """Resize so that the shorter side is one of `short_sides`: images with antialiasing, masks by nearest pixel.

    Args:
        short_sides: Sizes in pixels, drawn with equal probability.
        max_size: Limit of the longer side, up to rounding. The shorter side shrinks to keep the aspect ratio. `None`
            sets no limit.

    Raises:
        ValueError: If `short_sides` is empty.

    Examples:
        >>> import torch
        >>> from deformdetr.data import ResizeShortSide, make_sample
        >>> image = torch.zeros(3, 40, 80, dtype=torch.uint8)
        >>> sample = make_sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        >>> ResizeShortSide([20, 20], max_size=30)(sample)["image"].shape
        torch.Size([3, 15, 30])
    """

    def __init__(self, short_sides: Sequence[int], max_size: int | None = None) -> None:
        if not short_sides:
            raise ValueError("short_sides must not be empty")
        self.short_sides = tuple(short_sides)
        self.max_size = max_size

    def __call__(self, sample: Sample) -> Sample:
        drawn = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        height, width = sample["image"].shape[-2:]
        size = resized_size(height, width, drawn, self.max_size)
        resized: Sample = {
            "image": tv_tensors.Image(resize_image(sample["image"].as_subclass(Tensor), size)),
            "boxes": F.resize(sample["boxes"], size),
            "labels": sample["labels"],
        }
        if "masks" in sample:
            resized["masks"] = F.resize(sample["masks"], size)
        return resized


class RandomSizeCrop:
    """Crop a random rectangle. Boxes are clipped to it, and those without any area in it are dropped.

    Each side is drawn from `min_size` to `max_size` pixels, both included, and never exceeds the image's.

    Raises:
        ValueError: Unless 0 < `min_size` <= `max_size`.

    Examples:
        >>> import torch
        >>> from deformdetr.data import RandomSizeCrop, make_sample, split_sample
        >>> image = torch.zeros(3, 40, 80, dtype=torch.uint8)
        >>> sample = make_sample(image, torch.tensor([[0.0, 0.0, 80.0, 40.0]]), torch.tensor([1]))
        >>> image, target = split_sample(RandomSizeCrop(20, 20)(sample))
        >>> image.shape, target["boxes"]
        (torch.Size([3, 20, 20]), tensor([[0.5000, 0.5000, 1.0000, 1.0000]]))
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        if not 0 < min_size <= max_size:
            raise ValueError(f"min_size ({min_size}) and max_size ({max_size}) must satisfy 0 < min_size <= max_size")
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, sample: Sample) -> Sample:
        (top, height), (left, width) = (self._draw(side) for side in sample["image"].shape[-2:])
        boxes = F.clamp_bounding_boxes(F.crop(sample["boxes"], top, left, height, width))
        corners = boxes.as_subclass(Tensor)
        keep = (corners[:, 2:] > corners[:, :2]).all(dim=1)
        cropped: Sample = {
            "image": F.crop(sample["image"], top, left, height, width),
            "boxes": tv_tensors.wrap(corners[keep], like=boxes),
            "labels": sample["labels"][keep],
        }
        if "masks" in sample:
            masks = F.crop(sample["masks"], top, left, height, width)
            cropped["masks"] = tv_tensors.wrap(masks.as_subclass(Tensor)[keep], like=masks)
        return cropped

    def _draw(self, side: int) -> tuple[int, int]:
        low, high = min(self.min_size, side), min(self.max_size, side)
        length = int(torch.randint(low, high + 1, ()))
        return int(torch.randint(side - length + 1, ())), length


def train_transforms(augment: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> SampleTransform:
    """Return the training transforms of DETR and Deformable DETR: flip, resize or crop, and normalize.

    Changes of color and zooming out come first, if the settings have them.

    Examples:
        >>> import torch
        >>> from deformdetr.data import AugmentConfig, make_sample, split_sample, train_transforms
        >>> transforms = train_transforms(AugmentConfig(short_sides=(32,), crop=False), mean=(0, 0, 0), std=(1, 1, 1))
        >>> image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> sample = make_sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        >>> image, target = split_sample(transforms(sample))
        >>> image.shape
        torch.Size([3, 32, 32])

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4 and appendix A.4.
    """
    steps: list[Callable[..., Any]] = []
    if (color := augment.color) is not None:
        ranges = {"brightness": color.brightness, "contrast": color.contrast, "saturation": color.saturation}
        steps.append(v2.RandomPhotometricDistort(**ranges, hue=(-color.hue, color.hue), p=color.probability))
    if (zoom := augment.zoom_out) is not None:
        fill: dict[Any, Any] = {tv_tensors.Image: [round(255 * channel) for channel in mean], "others": 0}
        steps.append(v2.RandomZoomOut(fill=fill, side_range=(1.0, zoom.max_side), p=zoom.probability))
    steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip))
    resize = _resize(augment.short_sides, augment.max_size)
    if augment.crop:
        crop = [
            *_resize(augment.crop_resize, None),
            RandomSizeCrop(augment.crop_min, augment.crop_max),
            *resize,
        ]
        chance = augment.crop_probability
        # torchvision's Compose refuses an empty list.
        whole = v2.Compose(resize) if resize else v2.Identity()
        steps.append(v2.RandomChoice([v2.Compose(crop), whole], p=[chance, 1 - chance]))
    else:
        steps.extend(resize)
    return v2.Compose([*steps, _Normalize(mean, std)])  # type: ignore[no-any-return]


def eval_transforms(
    short_side: int | None, max_size: int | None, mean: Sequence[float], std: Sequence[float]
) -> SampleTransform:
    """Return the evaluation transforms: resize to a shorter side (`None` keeps the size) and normalize.

    Examples:
        >>> import torch
        >>> from deformdetr.data import eval_transforms, make_sample, split_sample
        >>> image = torch.zeros(3, 64, 96, dtype=torch.uint8)
        >>> sample = make_sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        >>> image, target = split_sample(eval_transforms(32, 100, mean=(0, 0, 0), std=(1, 1, 1))(sample))
        >>> image.shape
        torch.Size([3, 32, 48])
    """
    resize = _resize(() if short_side is None else (short_side,), max_size)
    return v2.Compose([*resize, _Normalize(mean, std)])  # type: ignore[no-any-return]


def prepare_for_evaluation(image: UInt8[Tensor, "3 _height _width"], config: AnyDataConfig) -> Float32[Tensor, "3 _ _"]:
    """Resize and normalize an image as `eval_transforms` does with the settings of a dataset.

    Examples:
        >>> import torch
        >>> from deformdetr.data import ShapesConfig, prepare_for_evaluation
        >>> config = ShapesConfig(eval_short_side=32)
        >>> prepare_for_evaluation(torch.zeros(3, 64, 96, dtype=torch.uint8), config).shape
        torch.Size([3, 32, 48])
    """
    return prepare_image(
        image,
        short_side=config.eval_short_side,
        max_size=config.eval_max_size,
        mean=config.image_mean,
        std=config.image_std,
    )


def _resize(short_sides: Sequence[int], max_size: int | None) -> list[Callable[..., Any]]:
    return [ResizeShortSide(short_sides, max_size)] if short_sides else []


class _Normalize:
    """Scale images to [0, 1] and normalize them."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = tuple(mean)
        self._std = tuple(std)

    def __call__(self, sample: Sample) -> Sample:
        image = normalize_image(sample["image"].as_subclass(Tensor), self._mean, self._std)
        return {**sample, "image": tv_tensors.Image(image)}
