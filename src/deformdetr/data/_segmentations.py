"""Segmentations in COCO's forms: polygons, and run lengths as numbers or as a string."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from pycocotools import mask as coco_mask


class Segmentations(NamedTuple):
    """One segmentation per box, as JSON in one array: reading it does not copy pages into every loader process."""

    content: UInt8[np.ndarray, " bytes"]
    starts: Int64[np.ndarray, " boxes_and_one"]
    """Where each one's bytes start, and where the last one's end."""

    @classmethod
    def pack(cls, segmentations: Iterable[Any]) -> "Segmentations":
        """Store segmentations."""
        texts = [json.dumps(each, separators=(",", ":")).encode() for each in segmentations]
        starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), dtype=np.uint8), starts)

    def of_box(self, index: int) -> Any:
        """Give one as the annotation file has it."""
        return json.loads(self.content[self.starts[index] : self.starts[index + 1]].tobytes())


def flaw(segmentation: Any, height: int, width: int) -> str | None:
    """Say in a few words why a segmentation is no mask of an image of that size, or give None if it is one."""
    if segmentation is None or segmentation in ([], {}):
        return "missing"
    if isinstance(segmentation, dict):
        return _flaw_of_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return "neither polygons nor RLE"
    flaws = (_flaw_of_polygon(polygon, height, width) for polygon in segmentation)
    return next((found for found in flaws if found), None)


def rasterise(segmentation: Any, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
    """Give the mask of a segmentation, 1 inside the object; several polygons are parts of one.

    Raises:
        ValueError: If the segmentation has a flaw in its counts.
    """
    is_drawn = isinstance(segmentation, list)
    counts = _counts_of(
        coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)) if is_drawn else segmentation
    )
    if counts is None or sum(counts) != height * width:
        raise ValueError(f"not the counts of a mask of {height} x {width} pixels: {segmentation!r:.80}")
    # Not by pycocotools, whose decoder gives a warning with numpy 2.
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(values, counts).reshape(width, height).T


def encode(mask: UInt8[np.ndarray, "height width"]) -> dict[str, Any]:
    """Give a mask as RLE with a string of counts, which JSON can hold."""
    runs = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}


def _flaw_of_polygon(polygon: list[Any], height: int, width: int) -> str | None:
    # Four numbers would be taken for a box.
    if len(polygon) < 6:
        return "polygon of fewer than three points"
    try:
        points = np.array(polygon, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return "polygon of something else than numbers"
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
        return "polygon that is not pairs of finite numbers"
    # Drawing takes memory in proportion to a polygon's outline, wherever that lies.
    size = np.array([width, height])
    if ((points.reshape(-1, 2) < -size) | (points.reshape(-1, 2) > 2 * size)).any():
        return "polygon far outside its image"
    return None


def _flaw_of_runs(runs: dict[str, Any], height: int, width: int) -> str | None:
    if runs.get("size") != [height, width]:
        return "RLE of another size than the image"
    counts = _counts_of(runs)
    # Checked here, because pycocotools, which evaluates with them, trusts counts and writes past the mask's end.
    if counts is None or sum(counts) != height * width:
        return "RLE whose counts are not those of its size"
    return None if any(counts[1::2]) else "RLE without a pixel"


def _counts_of(runs: dict[str, Any]) -> list[int] | None:
    """Give the lengths of the runs, or None if they are not whole numbers of at least 0."""
    counts = runs.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if isinstance(counts, bytes):
        counts = _parse_counts(counts)
    is_counted = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return counts if is_counted else None


def _parse_counts(text: bytes) -> list[int] | None:
    """Read COCO's compressed counts: 5 bits a character from the low end, from the fourth on less that two before."""
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
