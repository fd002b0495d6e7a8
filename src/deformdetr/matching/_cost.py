"""What it costs to give a target's class to a query."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor


@runtime_checkable
class ClassCost(Protocol):
    """Anything that turns logits and labels into costs; queries that fit a target cost less."""

    def __call__(
        self, logits: Float[Tensor, "*batch queries classes"], labels: Int64[Tensor, " targets"]
    ) -> Float[Tensor, "*batch queries targets"]:
        """Give the cost of every query for every target of one image."""
        ...


@dataclass(frozen=True, kw_only=True)
class FocalClassCost:
    """Price a class by the focal loss that the query would pay with this target, less the one it would pay without.

    `alpha (1 - p)^gamma (-log p) - (1 - alpha) p^gamma (-log(1 - p))` with `p = sigmoid(logit)`.

    Attributes:
        alpha: Weight of the positive class, in [0, 1].
        gamma: Focusing exponent.
        eps: Added to probabilities before their logarithm.

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
        """Give the cost of every query for every target of one image."""
        probability = logits.index_select(-1, labels).sigmoid()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + self.eps).log()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + self.eps).log()
        return positive - negative


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassCost:
    """Price a class by its negative probability among all classes and "no object".

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 3.1.
    """

    def __call__(
        self, logits: Float[Tensor, "*batch queries classes"], labels: Int64[Tensor, " targets"]
    ) -> Float[Tensor, "*batch queries targets"]:
        """Give the cost of every query for every target of one image."""
        return -logits.softmax(-1).index_select(-1, labels)
