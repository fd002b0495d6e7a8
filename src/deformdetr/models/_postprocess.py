"""From a model's predictions to boxes in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.structures import Detections, LayerPredictions

ImageSizes = Int[Tensor, "batch 2"] | Sequence[tuple[int, int]]
"""(height, width) of every image, in pixels."""


class Selection(NamedTuple):
    """What is detected in the images of a batch."""

    boxes: Float[Tensor, "batch detections 4"]
    """cxcywh as fractions of the image."""
    scores: Float[Tensor, "batch detections"]
    labels: Int64[Tensor, "batch detections"]


@runtime_checkable
class PostProcess(Protocol):
    """Anything that turns predictions into detections."""

    def __call__(self, outputs: LayerPredictions, image_sizes: ImageSizes) -> list[Detections]:
        """Give the detections of every image."""
        ...


@dataclass(frozen=True, kw_only=True)
class SigmoidPostProcess:
    """Keep the highest scores over all queries and classes; one query may give several detections.

    Attributes:
        top_k: Number of detections per image, or as many as there are pairs of a query and a class.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4, whose implementation keeps 100.
    """

    top_k: int = 100

    def __post_init__(self) -> None:
        """Refuse to keep nothing."""
        if self.top_k < 1:
            raise ValueError(f"top_k must be positive, got {self.top_k}")

    def __call__(self, outputs: LayerPredictions, image_sizes: ImageSizes) -> list[Detections]:
        """Give the detections of every image, best first; boxes are not clipped and scores not thresholded.

        Args:
            outputs: Other keys than the last layer's are ignored.
            image_sizes: (height, width) to which boxes are scaled, in pixels.

        Raises:
            ValueError: If there are not as many sizes as images.
        """
        return _detections(*self.select(outputs), image_sizes)

    def select(self, outputs: LayerPredictions) -> Selection:
        """Choose the detections of all images, best first, as the tensors of a batch."""
        logits = outputs["pred_logits"]
        num_queries, num_classes = logits.shape[1:]
        # Logits, not their sigmoids, which round to equal numbers near 1.
        best, index = logits.flatten(1).topk(min(self.top_k, num_queries * num_classes), dim=1)
        query = index // num_classes
        boxes = outputs["pred_boxes"].gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
        return Selection(boxes, _at_least_float32(best).sigmoid(), index % num_classes)


@dataclass(frozen=True, kw_only=True)
class SoftmaxPostProcess:
    """Give every query its most probable class that is not the last, "no object".

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.
    """

    def __call__(self, outputs: LayerPredictions, image_sizes: ImageSizes) -> list[Detections]:
        """Give one detection per query, in the order of the queries; boxes are not clipped and scores not thresholded.

        Args:
            outputs: Other keys than the last layer's are ignored.
            image_sizes: (height, width) to which boxes are scaled, in pixels.

        Raises:
            ValueError: If there are not as many sizes as images, or fewer than two classes.
        """
        return _detections(*self.select(outputs), image_sizes)

    def select(self, outputs: LayerPredictions) -> Selection:
        """Choose the detections of all images, in the order of the queries, as the tensors of a batch."""
        logits = outputs["pred_logits"]
        if logits.shape[-1] < 2:
            raise ValueError(f"there must be a class beside 'no object', got {logits.shape[-1]} in all")
        scores, labels = _at_least_float32(logits).softmax(-1)[..., :-1].max(-1)
        return Selection(outputs["pred_boxes"], scores, labels)


def _detections(
    boxes: Float[Tensor, "batch detections 4"],
    scores: Float[Tensor, "batch detections"],
    labels: Int64[Tensor, "batch detections"],
    image_sizes: ImageSizes,
) -> list[Detections]:
    if len(image_sizes) != len(boxes):
        raise ValueError(f"there are predictions for {len(boxes)} images, but sizes of {len(image_sizes)}")
    if isinstance(image_sizes, Tensor):
        image_sizes = image_sizes.to(boxes.device, non_blocking=True)
    corners = cxcywh_to_xyxy(_at_least_float32(boxes))
    return [
        {"boxes": scale_boxes(of_image, size), "scores": of_scores, "labels": of_labels}
        for of_image, of_scores, of_labels, size in zip(corners, scores, labels, image_sizes, strict=True)
    ]


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
