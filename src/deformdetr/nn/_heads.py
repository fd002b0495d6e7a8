"""What turns a query's vector into class logits and a box."""

import math

from torch import nn

from deformdetr.nn._feed_forward import MLP


def class_head(d_model: int, num_classes: int, *, prior: float = 0.01) -> nn.Linear:
    """Build a linear classifier that starts out giving every class the probability `prior`.

    Args:
        d_model: Channels in.
        num_classes: Logits out.
        prior: Initial probability, in (0, 1); a small one keeps the focal loss of the many negatives small at the
            start.

    Raises:
        ValueError: If `prior` lies outside (0, 1).

    References:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4.1.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie in (0, 1), got {prior}")
    head = nn.Linear(d_model, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def box_head(d_model: int, *, size_bias: float = 0.0) -> MLP:
    """Build a three-layer perceptron that starts out leaving the centre of the reference it is added to unchanged.

    Args:
        d_model: Channels in; four come out, added to the logits of (cx, cy, w, h).
        size_bias: Initial logit added to width and height; -2 starts with boxes of 12 % of the image where the
            reference is a point.
    """
    head = MLP(d_model, d_model, 4, 3)
    weight, bias = head.layers[-1].parameters()
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    nn.init.constant_(bias[2:], size_bias)
    return head
