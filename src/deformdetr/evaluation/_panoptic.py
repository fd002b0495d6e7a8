"""Panoptic quality, by the rules of the COCO panoptic API."""

from collections.abc import Collection, Sequence
from typing import Literal, TypedDict

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from deformdetr._coco_types import LabelMap
from deformdetr._text import table
from deformdetr.structures import PanopticSegmentation

_FACTORS: tuple[Literal["PQ", "SQ", "RQ"], ...] = ("PQ", "SQ", "RQ")


class PanopticNumbers(TypedDict):
    """Panoptic quality and its factors, averaged over the classes that occur, in [0, 1]; None if no class does.

    Examples:
        >>> numbers: PanopticNumbers = {"PQ": 0.4, "SQ": 0.8, "RQ": 0.5, "classes": 3}
    """

    PQ: float | None
    SQ: float | None
    """Segmentation quality: mean IoU of the matched segments."""
    RQ: float | None
    """Recognition quality: the F1 score of segments."""
    classes: int
    """Number of classes that occur in the ground truth or the predictions."""


class PanopticMetrics(PanopticNumbers):
    """Panoptic quality over all classes, over things and stuff, and by category.

    Examples:
        >>> none: PanopticNumbers = {"PQ": None, "SQ": None, "RQ": None, "classes": 0}
        >>> metrics: PanopticMetrics = {**none, "things": none, "stuff": none, "by_class": {}}
    """

    things: PanopticNumbers
    stuff: PanopticNumbers
    by_class: dict[str, PanopticNumbers]
    """By the name of the category, of those that occur."""


class PanopticEvaluator:
    """Match predicted with true segments, image by image, and compute the panoptic quality (PQ).

    A predicted and a true segment match if they have the same class and an IoU above 0.5; then no other segment can
    match either of them. Pixels of the prediction on void do not count in its IoU. Crowds match nothing, and are not
    missed. An unmatched prediction of which more than half lies on void, or on crowds of its class, is not counted.

    Examples:
        >>> from deformdetr.data import LabelMap
        >>> evaluator = PanopticEvaluator(LabelMap.contiguous({1: "cat", 2: "sky"}), stuff=[1])
        >>> truth = {"segment_map": torch.tensor([[1, 1, 2, 2]]), "labels": torch.tensor([0, 1])}
        >>> found = {"segment_map": torch.tensor([[1, 2, 2, 2]]), "labels": torch.tensor([0, 1])}
        >>> evaluator.update(found, truth)
        >>> evaluator.compute()["by_class"]["sky"]["SQ"]
        0.6666666666666666

    Args:
        label_map: Names of the labels.
        stuff: Labels of regions without instances; all others are things.

    References:
        Kirillov et al., "Panoptic Segmentation", CVPR 2019, sections 4.1 and 4.2.
    """

    def __init__(self, label_map: LabelMap, stuff: Collection[int]) -> None:
        self._label_map = label_map
        self._stuff = frozenset(stuff)
        # Columns: sum of IoUs, true positives, false positives, false negatives.
        self._counts = torch.zeros(label_map.num_classes, 4, dtype=torch.float64)

    def update(self, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> None:
        """Add one image.

        Raises:
            ValueError: If the maps differ in size or have segments without a label, a label has no name, or a predicted
                segment has no pixels.
        """
        for name, each in (("prediction", prediction), ("truth", truth)):
            self._check(name, each)
        if prediction["segment_map"].shape != truth["segment_map"].shape:
            shapes = [tuple(each["segment_map"].shape) for each in (prediction, truth)]
            raise ValueError(f"the maps of prediction and truth must have one size, got {shapes[0]} and {shapes[1]}")
        of_pixels = _count_pixels(prediction, truth)
        labels, true_labels = prediction["labels"].cpu(), truth["labels"].cpu()
        crowd = truth["iscrowd"].cpu() > 0 if "iscrowd" in truth else torch.zeros_like(true_labels, dtype=torch.bool)
        areas, true_areas = of_pixels.sum(0)[1:], of_pixels.sum(1)[1:]
        if len(areas) and not areas.all():
            raise ValueError(f"predicted segment {int(areas.argmin()) + 1} has no pixels")
        void, common = of_pixels[0, 1:], of_pixels[1:, 1:]
        same = true_labels[:, None] == labels
        iou = common.double() / (areas + true_areas[:, None] - common - void)
        matched = same & ~crowd[:, None] & (iou > 0.5)
        on_crowd = torch.where(same & crowd[:, None], common, 0).sum(0)
        is_ignored = (void + on_crowd) / areas > 0.5
        pairs = matched.nonzero()
        self._add(true_labels[pairs[:, 0]], 0, iou[matched])
        self._add(true_labels[pairs[:, 0]], 1)
        self._add(labels[~matched.any(0) & ~is_ignored], 2)
        self._add(true_labels[~matched.any(1) & ~crowd], 3)

    def state(self) -> Float64[Tensor, "classes 4"]:
        """Return the counts so far, for `merge`."""
        return self._counts

    def merge(self, states: Sequence[Float64[Tensor, "classes 4"]]) -> None:
        """Set the counts to the sum of the states of all processes, this one's included."""
        self._counts = torch.stack(list(states)).sum(0)

    def table(self) -> str:
        """Return a table of PQ, SQ and RQ: of all classes, things, stuff, and each class that occurs."""
        metrics = self.compute()
        numbers: dict[str, PanopticNumbers] = {
            "all": metrics, "things": metrics["things"], "stuff": metrics["stuff"], **metrics["by_class"]
        }  # fmt: skip
        rows = [
            [name, *("-" if row[key] is None else f"{row[key]:.3f}" for key in _FACTORS)]
            for name, row in numbers.items()
        ]
        return table(["", *(f"{key:>5}" for key in _FACTORS)], rows)

    def compute(self) -> PanopticMetrics:
        """Return the metrics of all images so far."""
        occurs = self._counts[:, 1:].sum(1) > 0
        is_stuff = torch.tensor([label in self._stuff for label in range(len(occurs))], dtype=torch.bool)
        names = self._label_map.names
        return {
            **self._average(occurs),
            "things": self._average(occurs & ~is_stuff),
            "stuff": self._average(occurs & is_stuff),
            "by_class": {
                names[label]: self._average(torch.arange(len(occurs)) == label)
                for label in occurs.nonzero()[:, 0].tolist()
            },
        }

    def _average(self, chosen: Bool[Tensor, " classes"]) -> PanopticNumbers:
        total, hits, false, missed = self._counts[chosen].unbind(1)
        if not len(total):
            return {"PQ": None, "SQ": None, "RQ": None, "classes": 0}
        recognized = hits / (hits + 0.5 * false + 0.5 * missed)
        segmented = total / hits.clamp(min=1)
        return {
            "PQ": (recognized * segmented).mean().item(),
            "SQ": segmented.mean().item(),
            "RQ": recognized.mean().item(),
            "classes": len(total),
        }

    def _add(self, labels: Int64[Tensor, " segments"], column: int, numbers: Tensor | float = 1.0) -> None:
        numbers = torch.as_tensor(numbers, dtype=torch.float64).expand(len(labels))
        self._counts[:, column].index_add_(0, labels, numbers)

    def _check(self, name: str, segmentation: PanopticSegmentation) -> None:
        labels, segment_map = segmentation["labels"], segmentation["segment_map"]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self._label_map.num_classes:
            raise ValueError(
                f"labels of the {name} must lie between 0 and {self._label_map.num_classes - 1}, got {labels.tolist()}"
            )
        if segment_map.numel() and not 0 <= int(segment_map.min()) <= int(segment_map.max()) <= len(labels):
            raise ValueError(
                f"the map of the {name} must hold segments from 0 to {len(labels)}, the number of labels, got "
                f"{int(segment_map.min())} to {int(segment_map.max())}"
            )


def _count_pixels(
    prediction: PanopticSegmentation, truth: PanopticSegmentation
) -> Int64[Tensor, "true_segments_and_void predicted_segments_and_void"]:
    """Return the number of pixels of every pair of segments, on the CPU; void comes first."""
    rows, columns = len(truth["labels"]) + 1, len(prediction["labels"]) + 1
    pairs = truth["segment_map"].cpu() * columns + prediction["segment_map"].cpu()
    return pairs.flatten().bincount(minlength=rows * columns).view(rows, columns)
