"""Losses of the masks of matched queries."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from deformdetr._dtypes import at_least_float32
from deformdetr._grids import image_grid
from deformdetr.losses._focal import dice_loss, sigmoid_focal_loss
from deformdetr.structures import Target


def check_masks(pred_masks: Tensor, targets: Sequence[Target]) -> None:
    """Check shapes and devices of masks, without waiting for a GPU.

    Raises:
        ValueError: If a target has no masks, not one per label, or they are on another device.
    """
    for image, target in enumerate(targets):
        if "masks" not in target:
            raise ValueError(f"the model predicts masks, but targets of image {image} have only {', '.join(target)}")
        masks, count = target["masks"], len(target["labels"])
        if masks.ndim != 3 or len(masks) != count or 0 in masks.shape[1:]:
            raise ValueError(
                f"masks of image {image} must have shape ({count}, height, width), one for each label, "
                f"got {tuple(masks.shape)}"
            )
        if masks.device != pred_masks.device:
            raise ValueError(f"masks of image {image} are on {masks.device}, the predictions on {pred_masks.device}")


def mask_losses(
    pred_masks: Float[Tensor, "batch queries mask_height mask_width"],
    targets: Sequence[Target],
    pairs: Int64[Tensor, "3 pairs"],
    num_boxes: Float[Tensor, ""],
    valid_ratios: Float[Tensor, "batch 2"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Compute focal and Dice losses of the masks of matched queries.

    Masks are upsampled to the largest height and width of the targets' masks, which is the size of the batch unless its
    images are padded further. `loss_mask` is the focal loss averaged over pixels, `loss_dice` the Dice loss. Both are
    summed over pairs and divided by `num_boxes`.

    Args:
        pred_masks: Logits.
        targets: One per image, with masks of the image's size before padding.
        pairs: (image, query, target) of every pair; targets are numbered over the batch.
        num_boxes: Number of targets to normalize by.
        valid_ratios: Fraction of the predicted masks' width and height that is not padding, (x, y); None means that
            the predicted masks end where the largest target mask does.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.4 and appendix A.2.
    """
    image, query, target_index = pairs.unbind(0)
    target_masks = _pad([target["masks"] for target in targets])[target_index]
    matched = at_least_float32(pred_masks[image, query])
    logits = _upsample(matched, target_masks.shape[1:], targets[0]["masks"].shape[1:], valid_ratios).flatten(1)
    truth = target_masks.flatten(1).to(matched.dtype)
    return {
        "loss_mask": sigmoid_focal_loss(logits, truth).mean(1).sum() / num_boxes,
        "loss_dice": dice_loss(logits, truth).sum() / num_boxes,
    }


def _upsample(
    masks: Float[Tensor, "pairs mask_height mask_width"],
    size: Sequence[int],
    first_size: Sequence[int],
    valid_ratios: Float[Tensor, "batch 2"] | None,
) -> Float[Tensor, "pairs height width"]:
    """Resize masks to `size`, (height, width), by bilinear interpolation, without the padding beyond it.

    Args:
        masks: Logits over padded images.
        size: Size of the result.
        first_size: Size of the first image, whose valid ratio gives the one of `size`.
        valid_ratios: See `mask_losses`.
    """
    if valid_ratios is None:
        return F.interpolate(masks[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    (height, width), (first_height, first_width) = size, first_size
    first_x, first_y = valid_ratios[0].unbind()
    ratio = torch.stack([first_x * (width / first_width), first_y * (height / first_height)])
    grid = image_grid(height, width, ratio).to(masks.dtype)
    return F.grid_sample(masks[None], grid, padding_mode="border", align_corners=False)[0]


def _pad(masks: Sequence[Bool[Tensor, "_ _ _"]]) -> Bool[Tensor, "targets height width"]:
    """Pad masks at the bottom and on the right to a common size and concatenate them."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (1, 2))
    return torch.cat([F.pad(mask.bool(), (0, width - mask.shape[2], 0, height - mask.shape[1])) for mask in masks])
