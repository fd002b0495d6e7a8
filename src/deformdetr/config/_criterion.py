"""Configs of criteria."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from deformdetr.config._base import DefaultedConfig, default_kind
from deformdetr.losses import FocalClassification, SetCriterion, SoftmaxClassification
from deformdetr.matching import FocalClassCost, HungarianMatcher, SoftmaxClassCost


class FocalCriterionConfig(DefaultedConfig):
    """Costs of the matching, weights of the losses and parameters of the focal loss, as in Deformable DETR.

    Examples:
        >>> FocalCriterionConfig(loss_giou=1.0).build().weights
        {'loss_ce': 2.0, 'loss_bbox': 5.0, 'loss_giou': 1.0}
    """

    kind: Literal["focal"] = "focal"
    cost_class: NonNegativeFloat = 2.0
    cost_bbox: NonNegativeFloat = 5.0
    cost_giou: NonNegativeFloat = 2.0
    loss_class: NonNegativeFloat = 2.0
    loss_bbox: NonNegativeFloat = 5.0
    loss_giou: NonNegativeFloat = 2.0
    focal_alpha: Annotated[float, Field(ge=0, le=1)] = 0.25
    focal_gamma: NonNegativeFloat = 2.0

    def build(self, *, mask_weights: Mapping[str, float] | None = None) -> SetCriterion:
        """Build matcher and criterion; `mask_weights` are the weights of mask losses, None without masks."""
        cost = FocalClassCost(alpha=self.focal_alpha, gamma=self.focal_gamma)
        loss = FocalClassification(alpha=self.focal_alpha, gamma=self.focal_gamma)
        return _build(self, cost, loss, mask_weights or {})


class SoftmaxCriterionConfig(DefaultedConfig):
    """Costs of the matching, weights of the losses and the weight of "no object", as in DETR.

    Examples:
        >>> SoftmaxCriterionConfig(loss_giou=1.0).build().weights
        {'loss_ce': 1.0, 'loss_bbox': 5.0, 'loss_giou': 1.0}
    """

    kind: Literal["softmax"] = "softmax"
    cost_class: NonNegativeFloat = 1.0
    cost_bbox: NonNegativeFloat = 5.0
    cost_giou: NonNegativeFloat = 2.0
    loss_class: NonNegativeFloat = 1.0
    loss_bbox: NonNegativeFloat = 5.0
    loss_giou: NonNegativeFloat = 2.0
    no_object_weight: NonNegativeFloat = 0.1

    def build(self, *, mask_weights: Mapping[str, float] | None = None) -> SetCriterion:
        """Build matcher and criterion; `mask_weights` are the weights of mask losses, None without masks."""
        loss = SoftmaxClassification(no_object_weight=self.no_object_weight)
        return _build(self, SoftmaxClassCost(), loss, mask_weights or {})


def _build(
    config: FocalCriterionConfig | SoftmaxCriterionConfig,
    class_cost: FocalClassCost | SoftmaxClassCost,
    classification: FocalClassification | SoftmaxClassification,
    mask_weights: Mapping[str, float],
) -> SetCriterion:
    matcher = HungarianMatcher(
        cost_class=config.cost_class, cost_bbox=config.cost_bbox, cost_giou=config.cost_giou, class_cost=class_cost
    )
    weights = {"loss_ce": config.loss_class, "loss_bbox": config.loss_bbox, "loss_giou": config.loss_giou}
    return SetCriterion(matcher, classification=classification, weights={**weights, **mask_weights})


AnyCriterionConfig = Annotated[
    SoftmaxCriterionConfig | FocalCriterionConfig, Field(discriminator="kind"), default_kind("softmax")
]
