"""Losses of class logits that keep the many easy queries from drowning the few hard ones."""

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
    """Down-weight easy examples in binary cross-entropy; the result is not reduced.

    Args:
        logits: One per class, each judged on its own.
        targets: 1 for the class that is there and 0 for the others, or probabilities between.
        alpha: Weight of the positive class, in `[0, 1]`; negatives weigh `1 - alpha`.
        gamma: Focusing exponent; 0 gives plain weighted cross-entropy.

    Raises:
        ValueError: If `alpha` lies outside `[0, 1]` or `gamma` is negative.

    References:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5.
    """
    check_focal_settings(alpha, gamma)
    probability = logits.sigmoid()
    # This is 1 - p_t of the paper, as a sum of products so that it does not cancel where p_t is near 1.
    miss = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * miss**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def check_focal_settings(alpha: float, gamma: float) -> None:
    """Refuse settings outside their range.

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
    """Give one minus the Dice overlap of predicted and true masks, each smoothed by one pixel; not reduced over masks.

    Args:
        logits: One per pixel of a flattened mask.
        targets: 1 inside the object, 0 outside.

    References:
        Milletari et al., "V-Net", 3DV 2016, section 3, with the sizes themselves in the denominator instead of squares.
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(-1)
    return 1 - (overlap + 1) / (probability.sum(-1) + targets.sum(-1) + 1)
