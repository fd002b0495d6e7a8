"""Conversions, areas and overlaps of axis-aligned boxes, and the inverse of the sigmoid that bounds them.

A box is four floats on the last axis: (x_min, y_min, x_max, y_max), called xyxy, or (center x, center y, width,
height), called cxcywh. Units are the caller's: pixels or fractions of the image. No function waits for a GPU.
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
    """Convert (center x, center y, width, height) to (x_min, y_min, x_max, y_max).

    Examples:
        >>> cxcywh_to_xyxy(torch.tensor([5.0, 5.0, 2.0, 4.0]))
        tensor([4., 3., 6., 7.])
    """
    center, half_size = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half_size, center + half_size], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert (x_min, y_min, x_max, y_max) to (center x, center y, width, height).

    Examples:
        >>> xyxy_to_cxcywh(torch.tensor([4.0, 3.0, 6.0, 7.0]))
        tensor([5., 5., 2., 4.])
    """
    lower, upper = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(lower + upper) / 2, upper - lower], dim=-1)


def scale_boxes(
    boxes: Float[Tensor, "*batch 4"], size_hw: tuple[int | float, int | float] | Num[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 4"]:
    """Multiply boxes by the size of their image, which converts fractions of the image to pixels.

    Args:
        boxes: xyxy or cxcywh.
        size_hw: (height, width) of the image, or a tensor of such pairs that broadcasts over the boxes' leading axes.

    Examples:
        >>> scale_boxes(torch.tensor([0.5, 0.5, 0.25, 0.5]), (480, 640))
        tensor([320., 240., 160., 240.])
    """
    height, width = size_hw.to(boxes.dtype).unbind(-1) if isinstance(size_hw, Tensor) else size_hw
    first_x, first_y, second_x, second_y = boxes.unbind(-1)
    return torch.stack([first_x * width, first_y * height, second_x * width, second_y * height], dim=-1)


def box_area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute the areas of xyxy boxes; a box with x_max < x_min or y_max < y_min has area 0.

    Examples:
        >>> box_area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [2.0, 0.0, 0.0, 3.0]]))
        tensor([6., 0.])
    """
    return _area_between(boxes[..., :2], boxes[..., 2:])


def elementwise_box_iou(boxes1: Float[Tensor, "*#batch 4"], boxes2: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "..."]:
    """Compute the intersection over union of corresponding xyxy boxes, in [0, 1]; leading axes broadcast.

    The IoU of two boxes without area is 0.

    Examples:
        >>> elementwise_box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
        tensor([0.5000])
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    return _ratio(intersection, union)


def elementwise_generalized_box_iou(
    boxes1: Float[Tensor, "*#batch 4"], boxes2: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "..."]:
    """Compute the generalized intersection over union of corresponding xyxy boxes, in [-1, 1]; leading axes broadcast.

    The GIoU is 0 where the smallest box that encloses both has no area.

    Examples:
        >>> elementwise_generalized_box_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
        tensor(-0.5000)

    References:
        Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    lower, upper = torch.minimum(boxes1[..., :2], boxes2[..., :2]), torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    enclosing = _area_between(lower, upper)
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def box_iou(boxes1: Float[Tensor, "*batch n 4"], boxes2: Float[Tensor, "*batch m 4"]) -> Float[Tensor, "*batch n m"]:
    """Compute the intersection over union of every xyxy box in `boxes1` with every one in `boxes2`, in [0, 1].

    Examples:
        >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0], [5.0, 5.0, 6.0, 6.0]]))
        tensor([[0.5000, 0.0000]])
    """
    return elementwise_box_iou(boxes1.unsqueeze(-2), boxes2.unsqueeze(-3))


def generalized_box_iou(
    boxes1: Float[Tensor, "*batch n 4"], boxes2: Float[Tensor, "*batch m 4"]
) -> Float[Tensor, "*batch n m"]:
    """Compute the generalized intersection over union of every xyxy box in `boxes1` with every one in `boxes2`.

    Values lie in [-1, 1].

    Examples:
        >>> generalized_box_iou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([[-0.5000]])

    References:
        Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    return elementwise_generalized_box_iou(boxes1.unsqueeze(-2), boxes2.unsqueeze(-3))


def inverse_sigmoid(x: Float[Tensor, "*batch"], eps: float = 1e-5) -> Float[Tensor, "*batch"]:
    """Compute the logits of probabilities, bounded to `log(eps)` and `-log(eps)`.

    Args:
        x: Probabilities; values outside [0, 1] are clamped.
        eps: Lower bound of the probability and of its complement. Deformable DETR uses 1e-5, detrex and DINO 1e-3.

    Raises:
        ValueError: If `eps` does not lie in (0, 0.5).

    Examples:
        >>> inverse_sigmoid(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-11.5129,   0.0000,  11.5129])
    """
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must lie in (0, 0.5), got {eps}")
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = torch.maximum(boxes1[..., :2], boxes2[..., :2]), torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _area_between(lower, upper)
    return intersection, box_area(boxes1) + box_area(boxes2) - intersection


def _area_between(lower: Tensor, upper: Tensor) -> Tensor:
    width, height = (upper - lower).clamp(min=0).unbind(-1)
    return width * height


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # Compared with zero rather than clamped: NaN stays visible, and the gradient at an empty box is 0, not 1 / eps.
    is_zero = denominator == 0
    return torch.where(is_zero, 0, numerator / torch.where(is_zero, 1, denominator))
