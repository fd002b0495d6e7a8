"""Detections matched to ground truth at one IoU: thresholds of scores, confusions and errors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pycocotools import mask as coco_mask

from deformdetr._coco_types import ImageId

_IOU = 0.5


class OperatingPoint(NamedTuple):
    """The threshold of scores with the highest F1, and what it gives."""

    threshold: float
    """Midpoint between the lowest score that is kept and the next lower one."""
    f1: float
    precision: float
    recall: float


class ImageErrors(NamedTuple):
    """Errors in one image, at a threshold of scores."""

    missed: int
    """Objects without a detection."""
    spurious: int
    """Detections without an object."""
    confused: int
    """Objects that are detected as another class."""

    @property
    def total(self) -> int:
        """Number of all errors."""
        return sum(self)


class ImageObjects(NamedTuple):
    """Objects and detections of one image. Boxes are (left, top, width, height) in pixels."""

    truth: Float64[np.ndarray, "objects 4"]
    truth_labels: Int64[np.ndarray, " objects"]
    is_crowd: Bool[np.ndarray, " objects"]
    boxes: Float64[np.ndarray, "detections 4"]
    scores: Float64[np.ndarray, " detections"]
    labels: Int64[np.ndarray, " detections"]


@dataclass(frozen=True)
class _Matched:
    """The objects of one image, and the object of each detection."""

    objects: ImageObjects
    object_of: Int64[np.ndarray, " detections"]
    """Index of the matched object; -1 without one, -2 inside a crowd, which does not count."""

    def confusion(self, threshold: float, num_classes: int) -> Int64[np.ndarray, "all all"]:
        """Return the counts by class of the object (row) and of the detection (column); the last is the background."""
        truth, kept = self.objects.truth_labels, np.flatnonzero(self.objects.scores >= threshold)
        labels, object_of = self.objects.labels[kept], self.object_of[kept].copy()
        free = np.flatnonzero(~self.objects.is_crowd & ~np.isin(np.arange(len(truth)), object_of))
        # What no detection of its own class has found may have been found as another class.
        left = np.flatnonzero(object_of == -1)
        overlaps = _ious(self.objects.boxes[kept[left]], self.objects.truth[free], self.objects.is_crowd[free])
        while overlaps.size and overlaps.max() >= _IOU:
            row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
            object_of[left[row]] = free[column]
            overlaps[row], overlaps[:, column] = -1, -1
        counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
        found = object_of >= 0
        np.add.at(counts, (truth[object_of[found]], labels[found]), 1)
        np.add.at(counts, (num_classes, labels[object_of == -1]), 1)
        missed = np.setdiff1d(np.flatnonzero(~self.objects.is_crowd), object_of[found])
        np.add.at(counts, (truth[missed], num_classes), 1)
        return counts


class Matches:
    """Detections of a dataset, matched to its objects by class at an IoU of 0.5, as in COCO's AP50.

    In descending order of scores, every detection gets the object of its class with the highest IoU that is still free.
    Detections inside crowds count neither as right nor as wrong.

    Args:
        images: Objects and detections by image id.
        num_classes: Number of labels.
        max_detections: Detections per image and class that count.
    """

    def __init__(
        self, images: Iterable[tuple[ImageId, ImageObjects]], num_classes: int, *, max_detections: int
    ) -> None:
        self.num_classes = num_classes
        self._images = {image_id: _match(objects, max_detections) for image_id, objects in images}

    def operating_points(self) -> tuple[OperatingPoint | None, list[OperatingPoint | None]]:
        """Return the best threshold for all classes together, and for each label.

        It is None where there is no object or no right detection.
        """
        matched = self._images.values()
        empty = np.zeros(0)
        scores, labels, object_of = (
            np.concatenate([empty, *each])
            for each in (
                [image.objects.scores for image in matched],
                [image.objects.labels for image in matched],
                [image.object_of for image in matched],
            )
        )
        truth = np.concatenate([empty, *(image.objects.truth_labels[~image.objects.is_crowd] for image in matched)])
        counted = object_of != -2
        scores, labels, is_right = scores[counted], labels[counted], object_of[counted] >= 0
        by_class = [
            _best_point(scores[labels == label], is_right[labels == label], int((truth == label).sum()))
            for label in range(self.num_classes)
        ]
        return _best_point(scores, is_right, len(truth)), by_class

    def confusion(self, threshold: float) -> Int64[np.ndarray, "all all"]:
        """Return how often an object of a class (row) is detected as a class (column).

        Detections of an object's own class count first. The last row counts detections without an object, and the last
        column objects without a detection.

        Args:
            threshold: Lowest score of a detection that counts.
        """
        counts = np.zeros((self.num_classes + 1, self.num_classes + 1), dtype=np.int64)
        for image in self._images.values():
            counts += image.confusion(threshold, self.num_classes)
        return counts

    def errors(self, threshold: float) -> dict[ImageId, ImageErrors]:
        """Return the errors in each image by its id, most errors first.

        Args:
            threshold: Lowest score of a detection that counts.
        """
        errors: dict[int | str, ImageErrors] = {}
        for image_id, image in self._images.items():
            counts = image.confusion(threshold, self.num_classes)
            between = counts[:-1, :-1]
            errors[image_id] = ImageErrors(
                missed=int(counts[:-1, -1].sum()),
                spurious=int(counts[-1].sum()),
                confused=int(between.sum() - between.trace()),
            )
        return dict(sorted(errors.items(), key=lambda item: -item[1].total))


def _match(objects: ImageObjects, max_detections: int) -> _Matched:
    """Sort detections by score, keep the best of each class, and match them."""
    order = np.argsort(-objects.scores, kind="stable")
    kept = np.sort(
        np.concatenate(
            [np.zeros(0, np.int64)]
            + [
                np.flatnonzero(objects.labels[order] == label)[:max_detections]
                for label in np.unique(objects.labels).tolist()
            ]
        )
    )
    order = order[kept]
    objects = objects._replace(boxes=objects.boxes[order], scores=objects.scores[order], labels=objects.labels[order])
    object_of = np.full(len(order), -1, dtype=np.int64)
    for label in np.unique(objects.labels).tolist():
        rows, columns = np.flatnonzero(objects.labels == label), np.flatnonzero(objects.truth_labels == label)
        overlaps = _ious(objects.boxes[rows], objects.truth[columns], objects.is_crowd[columns])
        object_of[rows] = _assign(overlaps, columns, objects.is_crowd[columns])
    return _Matched(objects, object_of)


def _assign(
    overlaps: Float64[np.ndarray, "detections objects"],
    indices: Int64[np.ndarray, " objects"],
    is_crowd: Bool[np.ndarray, " objects"],
) -> Int64[np.ndarray, " detections"]:
    """Return the index of the object of each detection, best detection first."""
    free = ~is_crowd
    found = np.full(len(overlaps), -1, dtype=np.int64)
    for row, values in enumerate(overlaps):
        candidates = np.where(free, values, -1.0)
        if candidates.size and candidates.max() >= _IOU:
            # Of equal ones pycocotools takes the last.
            column = len(candidates) - 1 - int(candidates[::-1].argmax())
            free[column] = False
            found[row] = indices[column]
        elif (values[is_crowd] >= _IOU).any():
            found[row] = -2
    return found


def _ious(
    boxes: Float64[np.ndarray, "n 4"], truth: Float64[np.ndarray, "m 4"], is_crowd: Bool[np.ndarray, " m"]
) -> Float64[np.ndarray, "n m"]:
    if not (len(boxes) and len(truth)):
        return np.zeros((len(boxes), len(truth)))
    found: Float64[np.ndarray, "n m"] = coco_mask.iou(boxes, truth, is_crowd.astype(np.uint8).tolist())
    return found


def _best_point(
    scores: Float64[np.ndarray, " n"], is_right: Bool[np.ndarray, " n"], num_objects: int
) -> OperatingPoint | None:
    if not (num_objects and is_right.any()):
        return None
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(is_right[order])
    kept = np.arange(1, len(scores) + 1)
    f1 = 2 * right / (kept + num_objects)
    # A threshold cannot separate equal scores.
    is_cut = np.append(scores[1:] < scores[:-1], True)
    best = int(np.where(is_cut, f1, -1).argmax())
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return OperatingPoint(
        threshold=float((scores[best] + below) / 2),
        f1=float(f1[best]),
        precision=float(right[best] / kept[best]),
        recall=float(right[best] / num_objects),
    )
