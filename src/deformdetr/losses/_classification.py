"""How the logits of all queries are judged once the matched ones are known."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from deformdetr.losses._focal import check_focal_settings


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
        gamma: Focusing exponent, not negative.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        check_focal_settings(self.alpha, self.gamma)

    def __call__(
        self,
        logits: Float[Tensor, "batch queries classes"],
        matched: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
        labels: Int64[Tensor, " pairs"],
        num_boxes: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Judge every query: matched ones (image, query) have a label, the others should find nothing."""
        found = logits[(*matched, labels)]
        # The sum of `sigmoid_focal_loss`, with few tensors as large as the logits: hardly any class is anywhere.
        losses = self._of_absent(logits, 1 - self.alpha).sum()
        exceptions = self._of_absent(-found, self.alpha) - self._of_absent(found, 1 - self.alpha)
        return (losses + exceptions.sum()) / num_boxes

    def _of_absent(self, logits: Tensor, weight: float) -> Tensor:
        return -weight * logits.sigmoid() ** self.gamma * F.logsigmoid(-logits)


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
