"""Prediction heads for class logits and boxes."""

import math

from torch import nn

from deformdetr.nn._feed_forward import MLP


def class_head(d_model: int, num_classes: int, *, prior: float = 0.01) -> nn.Linear:
    """Build a linear classifier whose initial probability of every class is about `prior`.

    Args:
        d_model: Channels in.
        num_classes: Logits out.
        prior: Initial probability, in (0, 1). A small one keeps the initial focal loss of the many negatives small.

    Raises:
        ValueError: If `prior` lies outside (0, 1).

    References:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4.1.

    Examples:
        >>> class_head(32, num_classes=5)
        Linear(in_features=32, out_features=5, bias=True)
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie in (0, 1), got {prior}")
    head = nn.Linear(d_model, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def box_head(d_model: int, *, size_bias: float = 0.0) -> MLP:
    """Build a three-layer perceptron whose initial output leaves the center of the reference unchanged.

    Args:
        d_model: Channels in. Four come out, to be added to the logits of (cx, cy, w, h).
        size_bias: Initial logit added to width and height. With -2, boxes around reference points start at 12 % of the
            image's sides.

    Examples:
        >>> import torch
        >>> box_head(32)(torch.rand(2, 32)).shape
        torch.Size([2, 4])
    """
    head = MLP(d_model, d_model, 4, 3)
    weight, bias = head.layers[-1].parameters()
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    nn.init.constant_(bias[2:], size_bias)
    return head
