"""Focal loss and Dice loss of logits."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal_loss(
    logits: Float[Tensor, "*batch classes"],
    targets: Float[Tensor, "*batch classes"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, "*batch classes"]:
    """Compute binary cross-entropy in which easy examples weigh less; the result is not reduced.

    Args:
        logits: One per class; classes are independent.
        targets: 1 for the true class and 0 for the others, or probabilities.
        alpha: Weight of the positive class, in `[0, 1]`; negatives weigh `1 - alpha`.
        gamma: Focusing exponent; 0 gives plain weighted cross-entropy.

    Raises:
        ValueError: If `alpha` lies outside `[0, 1]` or `gamma` is negative.

    Examples:
        >>> import torch
        >>> sigmoid_focal_loss(torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0.0005, 0.0014]])

    References:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5.
    """
    check_focal_settings(alpha, gamma)
    probability = logits.sigmoid()
    # 1 - p_t of the paper, as a sum of products, which does not cancel where p_t is near 1.
    miss = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * miss**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def check_focal_settings(alpha: float, gamma: float) -> None:
    """Check the parameters of the focal loss.

    Raises:
        ValueError: If `alpha` lies outside `[0, 1]` or `gamma` is negative.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")


def dice_loss(
    logits: Float[Tensor, "*batch pixels"], targets: Float[Tensor, "*batch pixels"]
) -> Float[Tensor, "*batch"]:
    """Compute one minus the Dice coefficient of predicted and true masks, smoothed by one pixel; one value per mask.

    Args:
        logits: One per pixel of a flattened mask.
        targets: 1 inside the object, 0 outside.

    Examples:
        >>> import torch
        >>> dice_loss(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        tensor([0.4000])

    References:
        Milletari et al., "V-Net", 3DV 2016, section 3. The denominator has the masks' areas instead of squares.
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(-1)
    return 1 - (overlap + 1) / (probability.sum(-1) + targets.sum(-1) + 1)
