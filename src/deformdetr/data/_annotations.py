"""The boxes of a dataset as flat arrays, what was counted while reading them, and their COCO form."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from pycocotools.coco import COCO

from deformdetr.data._config import LabelMap
from deformdetr.data._segmentations import Segmentations, rasterise

# COCO's limits between small, medium and large objects, in pixels of the box side.
_SMALL, _LARGE = 32.0, 96.0


@dataclass(frozen=True)
class DatasetReport:
    """What a reader found, kept and skipped.

    Attributes:
        source: Where the annotations come from.
        images: All images.
        empty_images: Images without a box to learn from; they stay in the dataset.
        boxes: Boxes to learn from.
        crowd: Crowd boxes: left out of training, ignored regions in evaluation.
        degenerate: Boxes without width or height: dropped.
        clipped: Boxes that reached over the edge of their image: cut there for training.
        unknown_category: Boxes skipped because the label map lacks their category.
        without_mask: Boxes dropped because their segmentation is no mask, by what is wrong with it; only where masks
            are read.
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
        return (
            f"{self.source}: {self.images:,} images ({self.empty_images:,} without boxes), {self.boxes:,} boxes; "
            f"{noted or 'nothing skipped'}"
        )


@dataclass(frozen=True)
class Annotations:
    """Images and boxes of one split. Boxes are sorted by image; arrays keep loader processes from copying memory.

    Attributes:
        file_names: As in the annotation file, one per image.
        image_ids: As in the annotation file.
        sizes: (height, width) of each image in pixels.
        image_index: Which image each box belongs to, counting from 0.
        labels: The label of each box.
        boxes: Corners (left, top, right, bottom) in pixels, clipped to the image.
        published: (left, top, width, height) in pixels, as the annotation file has it.
        areas: Area of each object in square pixels, as the annotation file has it.
        is_crowd: Whether the box covers a crowd.
        label_map: Which category each label means.
        report: What was kept and skipped.
        segmentations: Of each box, where masks are read.
    """

    file_names: tuple[str, ...]
    image_ids: tuple[int, ...]
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

    def of_image(self, index: int) -> tuple[Float32[np.ndarray, "n 4"], Int64[np.ndarray, " n"]]:
        """Give the boxes (corners in pixels) and labels of one image to learn from, without crowds."""
        start, stop = np.searchsorted(self.image_index, (index, index + 1))
        keep = ~self.is_crowd[start:stop]
        return self.boxes[start:stop][keep], self.labels[start:stop][keep]

    def masks_of_image(self, index: int) -> UInt8[np.ndarray, "n height width"] | None:
        """Give the masks of the same boxes, 1 inside the objects, where masks are read."""
        if self.segmentations is None:
            return None
        start, stop = np.searchsorted(self.image_index, (index, index + 1))
        height, width = self.sizes[index].tolist()
        masks = [
            rasterise(self.segmentations.of_box(box), height, width)
            for box in range(start, stop)
            if not self.is_crowd[box]
        ]
        return np.stack(masks) if masks else np.zeros((0, height, width), dtype=np.uint8)

    def to_coco(self) -> dict[str, Any]:
        """Give images, boxes (crowds included), masks where they are read, and categories in COCO's format."""
        # Boxes are numbered anew, from 1: pycocotools takes a matched box of id 0 for an unmatched one.
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
        return {"images": images, "annotations": annotations, "categories": categories}

    def ground_truth(self) -> COCO:
        """Give pycocotools' view of the dataset for evaluation."""
        coco = COCO()
        coco.dataset = self.to_coco()
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    def summary(self) -> str:
        """Describe the dataset in a few lines: the report, boxes per class, and how large they are."""
        keep = ~self.is_crowd
        labels, images, boxes = self.labels[keep], self.image_index[keep], self.boxes[keep].astype(np.float64)
        width = max(len("class"), *(len(name) for name in self.label_map.names))
        lines = [str(self.report), f"  {'class':<{width}}  {'boxes':>9}  {'images':>9}"]
        for label, name in enumerate(self.label_map.names):
            of_class = labels == label
            lines.append(f"  {name:<{width}}  {of_class.sum():>9,}  {len(np.unique(images[of_class])):>9,}")
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
