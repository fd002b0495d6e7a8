"""Inputs of models: a batch of images and its padding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from deformdetr._tracing import compares_sizes, is_tracing
from deformdetr.structures import ImageBatch


def as_batch(images: Tensor | Sequence[Tensor], padding_mask: Tensor | None) -> ImageBatch:
    """Return a padded batch of images.

    Args:
        images: (batch, 3, height, width), or images (3, height, width) of any sizes.
        padding_mask: (batch, height, width), True at padded pixels; None if there are none.

    Raises:
        ValueError: If a padding mask comes with a list of images, or shapes do not match.
    """
    if not isinstance(images, Tensor):
        if padding_mask is not None:
            raise ValueError("padding_mask goes with a batch; a list of images is padded here")
        return ImageBatch.from_images(list(images))
    _check(images, padding_mask)
    if padding_mask is None:
        padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    return ImageBatch(images, padding_mask)


@compares_sizes
def _check(images: Tensor, padding_mask: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (batch, 3, height, width), got {tuple(images.shape)}")
    if padding_mask is not None and padding_mask.shape != images[:, 0].shape:
        raise ValueError(f"padding_mask {tuple(padding_mask.shape)} does not fit images {tuple(images.shape)}")


def is_unpadded(images: Tensor | Sequence[Tensor], padding_mask: Tensor | None) -> bool:
    """Return whether there is certainly no padding, as far as the CPU can tell without waiting for a GPU."""
    if padding_mask is None:
        return isinstance(images, Tensor) or len({image.shape for image in images}) == 1
    # A recorded graph must work for other masks.
    is_recorded = torch.compiler.is_compiling() or is_tracing()
    return padding_mask.device.type == "cpu" and not is_recorded and not padding_mask.any()


def shrink_mask(
    padding_mask: Bool[Tensor, "batch height width"], height: int, width: int
) -> Bool[Tensor, "batch new_height new_width"]:
    """Resize a mask to a feature map by nearest neighbor."""
    return F.interpolate(padding_mask[:, None].float(), size=(height, width))[:, 0].bool()
