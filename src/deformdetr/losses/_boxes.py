"""Losses of boxes."""

from jaxtyping import Float
from torch import Tensor

from deformdetr.boxes import elementwise_generalized_box_iou


def giou_loss(boxes: Float[Tensor, "*batch 4"], targets: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute one minus the generalized IoU of corresponding xyxy boxes, in [0, 2]; the result is not reduced.

    Examples:
        >>> import torch
        >>> giou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
        tensor([0.5000])

    References:
        Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 2.
    """
    return 1 - elementwise_generalized_box_iou(boxes, targets)
