"""Losses of classes, boxes and masks, and `SetCriterion`, which matches predictions with targets and applies them."""

from deformdetr.losses._boxes import giou_loss
from deformdetr.losses._classification import (
    AveragedClassification,
    ClassificationLoss,
    FocalClassification,
    SoftmaxClassification,
)
from deformdetr.losses._criterion import SetCriterion
from deformdetr.losses._focal import dice_loss, sigmoid_focal_loss
from deformdetr.losses._step import StepCounts

__all__ = [
    "AveragedClassification",
    "ClassificationLoss",
    "FocalClassification",
    "SetCriterion",
    "SoftmaxClassification",
    "StepCounts",
    "dice_loss",
    "giou_loss",
    "sigmoid_focal_loss",
]
