"""Annotations of a dataset as flat arrays, a report on reading them, and their conversion to COCO format."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from pycocotools.coco import COCO

from deformdetr._coco_types import ImageId, LabelMap
from deformdetr.data._segmentations import Segmentations, decode

# COCO's limits between small, medium and large objects: square root of the area in pixels.
_SMALL, _LARGE = 32.0, 96.0
_SHOWN_CLASSES = 100


@dataclass(frozen=True)
class DatasetReport:
    """Counts of what was kept, changed and skipped while reading annotations.

    Attributes:
        source: Where the annotations come from.
        images: Number of images.
        empty_images: Images without a training box. They stay in the dataset.
        boxes: Training boxes.
        crowd: Crowd boxes, which are left out of training and are ignored regions in evaluation.
        degenerate: Dropped boxes without width or height.
        clipped: Boxes that extended beyond their image and were clipped to it for training.
        unknown_category: Skipped boxes whose category is not in the label map.
        without_mask: Boxes dropped for an unusable segmentation, counted by reason. Empty unless masks are read.
        notes: What was read differently than written, such as sizes that were taken from image files.

    Examples:
        >>> from deformdetr.data import ShapesConfig, build_dataset
        >>> report = build_dataset(ShapesConfig(num_train=4), "train").report
        >>> report.images, report.crowd
        (4, 0)
    """

    source: str
    images: int
    empty_images: int
    boxes: int
    crowd: int = 0
    degenerate: int = 0
    clipped: int = 0
    unknown_category: int = 0
    without_mask: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {
            "crowd (left out of training)": self.crowd,
            "without width or height (dropped)": self.degenerate,
            "over the edge of the image (clipped)": self.clipped,
            "of a category outside the label map (skipped)": self.unknown_category,
            "without a usable mask (dropped)": sum(self.without_mask.values()),
        }
        noted = "; ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        if self.without_mask:
            noted += ": " + ", ".join(f"{count:,} {what}" for what, count in self.without_mask.items())
        text = (
            f"{self.source}: {self.images:,} images ({self.empty_images:,} without boxes), {self.boxes:,} boxes; "
            f"{noted or 'nothing skipped'}"
        )
        return "\n".join([text, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Annotations:
    """Images and boxes of one split, with boxes sorted by image.

    Arrays instead of lists of objects keep data-loader workers from copying memory.

    Attributes:
        file_names: File name of each image, in the spelling under which it was found.
        image_ids: Id of each image, as in the annotation file. If some are integers and some text, all are text.
        sizes: (height, width) of each image in pixels.
        image_index: Position of each box's image, from 0.
        labels: Label of each box.
        boxes: (left, top, right, bottom) in pixels, clipped to the image.
        published: (left, top, width, height) in pixels, as in the annotation file.
        areas: Area of each object in square pixels, as in the annotation file.
        is_crowd: Whether each box surrounds a crowd.
        label_map: The category of each label.
        report: What was kept, changed and skipped.
        segmentations: Segmentation of each box, or `None` if masks are not read.

    Examples:
        >>> from deformdetr.data import ShapesConfig, draw_shapes
        >>> annotations, images = draw_shapes(ShapesConfig(num_val=2, image_size=64), "val")
        >>> annotations.sizes.tolist()
        [[64, 64], [64, 64]]
    """

    file_names: tuple[str, ...]
    image_ids: tuple[ImageId, ...]
    sizes: Int64[np.ndarray, "images 2"]
    image_index: Int64[np.ndarray, " boxes"]
    labels: Int64[np.ndarray, " boxes"]
    boxes: Float32[np.ndarray, "boxes 4"]
    published: Float64[np.ndarray, "boxes 4"]
    areas: Float64[np.ndarray, " boxes"]
    is_crowd: Bool[np.ndarray, " boxes"]
    label_map: LabelMap
    report: DatasetReport
    segmentations: Segmentations | None = None

    def is_consistent(self) -> bool:
        """Return whether the arrays fit each other, so that no position in one leads out of another."""
        images, boxes = len(self.file_names), len(self.image_index)
        expected = {
            "sizes": (np.int64, (images, 2)),
            "image_index": (np.int64, (boxes,)),
            "labels": (np.int64, (boxes,)),
            "boxes": (np.float32, (boxes, 4)),
            "published": (np.float64, (boxes, 4)),
            "areas": (np.float64, (boxes,)),
            "is_crowd": (np.bool_, (boxes,)),
        }
        found = {name: (getattr(self, name).dtype, getattr(self, name).shape) for name in expected}
        return (
            found == expected
            and len(self.image_ids) == images
            and _lie_within(self.image_index, images)
            and _lie_within(self.labels, self.label_map.num_classes)
            and bool((np.diff(self.image_index) >= 0).all())
            and (self.segmentations is None or self.segmentations.is_consistent(boxes))
        )

    def of_image(self, index: int) -> tuple[Float32[np.ndarray, "n 4"], Int64[np.ndarray, " n"]]:
        """Return the training boxes (xyxy in pixels) and labels of one image. Crowds are left out."""
        start, stop = np.searchsorted(self.image_index, (index, index + 1))
        keep = ~self.is_crowd[start:stop]
        return self.boxes[start:stop][keep], self.labels[start:stop][keep]

    def masks_of_image(self, index: int) -> UInt8[np.ndarray, "n height width"] | None:
        """Return the masks of the same boxes, 1 inside the object, or `None` if masks are not read."""
        if self.segmentations is None:
            return None
        start, stop = np.searchsorted(self.image_index, (index, index + 1))
        height, width = self.sizes[index].tolist()
        masks = [
            decode(self.segmentations.of_box(box), height, width)
            for box in range(start, stop)
            if not self.is_crowd[box]
        ]
        return np.stack(masks) if masks else np.zeros((0, height, width), dtype=np.uint8)

    def to_coco(self) -> dict[str, Any]:
        """Return images, boxes including crowds, masks if they are read, and categories in COCO format."""
        # Ids are renumbered from 1, because pycocotools treats a match with id 0 as no match.
        annotations: list[dict[str, Any]] = [
            {
                "id": number,
                "image_id": self.image_ids[image],
                "category_id": self.label_map.category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, label, box, area, crowd) in enumerate(
                zip(
                    self.image_index.tolist(),
                    self.labels.tolist(),
                    self.published.tolist(),
                    self.areas.tolist(),
                    self.is_crowd.tolist(),
                    strict=True,
                ),
                start=1,
            )
        ]
        if self.segmentations is not None:
            for box, annotation in enumerate(annotations):
                annotation["segmentation"] = self.segmentations.of_box(box)
        images = [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, name, (height, width) in zip(self.image_ids, self.file_names, self.sizes.tolist(), strict=True)
        ]
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.label_map.category_ids, self.label_map.names, strict=True)
        ]
        if self.label_map.stuff:
            for label, category in enumerate(categories):
                category["isthing"] = int(label not in self.label_map.stuff)
        return {"images": images, "annotations": annotations, "categories": categories}

    def ground_truth(self) -> COCO:
        """Return the dataset as a pycocotools object, for evaluation."""
        coco = COCO()
        coco.dataset = self.to_coco()
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    def summary(self) -> str:
        """Return a few lines of text: the report, the boxes per class and the distribution of their sizes."""
        keep = ~self.is_crowd
        labels, images, boxes = self.labels[keep], self.image_index[keep], self.boxes[keep].astype(np.float64)
        lines = [str(self.report), *self._class_lines(labels, images)]
        if len(boxes):
            sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
            quartiles = np.quantile(sides, (0, 0.25, 0.5, 0.75, 1))
            lines.append(
                f"  box side (root of its area), pixels: quartiles {' | '.join(f'{q:.0f}' for q in quartiles)}"
            )
            small, large = int((sides < _SMALL).sum()), int((sides > _LARGE).sum())
            lines.append(
                f"  small {small:,}, medium {len(sides) - small - large:,}, large {large:,} (below 32, above 96)"
            )
        return "\n".join(lines)

    def _class_lines(self, labels: Int64[np.ndarray, " boxes"], images: Int64[np.ndarray, " boxes"]) -> list[str]:
        """Return a table of the boxes and images per class: of all, or of the most frequent if there are many."""
        names = self.label_map.names
        boxes = np.bincount(labels, minlength=len(names))
        pairs = np.unique(images * len(names) + labels)
        images_with = np.bincount(pairs % len(names), minlength=len(names))
        shown = list(range(len(names)))
        if len(names) > _SHOWN_CLASSES:
            frequent = np.argsort(-boxes, kind="stable")[:_SHOWN_CLASSES].tolist()
            shown = [label for label in frequent if boxes[label]]
        width = max([len("class"), *(len(names[label]) for label in shown)])
        lines = [f"  {'class':<{width}}  {'boxes':>9}  {'images':>9}"]
        lines += [f"  {names[label]:<{width}}  {boxes[label]:>9,}  {images_with[label]:>9,}" for label in shown]
        if len(names) > len(shown):
            lines.append(f"  ... and {len(names) - len(shown):,} classes with fewer boxes or none")
        return lines


def _lie_within(positions: Int64[np.ndarray, " n"], length: int) -> bool:
    return len(positions) == 0 or (int(positions.min()) >= 0 and int(positions.max()) < length)
