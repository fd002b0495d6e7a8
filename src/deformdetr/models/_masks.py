"""Masks from a model's last decoder layer, and their way to the pixels of the images."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from deformdetr._grids import image_grid
from deformdetr.nn import MaskHead, valid_ratios
from deformdetr.structures import Predictions

# A full-size mask of 12 million pixels takes 48 MB in float32, and its sampling as much again.
_MASKS_AT_ONCE = 8


def add_masks(
    outputs: Predictions,
    head: MaskHead,
    query: Float[Tensor, "batch queries d_model"],
    memory: Float[Tensor, "batch pixels d_model"],
    features: Float[Tensor, "batch d_model height width"],
    backbone_features: Sequence[Float[Tensor, "batch _channels _height _width"]],
    *,
    padding_mask: Bool[Tensor, "batch height width"] | None,
    image_padding: Bool[Tensor, "batch image_height image_width"],
) -> None:
    """Add the masks of all queries to a model's outputs, and what share of them each image takes.

    Args:
        outputs: Grows.
        head: Predicts the masks.
        query: Of the last decoder layer.
        memory: The encoder's pixels of the level that the backbone's last feature gave.
        features: The same level before the encoder.
        backbone_features: Finest first, of which the last gave the level and those before it are the head's laterals.
        padding_mask: True at padded pixels of the level; None means none.
        image_padding: True at padded pixels of the images.
    """
    laterals = backbone_features[-1 - len(head.laterals) : -1]
    encoded = memory.transpose(1, 2).view(features.shape)
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
    """Cut the padding off masks and enlarge them to the image by bilinear interpolation, a few masks at a time.

    Args:
        logits: Of the padded image.
        valid_ratio: Share of its width and height that is not padding, (x, y); None means all of it.
        size: (height, width) of the image, in pixels.
        threshold: None gives probabilities in float32; a number gives True where they are greater.
    """
    height, width = size
    ratio = logits.new_ones(2, dtype=torch.float32) if valid_ratio is None else valid_ratio.float()
    grid = image_grid(height, width, ratio)
    masks = logits.new_empty(len(logits), 1, height, width, dtype=torch.float32 if threshold is None else torch.bool)
    for start in range(0, len(logits), _MASKS_AT_ONCE):
        piece = slice(start, start + _MASKS_AT_ONCE)
        enlarged = F.grid_sample(logits[None, piece].float(), grid, padding_mode="border", align_corners=False)[0]
        probability = enlarged.sigmoid()
        masks[piece, 0] = probability if threshold is None else probability > threshold
    return masks
