"""Classification losses of all queries, matched or not."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from deformdetr.losses._focal import check_focal_settings


@runtime_checkable
class ClassificationLoss(Protocol):
    """Interface of the classification losses that `SetCriterion` takes.

    Examples:
        >>> def matched_cross_entropy(logits, matched, labels, num_boxes):
        ...     return F.cross_entropy(logits[matched], labels, reduction="sum") / num_boxes
        >>> isinstance(matched_cross_entropy, ClassificationLoss)
        True
    """

    def __call__(
        self,
        logits: Float[Tensor, "batch queries classes"],
        matched: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
        labels: Int64[Tensor, " pairs"],
        num_boxes: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        Args:
            logits: Class logits of all queries.
            matched: Image and query index of every matched query; all other queries are background.
            labels: Classes of the matched queries.
            num_boxes: Number of targets to normalize by, averaged over processes.
        """
        ...


@runtime_checkable
class AveragedClassification(ClassificationLoss, Protocol):
    """Interface of classification losses that are weighted averages over the queries of a batch.

    Over several batches, such losses do not add up to that of a larger batch, unless each is multiplied by the batch's
    share of the total weight. `SetCriterion` does so if it is given the counts of the optimizer step.

    Examples:
        >>> isinstance(SoftmaxClassification(), AveragedClassification)
        True
        >>> isinstance(FocalClassification(), AveragedClassification)
        False
    """

    def total_weight(self, num_matched: int, num_unmatched: int) -> float:
        """Return the sum of the weights of so many matched and unmatched queries."""
        ...


@dataclass(frozen=True, kw_only=True)
class FocalClassification:
    """Sum the sigmoid focal loss over all queries and classes and divide it by the number of target boxes.

    Unmatched queries have target 0 for every class.

    Attributes:
        alpha: Weight of the positive class, in [0, 1].
        gamma: Focusing exponent, not negative.

    Examples:
        >>> matched = torch.tensor([0]), torch.tensor([1])  # Query 1 of image 0 ...
        >>> labels = torch.tensor([2])  # ... has class 2.
        >>> FocalClassification()(torch.zeros(1, 4, 3), matched, labels, torch.tensor(1.0))
        tensor(1.4729)
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        """Check `alpha` and `gamma`."""
        check_focal_settings(self.alpha, self.gamma)

    def __call__(
        self,
        logits: Float[Tensor, "batch queries classes"],
        matched: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
        labels: Int64[Tensor, " pairs"],
        num_boxes: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Compute the loss; see `ClassificationLoss`."""
        positive = logits[(*matched, labels)]
        # The sum of `sigmoid_focal_loss` with fewer tensors as large as the logits: treat all entries as negative, then
        # correct the few positive ones.
        losses = self._negative_loss(logits, 1 - self.alpha).sum()
        corrections = self._negative_loss(-positive, self.alpha) - self._negative_loss(positive, 1 - self.alpha)
        return (losses + corrections.sum()) / num_boxes

    def _negative_loss(self, logits: Tensor, weight: float) -> Tensor:
        return -weight * logits.sigmoid() ** self.gamma * F.logsigmoid(-logits)


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassification:
    """Average cross-entropy over all queries; unmatched queries have the last class, "no object".

    Attributes:
        no_object_weight: Weight of "no object", relative to other classes.

    Examples:
        >>> matched = torch.tensor([0]), torch.tensor([1])
        >>> SoftmaxClassification()(torch.zeros(1, 4, 3), matched, torch.tensor([0]), torch.tensor(1.0))
        tensor(1.0986)

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
        """Compute the loss; see `ClassificationLoss`."""
        no_object = logits.shape[-1] - 1
        targets = logits.new_full(logits.shape[:2], no_object, dtype=torch.int64)
        targets[matched] = labels
        weight = logits.new_ones(no_object + 1)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), targets, weight)

    def total_weight(self, num_matched: int, num_unmatched: int) -> float:
        """Return what the average divides by; see `AveragedClassification`."""
        return num_matched + self.no_object_weight * num_unmatched
