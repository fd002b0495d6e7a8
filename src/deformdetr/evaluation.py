"""COCO's average precision and recall, computed by pycocotools."""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float64
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformdetr._coco_types import ImageId, LabelMap, RunLengths, encode_masks
from deformdetr.structures import Detections

__all__ = [
    "ClassMetrics",
    "CocoEvaluator",
    "CocoMetrics",
    "CocoResult",
    "EvaluatorState",
    "ImageRecord",
    "RunLengths",
    "encode_masks",
]


class ClassMetrics(TypedDict):
    """Average precision of one category, or `None` if the dataset has no object of it."""

    category_id: int
    name: str
    AP: float | None
    AP50: float | None
    AP75: float | None


class CocoMetrics(TypedDict):
    """COCO's twelve metrics for boxes, in [0, 1], and precision by category. `segm` holds those of masks.

    AP is the mean over IoU thresholds 0.5 to 0.95 and over categories. AP50 and AP75 are at one threshold. AR1, AR10
    and AR100 are the recall with at most that many detections per image. Objects with an area below 32² pixels are
    small, those above 96² large, and others medium. A metric is `None` if there is no object to find, where pycocotools
    prints -1.
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
    segm: NotRequired["CocoMetrics"]


class ImageRecord(NamedTuple):
    """The detections of one image."""

    rows: Float64[np.ndarray, "detections 6"]
    """(left, top, width, height) in pixels, score, label."""
    masks: list[RunLengths] | None
    """`None` unless masks are evaluated."""


EvaluatorState = Mapping[ImageId, ImageRecord]
"""Detections by image id."""


class CocoResult(TypedDict):
    """A detection in COCO's results format. The box is (left, top, width, height) in pixels.

    Examples:
        >>> result: CocoResult = {"image_id": 139, "category_id": 17, "bbox": [10.0, 20.0, 100.0, 200.0], "score": 0.9}
    """

    image_id: ImageId
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[RunLengths]


class CocoEvaluator:
    """Collect detections and compare them with a ground truth.

    All images of the ground truth count, with or without detections. At most 100 detections per image and category are
    evaluated. If an image is given twice, its first detections count, because distributed samplers may repeat images to
    fill their last batch.

    Args:
        ground_truth: Annotations as a pycocotools object.
        label_map: The category of each label.
        masks: Whether to evaluate masks too.

    Raises:
        ValueError: If an annotation has the id 0, which pycocotools never counts as found, or if `masks` is True and an
            annotation has no segmentation.

    References:
        Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.

    Examples:
        >>> import torch
        >>> from deformdetr.boxes import cxcywh_to_xyxy
        >>> from deformdetr.data import ShapesConfig, build_dataset
        >>> from deformdetr.evaluation import CocoEvaluator
        >>> dataset = build_dataset(ShapesConfig(num_val=2, image_size=64), "val")
        >>> evaluator = CocoEvaluator(dataset.coco_ground_truth(), dataset.label_map)
        >>> for _, target in dataset:
        ...     boxes = 64 * cxcywh_to_xyxy(target["boxes"])
        ...     detections = {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": target["labels"]}
        ...     evaluator.update([detections], [target["image_id"]])
        >>> round(evaluator.compute()["AP"], 3)
        1.0
    """

    def __init__(self, ground_truth: COCO, label_map: LabelMap, *, masks: bool = False) -> None:
        if 0 in ground_truth.anns:
            raise ValueError("annotation id 0 in the ground truth: pycocotools never counts it as found; start from 1")
        without = [number for number, row in ground_truth.anns.items() if not row.get("segmentation")] if masks else []
        if without:
            raise ValueError(
                f"{len(without)} annotations of the ground truth have no segmentation, the first being {without[0]}"
            )
        self._ground_truth = ground_truth
        self._masks = masks
        self._label_map = label_map
        self._image_ids = frozenset(ground_truth.getImgIds())
        self._detections: dict[ImageId, ImageRecord] = {}
        self._evaluated: dict[str, tuple[COCOeval, str]] = {}

    def update(self, detections: Sequence[Detections], image_ids: Sequence[ImageId]) -> None:
        """Add the detections of some images. Masks, if they are evaluated, must be boolean.

        Raises:
            ValueError: If the numbers of images differ, an image is not in the ground truth, a label is not in the
                label map, a box or score is not finite, or masks are missing or do not fit the image.
        """
        for found, image_id in zip(detections, image_ids, strict=True):
            if image_id not in self._image_ids:
                raise ValueError(f"image {image_id} is not in the ground truth of {len(self._image_ids)} images")
            rows = self._rows(found, image_id)
            masks = self._run_lengths(found, image_id) if self._masks else None
            self._detections.setdefault(image_id, ImageRecord(rows, masks))
        self._evaluated.clear()

    def state(self) -> EvaluatorState:
        """Return the detections collected so far, for `merge` in another process."""
        return dict(self._detections)

    def merge(self, states: Iterable[EvaluatorState]) -> None:
        """Add the states of evaluators in other processes. This evaluator's own state may be among them.

        Raises:
            ValueError: If an image is not in the ground truth.
        """
        for state in states:
            unknown = [image_id for image_id in state if image_id not in self._image_ids]
            if unknown:
                raise ValueError(f"image {unknown[0]} is not in the ground truth of {len(self._image_ids)} images")
            self._detections = {**state, **self._detections}
        self._evaluated.clear()

    def compute(self) -> CocoMetrics:
        """Return COCO's metrics of the detections collected so far."""
        metrics = self._numbers("bbox")
        if self._masks:
            metrics["segm"] = self._numbers("segm")
        return metrics

    def _numbers(self, kind: "_Kind") -> CocoMetrics:
        evaluated, _ = self._evaluate(kind)
        values = [_metric(value) for value in evaluated.stats]
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
        """Return pycocotools' table for boxes and, if they are evaluated, masks. A note explains values of -1."""
        if not self._masks:
            return self._table("bbox")
        return f"boxes\n{self._table('bbox')}\nmasks\n{self._table('segm')}"

    def _table(self, kind: "_Kind") -> str:
        evaluated, table = self._evaluate(kind)
        if any(value < 0 for value in evaluated.stats):
            table += "\n(-1.000: the ground truth has no object of that size)"
        return table

    def class_table(self) -> str:
        """Return the average precision of each category that has objects, for boxes and, if evaluated, masks."""
        metrics = self.compute()
        if "segm" not in metrics:
            return _class_table(metrics)
        return f"boxes\n{_class_table(metrics)}\nmasks\n{_class_table(metrics['segm'])}"

    def coco_results(self) -> list[CocoResult]:
        """Return the detections in COCO's results format, as its evaluation servers take them."""
        results: list[CocoResult] = []
        for image_id, (rows, masks) in sorted(self._detections.items()):
            for index, row in enumerate(rows):
                result: CocoResult = {
                    "image_id": image_id,
                    "category_id": self._label_map.category_ids[int(row[5])],
                    "bbox": row[:4].tolist(),
                    "score": float(row[4]),
                }
                if masks is not None:
                    result["segmentation"] = masks[index]
                results.append(result)
        return results

    def _rows(self, found: Detections, image_id: ImageId) -> Float64[np.ndarray, "detections 6"]:
        corners, scores, labels = (
            found[key].detach().to("cpu", torch.float64).numpy() for key in ("boxes", "scores", "labels")
        )
        if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id}: boxes or scores are not finite")
        num_classes = len(self._label_map.category_ids)
        known = (labels >= 0) & (labels < num_classes)
        if not known.all():
            wrong = int(labels[~known][0])
            raise ValueError(f"image {image_id}: label {wrong} is not one of the {num_classes} labels")
        return np.column_stack([corners[:, :2], corners[:, 2:] - corners[:, :2], scores, labels])

    def _run_lengths(self, found: Detections, image_id: ImageId) -> list[RunLengths]:
        image = self._ground_truth.imgs[image_id]
        expected = (len(found["scores"]), 1, image["height"], image["width"])
        masks = found.get("masks")
        if masks is None or masks.shape != expected or masks.dtype != torch.bool:
            given = "none" if masks is None else f"{masks.dtype} {tuple(masks.shape)}"
            raise ValueError(f"image {image_id}: masks must be boolean of shape {expected}, got {given}")
        return encode_masks(masks)

    def _evaluate(self, kind: "_Kind") -> tuple[COCOeval, str]:
        if kind not in self._evaluated:
            printed = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = COCOeval(self._ground_truth, self._results(kind), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                with contextlib.redirect_stdout(printed):
                    evaluation.summarize()
            self._evaluated[kind] = evaluation, printed.getvalue().rstrip("\n")
        return self._evaluated[kind]

    def _results(self, kind: "_Kind") -> COCO:
        # COCO.loadRes fails for an empty list, and copies every detection.
        results = COCO()
        results.dataset = {
            "images": self._ground_truth.dataset["images"],
            "categories": self._ground_truth.dataset["categories"],
            # Ids start from 1, because pycocotools treats a match with id 0 as no match.
            "annotations": [
                {**row, "id": number, "area": _area(row, kind), "iscrowd": 0}
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


_Kind = Literal["bbox", "segm"]


def _class_table(metrics: CocoMetrics) -> str:
    rows = [row for row in metrics["per_class"] if row["AP"] is not None]
    width = max([len("category"), *(len(row["name"]) for row in rows)])
    lines = [f"{'category':<{width}}     AP   AP50   AP75"]
    for row in rows:
        numbers = (row["AP"], row["AP50"], row["AP75"])
        lines.append(f"{row['name']:<{width}}  " + "  ".join(f"{number:5.3f}" for number in numbers))
    return "\n".join(lines)


def _area(row: CocoResult, kind: _Kind) -> float:
    return float(coco_mask.area(row["segmentation"])) if kind == "segm" else row["bbox"][2] * row["bbox"][3]


def _mean(precision: Float64[np.ndarray, "thresholds recalls"]) -> float | None:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else None


def _metric(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)
