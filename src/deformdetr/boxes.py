"""Conversions, areas and overlaps of axis-aligned boxes, and the inverse of the sigmoid that bounds them.

A box is four floats on the last axis: (x_min, y_min, x_max, y_max), called xyxy, or (centre x, centre y, width,
height), called cxcywh. Units are the caller's: pixels or fractions of the image. Nothing here waits for a GPU.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor

__all__ = [
    "box_area",
    "box_iou",
    "cxcywh_to_xyxy",
    "elementwise_box_iou",
    "elementwise_generalized_box_iou",
    "generalized_box_iou",
    "inverse_sigmoid",
    "scale_boxes",
    "xyxy_to_cxcywh",
]


def cxcywh_to_xyxy(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert (centre x, centre y, width, height) to (x_min, y_min, x_max, y_max)."""
    centre, half_size = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half_size, centre + half_size], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert (x_min, y_min, x_max, y_max) to (centre x, centre y, width, height)."""
    lower, upper = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(lower + upper) / 2, upper - lower], dim=-1)


def scale_boxes(
    boxes: Float[Tensor, "*batch 4"], size_hw: tuple[int | float, int | float] | Num[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 4"]:
    """Multiply boxes of either form by an image's size, which takes fractions of the image to pixels.

    Args:
        boxes: xyxy or cxcywh.
        size_hw: (height, width) of the image, or one such pair for every leading index of the boxes.
    """
    height, width = size_hw.to(boxes.dtype).unbind(-1) if isinstance(size_hw, Tensor) else size_hw
    first_x, first_y, second_x, second_y = boxes.unbind(-1)
    return torch.stack([first_x * width, first_y * height, second_x * width, second_y * height], dim=-1)


def box_area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Give the areas of xyxy boxes; a box whose corners are swapped along an axis is empty."""
    return _area_between(boxes[..., :2], boxes[..., 2:])


def elementwise_box_iou(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """Give the intersection over union of corresponding xyxy boxes, in [0, 1]; leading axes broadcast.

    Two boxes without area have an overlap of 0.
    """
    intersection, union = _intersection_and_union(a, b)
    return _ratio(intersection, union)


def elementwise_generalized_box_iou(
    a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "..."]:
    """Give the generalised intersection over union of corresponding xyxy boxes, in [-1, 1]; leading axes broadcast.

    Where the smallest box around both has no area, the result is 0.

    References:
        Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    intersection, union = _intersection_and_union(a, b)
    around = _area_between(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return _ratio(intersection, union) - _ratio(around - union, around)


def box_iou(a: Float[Tensor, "*batch n 4"], b: Float[Tensor, "*batch m 4"]) -> Float[Tensor, "*batch n m"]:
    """Give the intersection over union of every xyxy box of `a` with every one of `b`, in [0, 1]."""
    return elementwise_box_iou(a.unsqueeze(-2), b.unsqueeze(-3))


def generalized_box_iou(a: Float[Tensor, "*batch n 4"], b: Float[Tensor, "*batch m 4"]) -> Float[Tensor, "*batch n m"]:
    """Give the generalised intersection over union of every xyxy box of `a` with every one of `b`, in [-1, 1].

    References:
        Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    return elementwise_generalized_box_iou(a.unsqueeze(-2), b.unsqueeze(-3))


def inverse_sigmoid(x: Float[Tensor, "*batch"], eps: float = 1e-5) -> Float[Tensor, "*batch"]:
    """Give the logit of a probability, bounded to `log(eps)` and `-log(eps)`.

    Args:
        x: Probabilities; values outside [0, 1] count as 0 or 1.
        eps: Smallest probability told from 0, and its complement from 1. The original uses 1e-5, detrex and DINO 1e-3.

    Raises:
        ValueError: If `eps` does not lie in (0, 0.5).
    """
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must lie in (0, 0.5), got {eps}")
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    intersection = _area_between(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return intersection, box_area(a) + box_area(b) - intersection


def _area_between(lower: Tensor, upper: Tensor) -> Tensor:
    width, height = (upper - lower).clamp(min=0).unbind(-1)
    return width * height


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # Compared with zero rather than clamped: NaN stays visible, and the gradient at an empty box is 0, not 1 / eps.
    is_zero = denominator == 0
    return torch.where(is_zero, 0, numerator / torch.where(is_zero, 1, denominator))
