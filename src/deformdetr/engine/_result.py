"""The detections in one image, with the names of their classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from deformdetr.structures import PanopticSegmentation
from deformdetr.visualize import draw_boxes, draw_panoptic


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionResult:
    """Detections in one image, best first.

    Attributes:
        image: The image, 8-bit RGB.
        boxes: (left, top, right, bottom) in pixels, clipped to the image.
        scores: Scores in [0, 1].
        labels: Label of each detection, from 0.
        masks: True inside the objects, of a model with masks.
        class_names: Name of every label of the model.
        best_score: Highest score of all detections, those below the threshold included; None without any detection.
        source: The file that the image was read from.
        segmentation: Panoptic segmentation, of a model with masks whose labels include stuff.

    Examples:
        >>> import torch
        >>> from deformdetr.engine import DetectionResult
        >>> result = DetectionResult(
        ...     image=torch.zeros(3, 60, 80, dtype=torch.uint8),
        ...     boxes=torch.tensor([[10.0, 10.0, 30.0, 40.0], [50.0, 20.0, 60.0, 30.0]]),
        ...     scores=torch.tensor([0.9, 0.4]),
        ...     labels=torch.tensor([1, 0]),
        ...     class_names=("cat", "dog"),
        ...     best_score=0.9,
        ... )
        >>> result
        <80 x 60 pixels: 1 dog, 1 cat>
        >>> result.above(0.5).names
        ['dog']
    """

    image: UInt8[Tensor, "3 height width"]
    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    class_names: Sequence[str]
    best_score: float | None
    masks: Bool[Tensor, "n height width"] | None = None
    source: Path | None = None
    segmentation: PanopticSegmentation | None = None

    @property
    def names(self) -> list[str]:
        """Name of the class of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.image.shape[1:]
        where = "" if self.source is None else f"{self.source}, "
        found = ", ".join(f"{count} {name}" for name, count in Counter(self.names).items())
        best = "" if self.best_score is None else f", best score {self.best_score:.3f}"
        return f"<{where}{width} x {height} pixels: {found or f'no detection{best}'}>"

    def above(self, threshold: float) -> "DetectionResult":
        """Return the detections with a score of at least `threshold`."""
        keep = self.scores >= threshold
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            masks=None if self.masks is None else self.masks[keep],
        )

    def draw(self, *, min_size: int = 512, font: str | Path | None = None) -> Image.Image:
        """Return a picture of the image with boxes, masks, names and scores.

        Args:
            min_size: As in `deformdetr.visualize.draw_boxes`.
            font: As in `deformdetr.visualize.draw_boxes`.
        """
        return draw_boxes(
            self.image,
            self.boxes,
            self.labels,
            self.class_names,
            scores=self.scores,
            masks=self.masks,
            min_size=min_size,
            font=font,
        )

    def draw_panoptic(self, *, min_size: int = 512, font: str | Path | None = None) -> Image.Image:
        """Return a picture of the panoptic segmentation.

        Args:
            min_size: As in `deformdetr.visualize.draw_boxes`.
            font: As in `deformdetr.visualize.draw_boxes`.

        Raises:
            ValueError: If there is no segmentation.
        """
        if self.segmentation is None:
            raise ValueError("there is no panoptic segmentation, which needs a model with masks and labels of stuff")
        return draw_panoptic(self.image, self.segmentation, self.class_names, min_size=min_size, font=font)

    def to_supervision(self) -> Any:
        """Return the detections as `supervision.Detections`, with the names under `class_name`.

        Raises:
            ModuleNotFoundError: If supervision is not installed.
        """
        from supervision import Detections

        return Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )
