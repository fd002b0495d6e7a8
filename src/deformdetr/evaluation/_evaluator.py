"""COCO's average precision and recall, computed by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float64
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformdetr._coco_types import ImageId, LabelMap, RunLengths, encode_masks
from deformdetr.evaluation._matching import ImageObjects, Matches
from deformdetr.evaluation._metrics import Accumulated, CocoMetrics, class_table
from deformdetr.structures import Detections

# Detections per image and category that COCO's rules count.
_COCO_LIMIT = 100
# Pairs of image and category that are evaluated at once. pycocotools takes some kilobytes for each that has detections.
_MAX_PAIRS = 2**18


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

    All images of the ground truth count, with or without detections. If an image is given twice, its first detections
    count, because distributed samplers may repeat images to fill their last batch.

    Args:
        ground_truth: Annotations as a pycocotools object.
        label_map: The category of each label.
        masks: Whether to evaluate masks too.
        max_detections: Detections per image and category that count, at least 100, which is COCO's rule. Images with
            more objects of one category need more.

    Raises:
        ValueError: If `max_detections` is below 100, an annotation has the id 0, which pycocotools never counts as
            found, or if `masks` is True and an annotation has no segmentation.

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

    def __init__(
        self, ground_truth: COCO, label_map: LabelMap, *, masks: bool = False, max_detections: int = _COCO_LIMIT
    ) -> None:
        if max_detections < _COCO_LIMIT:
            raise ValueError(f"max_detections must be at least {_COCO_LIMIT}, got {max_detections}")
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
        self._limits = sorted({1, 10, _COCO_LIMIT, max_detections})
        self._evaluated: dict[str, Accumulated] = {}
        self._matches: Matches | None = None

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
        self._matches = None

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
        self._matches = None

    def compute(self) -> CocoMetrics:
        """Return COCO's metrics of the detections collected so far."""
        metrics = self._evaluate("bbox").metrics(self._label_map, self.matches())
        if self._masks:
            metrics["segm"] = self._evaluate("segm").metrics(self._label_map, None)
        return metrics

    def table(self) -> str:
        """Return pycocotools' table for boxes and, if they are evaluated, masks. A note explains values of -1."""
        if not self._masks:
            return self._evaluate("bbox").table()
        return f"boxes\n{self._evaluate('bbox').table()}\nmasks\n{self._evaluate('segm').table()}"

    def class_table(self) -> str:
        """Return a table of each category that has objects, for boxes and, if evaluated, masks.

        It has the average precision and recall and, for boxes, the threshold of scores with the highest F1.
        """
        metrics = self.compute()
        if "segm" not in metrics:
            return class_table(metrics)
        return f"boxes\n{class_table(metrics)}\nmasks\n{class_table(metrics['segm'])}"

    def curves(self, *, iou: float = 0.5) -> list[tuple[str, Float64[np.ndarray, " recalls"]]]:
        """Return the name of each category that has objects, and its precision at recalls of 0, 0.01, ..., 1.

        Args:
            iou: IoU of boxes from which a detection is right: 0.5, 0.55, ..., 0.95.
        """
        return self._evaluate("bbox").curves(self._label_map, iou=iou)

    def matches(self) -> Matches:
        """Return the detections collected so far, matched to the objects, for thresholds, confusions and errors."""
        if self._matches is None:
            images = ((image_id, self._objects(image_id)) for image_id in self._ground_truth.getImgIds())
            num_classes = self._label_map.num_classes
            self._matches = Matches(images, num_classes, max_detections=self._limits[-1])
        return self._matches

    def coco_results(self) -> list[CocoResult]:
        """Return the detections in COCO's results format, as its evaluation servers take them."""
        return list(self._coco_results(self._label_map.category_ids))

    def _coco_results(self, categories: Sequence[int]) -> Iterator[CocoResult]:
        """Yield the detections of some categories."""
        wanted = np.isin(self._label_map.category_ids, categories)
        for image_id, (rows, masks) in sorted(self._detections.items()):
            for index in np.flatnonzero(wanted[rows[:, 5].astype(np.int64)]):
                row = rows[index]
                result: CocoResult = {
                    "image_id": image_id,
                    "category_id": self._label_map.category_ids[int(row[5])],
                    "bbox": row[:4].tolist(),
                    "score": float(row[4]),
                }
                if masks is not None:
                    result["segmentation"] = masks[index]
                yield result

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

    def _objects(self, image_id: ImageId) -> ImageObjects:
        labels = self._label_map.labels()
        rows = [row for row in self._ground_truth.imgToAnns[image_id] if row["category_id"] in labels]
        record = self._detections.get(image_id)
        found = np.zeros((0, 6)) if record is None else record.rows
        return ImageObjects(
            truth=np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
            truth_labels=np.array([labels[row["category_id"]] for row in rows], dtype=np.int64),
            is_crowd=np.array([row.get("iscrowd", 0) for row in rows], dtype=np.bool_),
            boxes=found[:, :4],
            scores=found[:, 4],
            labels=found[:, 5].astype(np.int64),
        )

    def _evaluate(self, kind: "_Kind") -> Accumulated:
        if kind not in self._evaluated:
            categories = sorted(self._ground_truth.getCatIds())
            # Categories are evaluated apart from each other, so that some at a time give the same numbers.
            group = max(1, _MAX_PAIRS // max(1, len(self._image_ids)))
            with contextlib.redirect_stdout(io.StringIO()):
                parts = [
                    self._evaluate_categories(kind, categories[start : start + group])
                    for start in range(0, max(1, len(categories)), group)
                ]
            self._evaluated[kind] = Accumulated.join(parts)
        return self._evaluated[kind]

    def _evaluate_categories(self, kind: "_Kind", categories: Sequence[int]) -> Accumulated:
        evaluation = COCOeval(self._ground_truth, self._results(kind, categories), kind)
        evaluation.params.maxDets = self._limits
        evaluation.params.catIds = list(categories)
        evaluation.evaluate()
        evaluation.accumulate()
        return Accumulated(evaluation)

    def _results(self, kind: "_Kind", categories: Sequence[int]) -> COCO:
        # COCO.loadRes fails for an empty list, and copies every detection.
        results = COCO()
        results.dataset = {
            "images": self._ground_truth.dataset["images"],
            "categories": self._ground_truth.dataset["categories"],
            # Ids start from 1, because pycocotools treats a match with id 0 as no match.
            "annotations": [
                {**row, "id": number, "area": _area(row, kind), "iscrowd": 0}
                for number, row in enumerate(self._coco_results(categories), start=1)
            ],
        }
        results.createIndex()
        return results


_Kind = Literal["bbox", "segm"]


def _area(row: CocoResult, kind: _Kind) -> float:
    return float(coco_mask.area(row["segmentation"])) if kind == "segm" else row["bbox"][2] * row["bbox"][3]
