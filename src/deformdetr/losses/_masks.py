"""Losses of the masks of matched queries."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from deformdetr.losses._focal import dice_loss, sigmoid_focal_loss
from deformdetr.structures import Target


def check_masks(pred_masks: Tensor, targets: Sequence[Target]) -> None:
    """Check shapes and devices of masks, which is free on any device.

    Raises:
        ValueError: If a target has no masks, or not one for each of its labels, or they lie on another device.
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
            raise ValueError(f"masks of image {image} lie on {masks.device}, the predictions on {pred_masks.device}")


def mask_losses(
    pred_masks: Float[Tensor, "batch queries mask_height mask_width"],
    targets: Sequence[Target],
    pairs: Int64[Tensor, "3 pairs"],
    num_boxes: Float[Tensor, ""],
) -> dict[str, Float[Tensor, ""]]:
    """Judge the masks of matched queries, enlarged to the padded images.

    `loss_mask` is the focal loss averaged over a mask's pixels, padding included, `loss_dice` the dice loss; both are
    summed over pairs and divided by `num_boxes`.

    Args:
        pred_masks: Logits.
        targets: One per image. The largest height and width among their masks are those of the padded images.
        pairs: Image, query and target (counted over the batch) of every pair.
        num_boxes: What sums are divided by.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.4 and appendix A.2.
    """
    image, query, target = pairs.unbind(0)
    wanted = _padded([of_image["masks"] for of_image in targets])[target]
    found = pred_masks[image, query]
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    enlarged = F.interpolate(found[:, None], wanted.shape[-2:], mode="bilinear", align_corners=False)
    logits, truth = enlarged.flatten(1), wanted.flatten(1).to(found.dtype)
    return {
        "loss_mask": sigmoid_focal_loss(logits, truth).mean(1).sum() / num_boxes,
        "loss_dice": dice_loss(logits, truth).sum() / num_boxes,
    }


def _padded(masks: Sequence[Bool[Tensor, "_ _ _"]]) -> Bool[Tensor, "targets height width"]:
    """Pad masks at the bottom and on the right, as their images are."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (1, 2))
    return torch.cat([F.pad(mask.bool(), (0, width - mask.shape[2], 0, height - mask.shape[1])) for mask in masks])
