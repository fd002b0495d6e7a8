"""What becomes of an image before a model sees it: resized, scaled to [0, 1] and normalized."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def prepare_image(
    image: Num[Tensor, "3 _height _width"],
    *,
    short_side: int | None,
    max_size: int | None,
    mean: Sequence[float] | Num[Tensor, "3 ..."],
    std: Sequence[float] | Num[Tensor, "3 ..."],
) -> Float[Tensor, "3 _ _"]:
    """Return an image as models take it in evaluation; the data pipeline's steps are the same.

    Args:
        image: uint8, or floating-point in [0, 1].
        short_side: Pixels of the shorter side after resizing; None keeps the size.
        max_size: As in `resized_size`.
        mean: Of red, green and blue, in [0, 1], subtracted.
        std: Of red, green and blue, divided by.
    """
    if short_side is not None:
        image = resize_image(image, resized_size(image.shape[1], image.shape[2], short_side, max_size))
    return normalize_image(image, mean, std)


def resized_size(height: int, width: int, short_side: int, max_size: int | None) -> tuple[int, int]:
    """Return (height, width) after resizing as DETR does: the aspect is kept up to rounding.

    The shorter side becomes `short_side`, or what keeps the longer side within `max_size` up to rounding: 200 x 640
    pixels become 417 x 1334 where these are 800 and 1333.
    """
    shorter, longer = min(height, width), max(height, width)
    if max_size is not None and longer * short_side > max_size * shorter:
        # The original refuses images so long that nothing is left of the shorter side.
        short_side = max(1, round(max_size * shorter / longer))
    long_side = short_side * longer // shorter
    return (short_side, long_side) if height <= width else (long_side, short_side)


def resize_image(image: Num[Tensor, "3 _ _"], size: tuple[int, int]) -> Num[Tensor, "3 _ _"]:
    """Resize to (height, width) in pixels, bilinearly with antialiasing; a uint8 image is rounded to uint8."""
    if image.shape[1:] == size:
        return image
    # Of uint8, PyTorch's CPU computes in integers, as Pillow does; its other devices do not compute at all.
    is_native = image.is_floating_point() or image.device.type == "cpu"
    values = image if is_native else image.float()
    resized = F.interpolate(values[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return resized if is_native else resized.round().to(image.dtype)


def normalize_image(
    image: Num[Tensor, "3 height width"],
    mean: Sequence[float] | Num[Tensor, "3 ..."],
    std: Sequence[float] | Num[Tensor, "3 ..."],
) -> Float[Tensor, "3 height width"]:
    """Scale a uint8 image to [0, 1] in float32, subtract the mean and divide by the standard deviation."""
    if image.dtype == torch.uint8:
        image = image.float() / 255
    mean, std = (torch.as_tensor(each, dtype=image.dtype, device=image.device).view(3, 1, 1) for each in (mean, std))
    return (image - mean) / std
