"""Losses of classes, boxes and masks, and `SetCriterion`, which matches predictions with targets and applies them."""

from deformdetr.losses._boxes import giou_loss
from deformdetr.losses._classification import ClassificationLoss, FocalClassification, SoftmaxClassification
from deformdetr.losses._criterion import SetCriterion
from deformdetr.losses._focal import dice_loss, sigmoid_focal_loss

__all__ = [
    "ClassificationLoss",
    "FocalClassification",
    "SetCriterion",
    "SoftmaxClassification",
    "dice_loss",
    "giou_loss",
    "sigmoid_focal_loss",
]
