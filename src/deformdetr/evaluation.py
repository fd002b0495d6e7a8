"""Average precision and recall as COCO defines them, computed by pycocotools."""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformdetr.structures import Detections


@runtime_checkable
class Categories(Protocol):
    """What a label means: label `i` is the category `category_ids[i]`, called `names[i]`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories, by label."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the categories in the annotation file, by label."""


class ClassMetrics(TypedDict):
    """Average precision of one category; `None` where there is no object of it."""

    category_id: int
    name: str
    AP: float | None
    AP50: float | None
    AP75: float | None


class CocoMetrics(TypedDict):
    """COCO's twelve numbers in [0, 1], and precision by category.

    AP is the mean over IoU thresholds 0.5 to 0.95 and over categories; AP50 and AP75 are at one threshold; AR1, AR10
    and AR100 are recall with that many detections per image. Small, medium and large are objects of less than 32, up to
    96, and more than 96 pixels squared. A number is `None` where there is no object to find, and pycocotools prints -1.
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
    per_class: list[ClassMetrics]


EvaluatorState = Mapping[int, Float64[np.ndarray, "_ 6"]]
"""By image id: (left, top, width, height) in pixels, score, label."""


class CocoResult(TypedDict):
    """One detection in COCO's results format; the box is (left, top, width, height) in pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


class CocoEvaluator:
    """Collect detections image by image and compare them with a ground truth.

    Every image of the ground truth counts: one without detections lowers recall if it has objects. At most 100
    detections per image and category are looked at. An image given twice keeps its first detections, since loaders of
    several processes repeat images to fill their last batch.

    Args:
        ground_truth: pycocotools' view of the annotations.
        label_map: Which category each label means.

    Raises:
        ValueError: If an annotation has the id 0, which pycocotools would count as never found.

    References:
        Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.
    """

    def __init__(self, ground_truth: COCO, label_map: Categories) -> None:
        if 0 in ground_truth.anns:
            raise ValueError("annotation id 0 in the ground truth: pycocotools counts it as never found; start from 1")
        self._ground_truth = ground_truth
        self._label_map = label_map
        self._image_ids = frozenset(ground_truth.getImgIds())
        self._detections: dict[int, Float64[np.ndarray, "_ 6"]] = {}
        self._evaluated: tuple[COCOeval, str] | None = None

    def update(self, detections: Sequence[Detections], image_ids: Sequence[int]) -> None:
        """Add the detections of some images.

        Raises:
            ValueError: If the numbers of images differ, an image is not in the ground truth, a label is not in the
                label map, or a box or score is not finite.
        """
        for found, image_id in zip(detections, image_ids, strict=True):
            if image_id not in self._image_ids:
                raise ValueError(f"image {image_id} is not in the ground truth of {len(self._image_ids)} images")
            rows = self._rows(found, image_id)
            self._detections.setdefault(image_id, rows)
        self._evaluated = None

    def state(self) -> EvaluatorState:
        """Give everything collected so far, to be sent to another process and merged there."""
        return dict(self._detections)

    def merge(self, states: Iterable[EvaluatorState]) -> None:
        """Add what the evaluators of other processes collected, this one's own state included or not.

        Raises:
            ValueError: If an image is not in the ground truth.
        """
        for state in states:
            unknown = sorted(set(state) - self._image_ids)
            if unknown:
                raise ValueError(f"image {unknown[0]} is not in the ground truth of {len(self._image_ids)} images")
            self._detections = {**state, **self._detections}
        self._evaluated = None

    def compute(self) -> CocoMetrics:
        """Give COCO's numbers for the detections collected so far."""
        evaluated, _ = self._evaluate()
        values = [_present(value) for value in evaluated.stats]
        return {
            "AP": values[0],
            "AP50": values[1],
            "AP75": values[2],
            "AP_small": values[3],
            "AP_medium": values[4],
            "AP_large": values[5],
            "AR1": values[6],
            "AR10": values[7],
            "AR100": values[8],
            "AR_small": values[9],
            "AR_medium": values[10],
            "AR_large": values[11],
            "per_class": self._per_class(evaluated),
        }

    def table(self) -> str:
        """Give pycocotools' table; a note explains -1 where it occurs."""
        evaluated, table = self._evaluate()
        if any(value < 0 for value in evaluated.stats):
            table += "\n(-1.000: the ground truth has no object of that size)"
        return table

    def class_table(self) -> str:
        """Give one line per category that has objects, with its average precision."""
        rows = [row for row in self.compute()["per_class"] if row["AP"] is not None]
        width = max([len("category"), *(len(row["name"]) for row in rows)])
        lines = [f"{'category':<{width}}     AP   AP50   AP75"]
        for row in rows:
            numbers = (row["AP"], row["AP50"], row["AP75"])
            lines.append(f"{row['name']:<{width}}  " + "  ".join(f"{number:5.3f}" for number in numbers))
        return "\n".join(lines)

    def coco_results(self) -> list[CocoResult]:
        """Give the detections in COCO's results format, as its evaluation servers take them."""
        return [
            {
                "image_id": image_id,
                "category_id": self._label_map.category_ids[int(row[5])],
                "bbox": row[:4].tolist(),
                "score": float(row[4]),
            }
            for image_id, rows in sorted(self._detections.items())
            for row in rows
        ]

    def _rows(self, found: Detections, image_id: int) -> Float64[np.ndarray, "detections 6"]:
        corners, scores, labels = (
            found[key].detach().to("cpu", torch.float64).numpy() for key in ("boxes", "scores", "labels")
        )
        if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id}: the detections hold boxes or scores that are not finite")
        num_classes = len(self._label_map.category_ids)
        known = (labels >= 0) & (labels < num_classes)
        if not known.all():
            wrong = int(labels[~known][0])
            raise ValueError(f"image {image_id}: label {wrong} is not among the {num_classes} labels")
        return np.column_stack([corners[:, :2], corners[:, 2:] - corners[:, :2], scores, labels])

    def _evaluate(self) -> tuple[COCOeval, str]:
        if self._evaluated is None:
            printed = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = COCOeval(self._ground_truth, self._results(), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                with contextlib.redirect_stdout(printed):
                    evaluation.summarize()
            self._evaluated = evaluation, printed.getvalue().rstrip("\n")
        return self._evaluated

    def _results(self) -> COCO:
        # COCO.loadRes fails on an empty list, and copies every detection.
        results = COCO()
        results.dataset = {
            "images": self._ground_truth.dataset["images"],
            "categories": self._ground_truth.dataset["categories"],
            # Ids count from 1: pycocotools takes a match with id 0 for no match.
            "annotations": [
                {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                for number, row in enumerate(self.coco_results(), start=1)
            ],
        }
        results.createIndex()
        return results

    def _per_class(self, evaluated: COCOeval) -> list[ClassMetrics]:
        # Axes: IoU threshold, recall, category, object size (all, small, ...), detections per image (1, 10, 100).
        precision = evaluated.eval["precision"][:, :, :, 0, -1]
        thresholds = evaluated.params.iouThrs
        rows: list[ClassMetrics] = []
        for category_id, name in zip(self._label_map.category_ids, self._label_map.names, strict=True):
            if category_id not in evaluated.params.catIds:
                continue
            of_class = precision[:, :, list(evaluated.params.catIds).index(category_id)]
            rows.append(
                {
                    "category_id": category_id,
                    "name": name,
                    "AP": _mean(of_class),
                    "AP50": _mean(of_class[np.isclose(thresholds, 0.5)]),
                    "AP75": _mean(of_class[np.isclose(thresholds, 0.75)]),
                }
            )
        return rows


def _mean(precision: Float64[np.ndarray, "thresholds recalls"]) -> float | None:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else None


def _present(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)
