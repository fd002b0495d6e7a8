"""Preprocessing of images: resizing, scaling to [0, 1] and normalization."""

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
    """Resize and normalize an image for evaluation, as the transforms of `deformdetr.data` do.

    Args:
        image: uint8, or floating-point in [0, 1].
        short_side: Shorter side after resizing, in pixels. None keeps the size.
        max_size: As in `resized_size`.
        mean: Subtracted from red, green and blue, on a scale of 0 to 1.
        std: Red, green and blue are divided by this.

    Examples:
        >>> import torch
        >>> from deformdetr.models import IMAGENET_MEAN, IMAGENET_STD, prepare_image
        >>> image = torch.zeros(3, 120, 160, dtype=torch.uint8)
        >>> prepare_image(image, short_side=60, max_size=100, mean=IMAGENET_MEAN, std=IMAGENET_STD).shape
        torch.Size([3, 60, 80])
    """
    if short_side is not None:
        image = resize_image(image, resized_size(image.shape[1], image.shape[2], short_side, max_size))
    return normalize_image(image, mean, std)


def resized_size(height: int, width: int, short_side: int, max_size: int | None) -> tuple[int, int]:
    """Return the (height, width) to which DETR resizes an image, keeping its aspect ratio up to rounding.

    The shorter side becomes `short_side`, unless the longer side would then exceed `max_size`. In that case the longer
    side becomes `max_size`, up to rounding.

    Examples:
        >>> from deformdetr.models import resized_size
        >>> resized_size(480, 640, 800, 1333)
        (800, 1066)
        >>> resized_size(200, 640, 800, 1333)
        (417, 1334)
    """
    shorter, longer = min(height, width), max(height, width)
    if max_size is not None and longer * short_side > max_size * shorter:
        # The original fails for images so long that the shorter side rounds to 0.
        short_side = max(1, round(max_size * shorter / longer))
    long_side = short_side * longer // shorter
    return (short_side, long_side) if height <= width else (long_side, short_side)


def resize_image(image: Num[Tensor, "3 _ _"], size: tuple[int, int]) -> Num[Tensor, "3 _ _"]:
    """Resize to (height, width) in pixels, bilinearly with antialiasing. A uint8 image stays uint8.

    Examples:
        >>> import torch
        >>> from deformdetr.models import resize_image
        >>> resize_image(torch.zeros(3, 60, 80, dtype=torch.uint8), (30, 40)).shape
        torch.Size([3, 30, 40])
    """
    if image.shape[1:] == size:
        return image
    # On the CPU, PyTorch resizes uint8 in integers, as Pillow does. Other devices do not support uint8.
    # It fails where the result is a single pixel.
    is_native = image.is_floating_point() or (image.device.type == "cpu" and size != (1, 1))
    values = image if is_native else image.float()
    resized = F.interpolate(values[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return resized if is_native else resized.round().to(image.dtype)


def normalize_image(
    image: Num[Tensor, "3 height width"],
    mean: Sequence[float] | Num[Tensor, "3 ..."],
    std: Sequence[float] | Num[Tensor, "3 ..."],
) -> Float[Tensor, "3 height width"]:
    """Subtract the mean and divide by the standard deviation, after scaling a uint8 image to [0, 1] in float32.

    Examples:
        >>> import torch
        >>> from deformdetr.models import normalize_image
        >>> normalize_image(torch.full((3, 1, 1), 255, dtype=torch.uint8), (0.5, 0.5, 0.5), (0.5, 0.25, 0.1)).flatten()
        tensor([1., 2., 5.])
    """
    if image.dtype == torch.uint8:
        image = image.float() / 255
    mean, std = (torch.as_tensor(each, dtype=image.dtype, device=image.device).view(3, 1, 1) for each in (mean, std))
    return (image - mean) / std
