"""Classification costs of the matcher."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor


@runtime_checkable
class ClassCost(Protocol):
    """Interface of the classification costs that `HungarianMatcher` takes; likely classes cost less.

    Examples:
        >>> def probability_cost(logits, labels):
        ...     return -logits.sigmoid()[..., labels]
        >>> isinstance(probability_cost, ClassCost)
        True
    """

    def __call__(
        self, logits: Float[Tensor, "*batch queries classes"], labels: Int64[Tensor, " targets"]
    ) -> Float[Tensor, "*batch queries targets"]:
        """Compute the cost of every pair of a query and a target of one image."""
        ...


@dataclass(frozen=True, kw_only=True)
class FocalClassCost:
    """The focal loss of the target's class as positive, minus its focal loss as negative.

    `alpha (1 - p)^gamma (-log p) - (1 - alpha) p^gamma (-log(1 - p))` with `p = sigmoid(logit)`.

    Attributes:
        alpha: Weight of the positive class, in [0, 1].
        gamma: Focusing exponent.
        eps: Added to probabilities before the logarithm.

    Examples:
        >>> import torch
        >>> FocalClassCost()(torch.zeros(1, 3), torch.tensor([2]))  # One query, one target.
        tensor([[-0.0866]])

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4; Lin et al., "Focal Loss for Dense Object Detection",
        ICCV 2017, equation 5.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-8

    def __call__(
        self, logits: Float[Tensor, "*batch queries classes"], labels: Int64[Tensor, " targets"]
    ) -> Float[Tensor, "*batch queries targets"]:
        """Compute the cost of every pair of a query and a target of one image."""
        probability = logits.index_select(-1, labels).sigmoid()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + self.eps).log()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + self.eps).log()
        return positive - negative


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassCost:
    """The negative softmax probability of the target's class.

    Examples:
        >>> import torch
        >>> SoftmaxClassCost()(torch.zeros(1, 4), torch.tensor([2]))
        tensor([[-0.2500]])

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 3.1.
    """

    def __call__(
        self, logits: Float[Tensor, "*batch queries classes"], labels: Int64[Tensor, " targets"]
    ) -> Float[Tensor, "*batch queries targets"]:
        """Compute the cost of every pair of a query and a target of one image."""
        return -logits.softmax(-1).index_select(-1, labels)
