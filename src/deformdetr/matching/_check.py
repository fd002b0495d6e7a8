"""Checks of predictions and targets, with messages that name the image and the reason."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deformdetr.structures import LayerPredictions, Target


def check_shapes(predictions: LayerPredictions, targets: Sequence[Target]) -> None:
    """Check shapes, dtypes and devices, without waiting for a GPU.

    Raises:
        ValueError: If predictions and targets do not fit together.
        TypeError: If labels are not int64.
    """
    logits, boxes = predictions["pred_logits"], predictions["pred_boxes"]
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            "pred_logits must have shape (batch, queries, classes) and pred_boxes (batch, queries, 4), "
            f"got {tuple(logits.shape)} and {tuple(boxes.shape)}"
        )
    if len(targets) != len(logits):
        raise ValueError(f"there are predictions for {len(logits)} images, but targets for {len(targets)}")
    for image, target in enumerate(targets):
        target_boxes, labels = target["boxes"], target["labels"]
        if target_boxes.shape != (*labels.shape, 4) or labels.ndim != 1:
            raise ValueError(
                f"targets of image {image} must have boxes (n, 4) and labels (n,), "
                f"got {tuple(target_boxes.shape)} and {tuple(labels.shape)}"
            )
        if labels.dtype != torch.int64 or not target_boxes.is_floating_point():
            raise TypeError(
                f"targets of image {image} must have floating-point boxes and int64 labels, "
                f"got {target_boxes.dtype} and {labels.dtype}"
            )
        if {target_boxes.device, labels.device} != {logits.device}:
            raise ValueError(
                f"targets of image {image} are on {target_boxes.device} (boxes) and {labels.device} (labels), "
                f"the predictions on {logits.device}"
            )


def are_values_valid(
    logits: Float[Tensor, "layers queries classes"], boxes: Float[Tensor, "layers queries 4"], target: Target
) -> Bool[Tensor, " layers"]:
    """Return for which layers the values of one image can be matched, without waiting for a GPU.

    False where predictions or target boxes are not finite, target boxes have negative sizes or labels are out of range.
    """
    # Minimum and maximum propagate NaN and take one pass; `isfinite().all()` takes four.
    extremes = torch.stack([*logits.flatten(1).aminmax(dim=1), *boxes.flatten(1).aminmax(dim=1)])
    valid = _valid_boxes(target["boxes"]).all() & _valid_labels(target["labels"], logits.shape[-1]).all()
    return extremes.isfinite().all(0) & valid


def describe_invalid(image: int, layer: str, predictions: LayerPredictions, target: Target) -> str:
    """Return an error message for one image's invalid predictions or targets; this waits for a GPU."""
    num_classes = predictions["pred_logits"].shape[-1]
    wrong_labels = target["labels"][~_valid_labels(target["labels"], num_classes)]
    if len(wrong_labels):
        return f"targets of image {image} have labels {wrong_labels.tolist()}, outside 0 to {num_classes - 1}"
    wrong_boxes = target["boxes"][~_valid_boxes(target["boxes"])]
    if len(wrong_boxes):
        return (
            f"targets of image {image} have boxes (cxcywh) {wrong_boxes.tolist()}, not finite or of negative size; "
            "are they xyxy?"
        )
    for name, values in (("pred_logits", predictions["pred_logits"]), ("pred_boxes", predictions["pred_boxes"])):
        queries = (~values[image].isfinite()).any(-1).nonzero().flatten().tolist()
        if queries:
            return (
                f"{name} ({layer}) of image {image} are not finite at {len(queries)} of {values.shape[1]} queries, "
                f"the first of them query {queries[0]}: {values[image, queries[0]].tolist()}"
            )
    return f"the costs ({layer}) of image {image} are not finite, though its predictions and targets are"


def _valid_boxes(boxes: Float[Tensor, "targets 4"]) -> Bool[Tensor, " targets"]:
    return boxes.isfinite().all(-1) & (boxes[:, 2:] >= 0).all(-1)


def _valid_labels(labels: Tensor, num_classes: int) -> Bool[Tensor, " targets"]:
    return (labels >= 0) & (labels < num_classes)
