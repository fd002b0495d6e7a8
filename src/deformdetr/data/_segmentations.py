"""Segmentations in COCO format: polygons, or run-length encoding (RLE) as a list or a string."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from pycocotools import mask as coco_mask


class Segmentations(NamedTuple):
    """One segmentation per box, packed as JSON into one array.

    Reading an array, unlike Python objects, does not copy memory into data-loader workers.
    """

    content: UInt8[np.ndarray, " bytes"]
    starts: Int64[np.ndarray, " boxes_and_one"]
    """Offset of the first byte of each segmentation, and the total number of bytes."""

    @classmethod
    def pack(cls, segmentations: Iterable[Any]) -> "Segmentations":
        """Pack segmentations of any COCO form."""
        return cls.join([to_json(each) for each in segmentations])

    @classmethod
    def join(cls, texts: Sequence[bytes]) -> "Segmentations":
        """Pack segmentations that are JSON already."""
        starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), dtype=np.uint8), starts)

    def is_consistent(self, boxes: int) -> bool:
        """Return whether there is one segmentation for each of so many boxes, within the content."""
        return (
            self.content.dtype == np.uint8
            and self.content.ndim == 1
            and self.starts.dtype == np.int64
            and self.starts.shape == (boxes + 1,)
            and (int(self.starts[0]), int(self.starts[-1])) == (0, len(self.content))
            and bool((np.diff(self.starts) >= 0).all())
        )

    def of_box(self, index: int) -> Any:
        """Return the segmentation of a box as in the annotation file."""
        return json.loads(self.content[self.starts[index] : self.starts[index + 1]].tobytes())


def to_json(segmentation: Any) -> bytes:
    """Return the JSON text of a segmentation."""
    return json.dumps(segmentation, separators=(",", ":")).encode()


def flaw(segmentation: Any, height: int, width: int) -> str | None:
    """Return why a segmentation is not a mask for an image of this size, or `None` if it is one."""
    if segmentation is None or segmentation in ([], {}):
        return "missing"
    if isinstance(segmentation, dict):
        return _flaw_of_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return "neither polygons nor RLE"
    flaws = (_flaw_of_polygon(polygon, height, width) for polygon in segmentation)
    return next((found for found in flaws if found), None)


def decode(segmentation: Any, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
    """Return the mask of a segmentation, 1 inside the object. Several polygons form one object.

    Raises:
        ValueError: If the counts of an RLE are not valid.
    """
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    counts = _counts_of(segmentation)
    if counts is None or sum(counts) != height * width:
        raise ValueError(f"not the counts of a mask of {height} x {width} pixels: {segmentation!r:.80}")
    # pycocotools' own decoder issues a DeprecationWarning with NumPy 2.
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(values, counts).reshape(width, height).T


def _flaw_of_polygon(polygon: list[Any], height: int, width: int) -> str | None:
    # pycocotools would read four numbers as a box.
    if len(polygon) < 6:
        return "polygon of fewer than three points"
    try:
        points = np.array(polygon, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return "polygon with values that are not numbers"
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
        return "polygon that is not pairs of finite numbers"
    # The memory for drawing a polygon grows with its outline, even outside the image.
    size = np.array([width, height])
    if ((points.reshape(-1, 2) < -size) | (points.reshape(-1, 2) > 2 * size)).any():
        return "polygon far outside its image"
    return None


def _flaw_of_runs(runs: dict[str, Any], height: int, width: int) -> str | None:
    if runs.get("size") != [height, width]:
        return "RLE of a different size than the image"
    counts = _counts_of(runs)
    # pycocotools does not check counts, and would write past the end of the mask during evaluation.
    if counts is None or sum(counts) != height * width:
        return "RLE with counts that do not fit its size"
    return None if any(counts[1::2]) else "RLE of an empty mask"


def _counts_of(runs: dict[str, Any]) -> list[int] | None:
    """Return the run lengths, or `None` if they are not non-negative integers."""
    counts = runs.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if isinstance(counts, bytes):
        counts = _parse_counts(counts)
    is_counted = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return counts if is_counted else None


def _parse_counts(text: bytes) -> list[int] | None:
    """Decode COCO's compressed counts, or return `None` if they are malformed.

    Each character holds 5 bits, lowest first. From the fourth count on, the difference from the count two before is
    stored.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return None if shift else counts
