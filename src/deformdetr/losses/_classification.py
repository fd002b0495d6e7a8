"""How the logits of all queries are judged once the matched ones are known."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from deformdetr.losses._focal import sigmoid_focal_loss


@runtime_checkable
class ClassificationLoss(Protocol):
    """Anything that turns logits and matched queries into a loss."""

    def __call__(
        self,
        logits: Float[Tensor, "batch queries classes"],
        matched: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
        labels: Int64[Tensor, " pairs"],
        num_boxes: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Judge every query: matched ones (image, query) have a label, the others should find nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class FocalClassification:
    """Sum the sigmoid focal loss over all queries and classes, per target box; an unmatched query has no class.

    Attributes:
        alpha: Weight of the positive class, in [0, 1].
        gamma: Focusing exponent.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(
        self,
        logits: Float[Tensor, "batch queries classes"],
        matched: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
        labels: Int64[Tensor, " pairs"],
        num_boxes: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Judge every query: matched ones (image, query) have a label, the others should find nothing."""
        targets = torch.zeros_like(logits)
        targets[(*matched, labels)] = 1
        return sigmoid_focal_loss(logits, targets, alpha=self.alpha, gamma=self.gamma).sum() / num_boxes


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassification:
    """Average cross-entropy over all queries; an unmatched query belongs to the last class, "no object".

    Attributes:
        no_object_weight: Weight of queries without an object, relative to those with one.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, equation 2.
    """

    no_object_weight: float = 0.1

    def __call__(
        self,
        logits: Float[Tensor, "batch queries classes"],
        matched: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
        labels: Int64[Tensor, " pairs"],
        num_boxes: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Judge every query: matched ones (image, query) have a label, the others should find nothing."""
        no_object = logits.shape[-1] - 1
        targets = logits.new_full(logits.shape[:2], no_object, dtype=torch.int64)
        targets[matched] = labels
        weight = logits.new_ones(no_object + 1)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), targets, weight)
