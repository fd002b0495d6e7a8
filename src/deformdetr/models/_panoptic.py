"""Panoptic segmentation from the predictions of a model with masks."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deformdetr.models._masks import enlarge
from deformdetr.models._postprocess import ImageSizes, SigmoidPostProcess, SoftmaxPostProcess
from deformdetr.structures import PanopticSegmentation, Predictions


@dataclass(frozen=True, kw_only=True)
class PanopticPostProcess:
    """Assign every pixel to the detection whose mask is most certain there, and merge those of one class of stuff.

    Detections with a score of `threshold` or less are left out first. Then those with fewer than `min_area` pixels are
    removed, and their pixels are assigned anew, until none is left.

    Examples:
        >>> left = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
        >>> outputs = {
        ...     "pred_logits": torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]]),
        ...     "pred_boxes": torch.full((1, 2, 4), 0.5),
        ...     "pred_masks": torch.stack([left, -left])[None],
        ... }
        >>> PanopticPostProcess(stuff=[1], min_area=1)(outputs, [(2, 4)])[0]["segment_map"]
        tensor([[1, 1, 2, 2],
                [1, 1, 2, 2]])

    Attributes:
        stuff: Labels of regions without instances, such as sky. All others are things.
        detections: Post-processing that selects queries, their classes and their scores.
        threshold: Scores above it are kept.
        min_area: Fewest pixels of a segment.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.4.
    """

    stuff: Collection[int]
    detections: SoftmaxPostProcess | SigmoidPostProcess = field(default_factory=SoftmaxPostProcess)
    threshold: float = 0.85
    min_area: int = 5

    def __post_init__(self) -> None:
        """Check `threshold` and `min_area`."""
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}")
        if self.min_area < 1:
            raise ValueError(f"min_area must be positive, got {self.min_area}")

    @torch.no_grad()
    def __call__(self, outputs: Predictions, image_sizes: ImageSizes) -> list[PanopticSegmentation]:
        """Return the segments of every image. Without a detection, no pixel belongs to one.

        Args:
            outputs: Predictions of a model with masks.
            image_sizes: (height, width) of the segment maps, in pixels.

        Raises:
            ValueError: If there are no masks, or the number of sizes differs from the number of images.
        """
        if "pred_masks" not in outputs:
            raise ValueError("panoptic segmentation needs the masks of a model with masks=True, got none")
        masks, ratios = outputs["pred_masks"], outputs.get("valid_ratios")
        if len(image_sizes) != len(masks):
            raise ValueError(f"there are predictions for {len(masks)} images, but sizes of {len(image_sizes)}")
        pairs = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
        selected = self.detections.select(outputs)
        results = []
        for image, (height, width) in enumerate(pairs):
            certain = selected.scores[image] > self.threshold
            found = _Segments(
                selected.labels[image][certain],
                selected.scores[image][certain],
                masks[image, selected.queries[image][certain]],
                None if ratios is None else ratios[image],
            )
            results.append(self._assign(found, (height, width)))
        return results

    def _assign(self, found: "_Segments", size: tuple[int, int]) -> PanopticSegmentation:
        while len(found.labels):
            segment_map = self._first_of_stuff(found.labels)[_most_certain(found, size)]
            areas = segment_map.flatten().bincount(minlength=len(found.labels))
            large = areas >= self.min_area
            if large.all():
                return {"segment_map": segment_map + 1, "labels": found.labels, "scores": found.scores}
            found = found.keep(large)
        return {
            "segment_map": torch.zeros(size, dtype=torch.int64, device=found.labels.device),
            "labels": found.labels,
            "scores": found.scores,
        }

    def _first_of_stuff(self, labels: Int64[Tensor, " segments"]) -> Int64[Tensor, " segments"]:
        """Return the index of the segment that every segment belongs to: itself, or the first of its class of stuff."""
        first: dict[int, int] = {}
        owners = [
            first.setdefault(label, index) if label in self.stuff else index
            for index, label in enumerate(labels.tolist())
        ]
        return torch.tensor(owners, device=labels.device)


@dataclass(frozen=True)
class _Segments:
    """Detections of one image that are still candidates."""

    labels: Int64[Tensor, " segments"]
    scores: Float[Tensor, " segments"]
    masks: Float[Tensor, "segments mask_height mask_width"]
    valid_ratio: Float[Tensor, "2"] | None

    def keep(self, chosen: Tensor) -> "_Segments":
        return _Segments(self.labels[chosen], self.scores[chosen], self.masks[chosen], self.valid_ratio)


def _most_certain(found: _Segments, size: tuple[int, int]) -> Int64[Tensor, "height width"]:
    """Return the index of the mask with the largest logit at every pixel, from a few masks at a time."""
    best, index, start = None, torch.zeros(size, dtype=torch.int64, device=found.masks.device), 0
    for logits in enlarge(found.masks, found.valid_ratio, size):
        largest, row = logits.max(0)
        index = row if best is None else torch.where(largest > best, row + start, index)
        best = largest if best is None else torch.maximum(best, largest)
        start += len(logits)
    return index
