"""COCO's metrics as numbers and tables, from the arrays that pycocotools accumulates."""

import math
from collections.abc import Sequence
from copy import copy
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float64

from deformdetr._coco_types import LabelMap
from deformdetr._text import table
from deformdetr.evaluation._matching import Matches, OperatingPoint
from deformdetr.evaluation._panoptic import PanopticMetrics


class ClassMetrics(TypedDict):
    """Average precision and recall of one category, or `None` if the dataset has no object of it.

    `best_threshold` is the threshold of scores with the highest F1, and `best_f1` this F1, for boxes at an IoU of 0.5.
    They are missing in metrics of masks, and `None` without a right detection.
    """

    category_id: int
    name: str
    AP: float | None
    AP50: float | None
    AP75: float | None
    AR: float | None
    best_threshold: NotRequired[float | None]
    best_f1: NotRequired[float | None]


class CocoMetrics(TypedDict):
    """COCO's twelve metrics for boxes, in [0, 1], and metrics by category. `segm` holds those of masks.

    `panoptic` holds the panoptic quality of models with masks on datasets with stuff.

    AP is the mean over IoU thresholds 0.5 to 0.95 and over categories. AP50 and AP75 are at one threshold. AR1, AR10
    and AR100 are the recall with at most that many detections per image and category; the other metrics count
    `max_detections`, 100 in COCO's rules. Objects with an area below 32² pixels are small, those above 96² large, and
    others medium. A metric is `None` if there is no object to find, where pycocotools prints -1.

    `best_threshold` is the threshold of scores with the highest F1 of all categories together, and `best_f1` this F1,
    for boxes at an IoU of 0.5. They are missing in `segm`, and `None` without a right detection.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    AR_small: float | None
    AR_medium: float | None
    AR_large: float | None
    max_detections: int
    best_threshold: NotRequired[float | None]
    best_f1: NotRequired[float | None]
    per_class: list[ClassMetrics]
    segm: NotRequired["CocoMetrics"]
    panoptic: NotRequired[PanopticMetrics]


class Accumulated:
    """The arrays that pycocotools, or what replaces it, has accumulated.

    Args:
        evaluation: A `COCOeval` after `accumulate`.
    """

    def __init__(self, evaluation: Any) -> None:
        # Axes: IoU threshold, recall, category, object size (all, small, ...), detections per image (1, 10, 100, ...).
        self.precision: Float64[np.ndarray, "thresholds recalls classes sizes limits"] = evaluation.eval["precision"]
        self.recall: Float64[np.ndarray, "thresholds classes sizes limits"] = evaluation.eval["recall"]
        self._params = evaluation.params

    @classmethod
    def join(cls, parts: Sequence["Accumulated"]) -> "Accumulated":
        """Return the arrays of all categories, from parts that have some each, in ascending order."""
        joined = copy(parts[0])
        joined.precision = np.concatenate([part.precision for part in parts], axis=2)
        joined.recall = np.concatenate([part.recall for part in parts], axis=1)
        joined._params = copy(parts[0]._params)
        joined._params.catIds = [number for part in parts for number in part._params.catIds]
        return joined

    @property
    def max_detections(self) -> int:
        """Detections per image and category that count."""
        return int(self._params.maxDets[-1])

    def metrics(self, label_map: LabelMap, matches: Matches | None) -> CocoMetrics:
        """Return all metrics; without matches, none of thresholds."""
        overall, by_class = (None, []) if matches is None else matches.operating_points()
        metrics: CocoMetrics = {
            "AP": _metric(self._mean_precision()),
            "AP50": _metric(self._mean_precision(iou=0.5)),
            "AP75": _metric(self._mean_precision(iou=0.75)),
            "AP_small": _metric(self._mean_precision(size="small")),
            "AP_medium": _metric(self._mean_precision(size="medium")),
            "AP_large": _metric(self._mean_precision(size="large")),
            "AR1": _metric(self._mean_recall(limit=1)),
            "AR10": _metric(self._mean_recall(limit=10)),
            "AR100": _metric(self._mean_recall(limit=100)),
            "AR_small": _metric(self._mean_recall(size="small")),
            "AR_medium": _metric(self._mean_recall(size="medium")),
            "AR_large": _metric(self._mean_recall(size="large")),
            "max_detections": self.max_detections,
            "per_class": self._per_class(label_map, by_class),
        }
        if matches is not None:
            metrics["best_threshold"], metrics["best_f1"] = _threshold_and_f1(overall)
        return metrics

    def table(self) -> str:
        """Return pycocotools' table. A note explains values of -1."""
        limit = self.max_detections
        rows = [
            ("Average Precision", "(AP)", iou, size, limit, self._mean_precision(iou=iou, size=size))
            for iou, size in ((None, "all"), (0.5, "all"), (0.75, "all"), *((None, size) for size in _SIZES))
        ]
        limits = [1, 10, 100] if limit == 100 else [1, 10, 100, limit]
        recalls = [("all", each) for each in limits] + [(size, limit) for size in _SIZES]
        rows += [
            ("Average Recall", "(AR)", None, size, most, self._mean_recall(size=size, limit=most))
            for size, most in recalls
        ]
        lines = [
            f" {name:<18} {short} @[ IoU={'0.50:0.95' if iou is None else f'{iou:0.2f}':<9} | area={size:>6s} | "
            f"maxDets={most:>3d} ] = {value:0.3f}"
            for name, short, iou, size, most, value in rows
        ]
        if any(row[-1] < 0 for row in rows):
            lines.append("(-1.000: the ground truth has no object of that size)")
        return "\n".join(lines)

    def curves(self, label_map: LabelMap, *, iou: float = 0.5) -> list[tuple[str, Float64[np.ndarray, " recalls"]]]:
        """Return the name of each category that has objects, and its precision at recalls of 0, 0.01, ..., 1."""
        threshold = int(np.flatnonzero(np.isclose(self._params.iouThrs, iou))[0])
        categories = list(self._params.catIds)
        by_category = dict(zip(categories, self.precision[threshold, :, :, 0, -1].T, strict=True))
        return [
            (name, by_category[number])
            for number, name in zip(label_map.category_ids, label_map.names, strict=True)
            if number in by_category and (by_category[number] > -1).all()
        ]

    def _mean_precision(self, *, iou: float | None = None, size: str = "all") -> float:
        of_size = self.precision[:, :, :, self._params.areaRngLbl.index(size), -1]
        return _mean(of_size if iou is None else of_size[np.isclose(self._params.iouThrs, iou)])

    def _mean_recall(self, *, size: str = "all", limit: int | None = None) -> float:
        limits = list(self._params.maxDets)
        column = -1 if limit is None else limits.index(limit)
        return _mean(self.recall[:, :, self._params.areaRngLbl.index(size), column])

    def _per_class(self, label_map: LabelMap, points: Sequence[OperatingPoint | None]) -> list[ClassMetrics]:
        rows: list[ClassMetrics] = []
        categories, thresholds = list(self._params.catIds), self._params.iouThrs
        for label, (category_id, name) in enumerate(zip(label_map.category_ids, label_map.names, strict=True)):
            if category_id not in categories:
                continue
            column = categories.index(category_id)
            precision = self.precision[:, :, column, 0, -1]
            row: ClassMetrics = {
                "category_id": category_id,
                "name": name,
                "AP": _metric(_mean(precision)),
                "AP50": _metric(_mean(precision[np.isclose(thresholds, 0.5)])),
                "AP75": _metric(_mean(precision[np.isclose(thresholds, 0.75)])),
                "AR": _metric(_mean(self.recall[:, column, 0, -1])),
            }
            if points:
                row["best_threshold"], row["best_f1"] = _threshold_and_f1(points[label])
            rows.append(row)
        return rows


_SIZES = ("small", "medium", "large")


def class_table(metrics: CocoMetrics) -> str:
    """Return average precision and recall of each category that has objects, and its threshold with the highest F1."""
    rows = [row for row in metrics["per_class"] if row["AP"] is not None]
    has_thresholds = "best_threshold" in metrics
    header = ["category", "   AP", " AP50", " AP75", "   AR", *["threshold", "   F1"] * has_thresholds]
    lines = [[row["name"], *(f"{row[key]:.3f}" for key in ("AP", "AP50", "AP75", "AR"))] for row in rows]
    if has_thresholds:
        lines.append(["all", "", "", "", ""])
        for line, of in zip(lines, (*rows, metrics), strict=True):
            line += ["" if value is None else f"{value:.3f}" for value in (of.get("best_threshold"), of.get("best_f1"))]
    return table(header, lines)


def _threshold_and_f1(point: OperatingPoint | None) -> tuple[float | None, float | None]:
    return (None, None) if point is None else (point.threshold, point.f1)


def _mean(values: Float64[np.ndarray, "..."]) -> float:
    """Return the mean of values other than -1, or -1 if there is none."""
    present = values[values > -1]
    return float(np.mean(present)) if present.size else -1.0


def _metric(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else value
