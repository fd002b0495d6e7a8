"""Masks of a model's queries, and their conversion to the pixels of the images."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from deformdetr._grids import image_grid
from deformdetr.nn import MaskHead, valid_ratios
from deformdetr.structures import Predictions

# The float32 mask of an image of 12 million pixels takes 48 MB, and sampling it as much again.
_MASKS_AT_ONCE = 8


def add_masks(
    outputs: Predictions,
    head: MaskHead,
    hidden: Float[Tensor, "batch decoded d_model"],
    encoded: Float[Tensor, "batch d_model height width"],
    features: Float[Tensor, "batch d_model height width"],
    backbone_features: Sequence[Float[Tensor, "batch _channels _height _width"]],
    *,
    padding_mask: Bool[Tensor, "batch height width"] | None,
    image_padding: Bool[Tensor, "batch image_height image_width"],
) -> None:
    """Add the masks of all queries, and the `valid_ratios` of the images, to the outputs of a model.

    Args:
        outputs: Predictions of the model, which are changed in place.
        head: Predicts the masks.
        hidden: Hidden states of the last decoder layer; the matched queries come last.
        encoded: The encoder's output at the level of the backbone's last feature.
        features: The encoder's input at the same level.
        backbone_features: Features of the backbone, finest first; those before the last are the head's laterals.
        padding_mask: True at padded pixels of the level; None if there are none.
        image_padding: True at padded pixels of the images.
    """
    query = hidden[:, -outputs["pred_logits"].shape[1] :]
    laterals = backbone_features[-1 - len(head.laterals) : -1]
    outputs["pred_masks"] = head(query, encoded, features, laterals, padding_mask)
    outputs["valid_ratios"] = valid_ratios([image_padding])[:, 0]


@torch.no_grad()
def masks_in_image(
    logits: Float[Tensor, "masks mask_height mask_width"],
    valid_ratio: Float[Tensor, "2"] | None,
    size: tuple[int, int],
    *,
    threshold: float | None = None,
) -> Float[Tensor, "masks 1 {size[0]} {size[1]}"] | Bool[Tensor, "masks 1 {size[0]} {size[1]}"]:
    """Return masks without padding, resized to the image by bilinear interpolation, a few masks at a time.

    Args:
        logits: Mask logits of the padded image.
        valid_ratio: Unpadded fraction of its width and height, (x, y); None if there is no padding.
        size: (height, width) of the image, in pixels.
        threshold: Probability above which a pixel is True; None returns probabilities in float32.
    """
    masks = logits.new_empty(len(logits), 1, *size, dtype=torch.float32 if threshold is None else torch.bool)
    start = 0
    for enlarged in enlarge(logits, valid_ratio, size):
        probability = enlarged.sigmoid()
        end = start + len(enlarged)
        masks[start:end, 0] = probability if threshold is None else probability > threshold
        start = end
    return masks


def enlarge(
    logits: Float[Tensor, "masks mask_height mask_width"], valid_ratio: Float[Tensor, "2"] | None, size: tuple[int, int]
) -> Iterator[Float[Tensor, "_piece {size[0]} {size[1]}"]]:
    """Iterate over pieces of masks without padding, resized to the image by bilinear interpolation, in float32.

    Args:
        logits: As in `masks_in_image`.
        valid_ratio: As in `masks_in_image`.
        size: As in `masks_in_image`.
    """
    height, width = size
    ratio = logits.new_ones(2, dtype=torch.float32) if valid_ratio is None else valid_ratio.float()
    grid = image_grid(height, width, ratio)
    for piece in torch.split(logits, _MASKS_AT_ONCE):
        if len(piece):
            yield F.grid_sample(piece[None].float(), grid, padding_mode="border", align_corners=False)[0]
