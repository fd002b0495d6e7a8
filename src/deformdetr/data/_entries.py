"""Reading categories and annotations of a COCO annotation file."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from deformdetr.data._documents import EntryList
from deformdetr.data._errors import Kind, Problems
from deformdetr.data._ids import parse_id, parse_integer, spellings
from deformdetr.data._image_entries import INVALID_IMAGE, NO_OBJECT
from deformdetr.data._segmentations import to_json

UNKNOWN_IMAGE = Kind(
    "annotations of an image that is not in the list of images", "an image deleted without its annotations?"
)
_UNKNOWN_CATEGORY = Kind(
    "annotations of a category that is not in the list of categories",
    "a category deleted, or ids that count from 0 here and from 1 there?",
)
_INVALID_BOX = Kind("annotations without a valid box", "numbers written as text, or polygons without boxes?")
_INVALID_VALUE = Kind("annotations with an invalid area or crowd flag", "numbers written as text?")
_INVALID_CATEGORY = Kind("categories without a valid id and name")
_REPEATED_CATEGORY = Kind("categories with the id of another category", "two files merged without renumbering?")

_NUMBERS = {int, float}
_CROWD = {None: False, 0: False, 1: True, "0": False, "1": True}
_NO_AREA = math.nan
# Python's objects take ten times the memory of an array, so that only so many annotations are objects at once.
_BLOCK = 2**13


class _FaultError(ValueError):
    """A value of an entry is not valid."""

    def __init__(self, text: str, kind: Kind) -> None:
        super().__init__(text)
        self.kind = kind


class Rows(NamedTuple):
    """The annotations of a file. Boxes are (left, top, width, height) in pixels."""

    numbers: Int64[np.ndarray, " rows"]
    """Position of each annotation in the file, from 0."""
    image_index: Int64[np.ndarray, " rows"]
    category_ids: Int64[np.ndarray, " rows"]
    bbox: Float64[np.ndarray, "rows 4"]
    areas: Float64[np.ndarray, " rows"]
    is_crowd: Bool[np.ndarray, " rows"]
    segmentations: Shaped[np.ndarray, " rows"]
    """JSON text of each, `bytes`; `None` if masks are not read."""

    def select(self, keep: Bool[np.ndarray, " rows"]) -> "Rows":
        """Return the annotations for which `keep` is True."""
        if keep.all():
            return self
        chosen = np.flatnonzero(keep)
        return Rows(*(column[chosen] for column in self))

    def reorder(self, order: Int64[np.ndarray, " rows"]) -> "Rows":
        """Return the annotations in another order, with one column after another moved in place."""
        for column in self:
            column[:] = column[order]
        return self


def read_categories(entries: EntryList, problems: Problems) -> dict[int, str]:
    """Return the name of each category id."""
    categories: dict[int, str] = {}
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            problems.report(f"category number {number} is {entry!r:.60}, not an object", NO_OBJECT)
            continue
        identifier, name = parse_integer(entry.get("id")), entry.get("name")
        if identifier is None:
            found = f"'id' is {entry['id']!r:.60}, not an integer of 64 bits" if "id" in entry else "it has no 'id'"
            problems.report(f"category number {number}: {found}", _INVALID_CATEGORY)
        if not isinstance(name, str):
            label = f"category number {number}" if identifier is None else f"category {identifier}"
            problems.report(f"{label}: 'name' is {name!r:.60}, not a string", _INVALID_CATEGORY)
        elif identifier is not None and categories.setdefault(identifier, name) != name:
            found = f"{categories[identifier]!r} and {name!r}"
            problems.report(f"category id {identifier} is used twice: {found}", _REPEATED_CATEGORY)
    return categories


def stuff_categories(entries: EntryList) -> set[int]:
    """Return the ids of categories that COCO's panoptic format marks as stuff, by `isthing: 0`."""
    marked = (entry for entry in entries if isinstance(entry, dict) and entry.get("isthing") == 0)
    return {number for entry in marked if (number := parse_integer(entry.get("id"))) is not None}


def listed_categories(entries: EntryList) -> dict[Any, int]:
    """Return the id of each category by all of its spellings, including those of entries without a valid name."""
    ids = (parse_integer(entry.get("id")) for entry in entries if isinstance(entry, dict))
    return {spelling: number for number in ids if number is not None for spelling in spellings(number)}


def read_rows(
    entries: EntryList, images: dict[Any, int], categories: dict[Any, int], problems: Problems, *, masks: bool = False
) -> Rows:
    """Read the annotations, and report all problems of each.

    Args:
        entries: As in the file.
        images: Position of each image by id. Annotations of an invalid image are left out and not reported again.
        categories: Id of each category, by all of its spellings.
        problems: Gets the problems.
        masks: Whether to keep segmentations. They are not checked here.
    """
    fields: tuple[Callable[[dict[str, Any]], Any], ...] = (
        lambda entry: _look_up(entry, "image_id", images),
        lambda entry: _look_up(entry, "category_id", categories),
        _read_box,
        _read_area,
        _read_crowd,
    )
    blocks: list[Rows] = []
    numbered = enumerate(entries)
    while block := list(islice(numbered, _BLOCK)):
        rows = _plain_rows(block, images, categories, masks=masks)
        blocks.append(_single_rows(block, fields, problems, masks=masks) if rows is None else rows)
    blocks = blocks or [_as_rows([], [])]
    columns = [list(column) for column in zip(*blocks, strict=True)]
    # Each column in pieces is freed when it is joined, so that there are not two of all columns.
    blocks.clear()
    rows = Rows(*(np.concatenate(columns.pop(0)) for _ in Rows._fields))
    rows = rows.select(rows.image_index != INVALID_IMAGE)
    # A box with a negative side is dropped later, and may have a negative area.
    negative = (rows.areas < 0) & (rows.bbox[:, 2:].min(axis=1, initial=np.inf) > 0)
    for number in rows.numbers[negative].tolist():
        name, area = annotation_name(entries[number], number), entries[number]["area"]
        problems.report(f"{name}: 'area' is {area!r:.60}, which is negative", _INVALID_VALUE)
    return rows


def _plain_rows(
    block: list[tuple[int, Any]], images: dict[Any, int], categories: dict[Any, int], *, masks: bool
) -> Rows | None:
    """Return annotations at once, or `None` if some lack a field, or have one that is not as in COCO's own files."""
    entries = [entry for _, entry in block]
    try:
        image_index = [images[entry["image_id"]] for entry in entries]
        category_ids = [categories[entry["category_id"]] for entry in entries]
        boxes, areas, crowds = ([entry[key] for entry in entries] for key in ("bbox", "area", "iscrowd"))
        sides = [side for box in boxes for side in box]
        values = np.array([*sides, *areas], dtype=np.float64)
        are_boxes = set(map(type, boxes)) == {list} and set(map(len, boxes)) == {4}
        are_flags = set(map(type, crowds)) == {int} and {0, 1}.issuperset(crowds)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    are_numbers = _NUMBERS.issuperset(map(type, sides)) and _NUMBERS.issuperset(map(type, areas))
    if not (are_boxes and are_flags and are_numbers and np.isfinite(values).all()):
        return None
    return Rows(
        np.array([number for number, _ in block], dtype=np.int64),
        np.array(image_index, dtype=np.int64),
        np.array(category_ids, dtype=np.int64),
        values[: len(sides)].reshape(-1, 4),
        values[len(sides) :],
        np.array(crowds, dtype=np.bool_),
        np.array([to_json(entry.get("segmentation")) if masks else None for entry in entries], dtype=object),
    )


def _single_rows(
    block: list[tuple[int, Any]],
    fields: tuple[Callable[[dict[str, Any]], Any], ...],
    problems: Problems,
    *,
    masks: bool,
) -> Rows:
    """Read annotations one by one."""
    columns: list[tuple[Any, ...]] = []
    segmentations: list[bytes | None] = []
    for number, entry in block:
        if not isinstance(entry, dict):
            problems.report(f"annotation number {number + 1} is {entry!r:.60}, not an object", NO_OBJECT)
            continue
        values = []
        for read in fields:
            try:
                values.append(read(entry))
            except _FaultError as fault:
                problems.report(f"{annotation_name(entry, number)}: {fault}", fault.kind)
        if len(values) == len(fields):
            columns.append((number, *values))
            segmentations.append(to_json(entry.get("segmentation")) if masks else None)
    return _as_rows(columns, segmentations)


def annotation_name(entry: dict[str, Any], number: int) -> str:
    """Return a name of the annotation at a position from 0, for messages: its id if it has one."""
    identifier = parse_id(entry.get("id"))
    return f"annotation number {number + 1}" if identifier is None else f"annotation {identifier}"


def _as_rows(columns: list[tuple[Any, ...]], segmentations: list[bytes | None]) -> Rows:
    numbers, images, categories, boxes, areas, crowds = zip(*columns, strict=True) if columns else ((),) * 6
    bbox = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    given = np.array(areas, dtype=np.float64)
    with np.errstate(over="ignore"):
        areas_of_boxes = bbox[:, 2] * bbox[:, 3]
    return Rows(
        np.array(numbers, dtype=np.int64),
        np.array(images, dtype=np.int64),
        np.array(categories, dtype=np.int64),
        bbox,
        np.where(np.isnan(given), areas_of_boxes, given),
        np.array(crowds, dtype=np.bool_),
        np.array(segmentations, dtype=object),
    )


def _look_up(entry: dict[str, Any], key: str, positions: dict[Any, int]) -> int:
    value = entry.get(key)
    try:
        return positions[value]
    except (LookupError, TypeError):
        kind = UNKNOWN_IMAGE if key == "image_id" else _UNKNOWN_CATEGORY
        if key not in entry:
            raise _FaultError(f"it has no {key!r}", kind) from None
        what, listed = ("image", "images") if key == "image_id" else ("category", "categories")
        if parse_id(value) is None:
            raise _FaultError(f"{key!r} is {value!r:.60}, not an integer or text", kind) from None
        raise _FaultError(f"{what} {value} is not in the list of {listed}", kind) from None


def _read_box(entry: dict[str, Any]) -> list[Any]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise _FaultError(f"'bbox' is {box!r:.60}, not [left, top, width, height]", _INVALID_BOX)
    if not _NUMBERS.issuperset(map(type, box)):
        wrong = next(side for side in box if type(side) not in _NUMBERS)
        raise _FaultError(f"'bbox' is {box!r:.80}: {wrong!r:.60} is not a number", _INVALID_BOX)
    if not _are_finite(box):
        raise _FaultError(f"'bbox' is {box!r:.80}, which is not finite", _INVALID_BOX)
    return box


def _read_area(entry: dict[str, Any]) -> float:
    area = entry.get("area")
    if area is None:
        return _NO_AREA
    if type(area) not in _NUMBERS:
        raise _FaultError(f"'area': {area!r:.60} is not a number", _INVALID_VALUE)
    if not _are_finite([area]):
        raise _FaultError(f"'area' is {area!r:.60}, which is not finite", _INVALID_VALUE)
    return float(area)


def _read_crowd(entry: dict[str, Any]) -> bool:
    crowd = entry.get("iscrowd")
    try:
        return _CROWD[crowd]
    except (LookupError, TypeError):
        raise _FaultError(f"'iscrowd' is {crowd!r:.60}, neither 0 nor 1", _INVALID_VALUE) from None


def _are_finite(values: list[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except OverflowError:
        return False
