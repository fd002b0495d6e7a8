"""Detections from the predictions of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from deformdetr._dtypes import at_least_float32
from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.models._masks import masks_in_image
from deformdetr.structures import Detections, LayerPredictions, Predictions

ImageSizes = Int[Tensor, "batch 2"] | Sequence[tuple[int, int]]
"""(height, width) of every image, in pixels."""


class Selection(NamedTuple):
    """Detections in the images of a batch, as fractions of the images.

    Examples:
        >>> outputs = {"pred_logits": torch.tensor([[[-1.0], [2.0]]]), "pred_boxes": torch.full((1, 2, 4), 0.5)}
        >>> SigmoidPostProcess(top_k=1).select(outputs).queries
        tensor([[1]])
    """

    boxes: Float[Tensor, "batch detections 4"]
    """cxcywh as fractions of the image."""
    scores: Float[Tensor, "batch detections"]
    labels: Int64[Tensor, "batch detections"]
    queries: Int64[Tensor, "batch detections"]
    """Index of the query of every detection."""


@runtime_checkable
class PostProcess(Protocol):
    """A callable that turns predictions into detections.

    Examples:
        >>> isinstance(SigmoidPostProcess(), PostProcess)
        True
    """

    def __call__(self, outputs: Predictions, image_sizes: ImageSizes) -> list[Detections]:
        """Return the detections of every image."""
        ...


@dataclass(frozen=True, kw_only=True)
class SigmoidPostProcess:
    """Select the highest scores over all queries and classes, so that a query may give several detections.

    Examples:
        >>> logits, boxes = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.5, 0.5, 0.25, 0.5]]])
        >>> outputs = {"pred_logits": logits, "pred_boxes": boxes}
        >>> SigmoidPostProcess(top_k=1)(outputs, [(100, 200)])[0]["boxes"]
        tensor([[ 75.,  25., 125.,  75.]])

    Attributes:
        top_k: Number of detections per image, at most the number of pairs of a query and a class.
        mask_threshold: Probability above which a pixel belongs to an object. Masks are then boolean, which takes a
            quarter of the memory. None returns probabilities.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4, whose implementation keeps 100.
    """

    top_k: int = 100
    mask_threshold: float | None = None

    def __post_init__(self) -> None:
        """Check `top_k`."""
        if self.top_k < 1:
            raise ValueError(f"top_k must be positive, got {self.top_k}")

    def __call__(self, outputs: Predictions, image_sizes: ImageSizes) -> list[Detections]:
        """Return the detections of every image, best first; boxes are not clipped and scores not thresholded.

        Args:
            outputs: Predictions of a model, of which the last layer's are used.
            image_sizes: (height, width) to which boxes and masks are scaled, in pixels.

        Raises:
            ValueError: If the number of sizes differs from the number of images.
        """
        return _detections(self.select(outputs), outputs, image_sizes, self.mask_threshold)

    def select(self, outputs: LayerPredictions) -> Selection:
        """Return the detections of all images as tensors of a batch, best first."""
        logits = outputs["pred_logits"]
        num_queries, num_classes = logits.shape[1:]
        # Logits, because sigmoids near 1 round to equal numbers.
        best, index = logits.flatten(1).topk(min(self.top_k, num_queries * num_classes), dim=1)
        query = index // num_classes
        boxes = outputs["pred_boxes"].gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
        return Selection(boxes, at_least_float32(best).sigmoid(), index % num_classes, query)


@dataclass(frozen=True, kw_only=True)
class SoftmaxPostProcess:
    """Assign every query its most probable class other than the last, "no object".

    Examples:
        >>> logits, boxes = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.5, 0.5, 0.25, 0.5]]])
        >>> outputs = {"pred_logits": logits, "pred_boxes": boxes}
        >>> SoftmaxPostProcess()(outputs, [(100, 200)])[0]["boxes"]
        tensor([[ 75.,  25., 125.,  75.]])

    Attributes:
        mask_threshold: As in `SigmoidPostProcess`.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.
    """

    mask_threshold: float | None = None

    def __call__(self, outputs: Predictions, image_sizes: ImageSizes) -> list[Detections]:
        """Return one detection per query, in their order; boxes are not clipped and scores not thresholded.

        Args:
            outputs: Predictions of a model, of which the last layer's are used.
            image_sizes: (height, width) to which boxes and masks are scaled, in pixels.

        Raises:
            ValueError: If the number of sizes differs from the number of images, or there are fewer than two logits.
        """
        return _detections(self.select(outputs), outputs, image_sizes, self.mask_threshold)

    def select(self, outputs: LayerPredictions) -> Selection:
        """Return the detections of all images as tensors of a batch, in the order of the queries."""
        logits = outputs["pred_logits"]
        if logits.shape[-1] < 2:
            raise ValueError(f"there must be a class beside 'no object', got {logits.shape[-1]} in all")
        scores, labels = at_least_float32(logits).softmax(-1)[..., :-1].max(-1)
        queries = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        return Selection(outputs["pred_boxes"], scores, labels, queries)


def _detections(
    selection: Selection, outputs: Predictions, image_sizes: ImageSizes, mask_threshold: float | None
) -> list[Detections]:
    boxes = selection.boxes
    if len(image_sizes) != len(boxes):
        raise ValueError(f"there are predictions for {len(boxes)} images, but sizes of {len(image_sizes)}")
    sizes = image_sizes.to(boxes.device, non_blocking=True) if isinstance(image_sizes, Tensor) else image_sizes
    corners = cxcywh_to_xyxy(at_least_float32(boxes))
    detections: list[Detections] = [
        {"boxes": scale_boxes(xyxy, size), "scores": scores, "labels": labels}
        for xyxy, scores, labels, size in zip(corners, selection.scores, selection.labels, sizes, strict=True)
    ]
    if "pred_masks" in outputs:
        # The CPU allocates the masks, so it needs their sizes.
        pairs = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
        ratios = outputs.get("valid_ratios")
        for image, (found, (height, width)) in enumerate(zip(detections, pairs, strict=True)):
            chosen = outputs["pred_masks"][image, selection.queries[image]]
            ratio = None if ratios is None else ratios[image]
            found["masks"] = masks_in_image(chosen, ratio, (height, width), threshold=mask_threshold)
    return detections
