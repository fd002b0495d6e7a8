"""Reading annotation files in COCO format: what is kept, changed, skipped and refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from deformdetr._coco_types import LabelMap
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._config import DEFAULT_DECODING, DecodeConfig
from deformdetr.data._documents import (
    Document,
    EntryList,
    NeedsWholeError,
    open_document,
    whole_document,
    without_garbage_collection,
)
from deformdetr.data._entries import (
    Rows,
    annotation_name,
    listed_categories,
    read_categories,
    read_rows,
    stuff_categories,
)
from deformdetr.data._errors import Kind, Problems, dataset_error
from deformdetr.data._image_entries import ImageTable, read_images
from deformdetr.data._index import AnnotationIndex, is_large
from deformdetr.data._segmentations import Segmentations, flaw

_NO_CATEGORIES = Kind("lists without categories")
_CONTRADICTION = Kind("categories that contradict the label map", "files of different datasets, or renumbered ids?")
_UNMAPPED = Kind("categories that the label map lacks")
# Of LVIS.
_PARTLY_ANNOTATED = (
    "images annotated for some categories only (neg_category_ids): AP counts correct detections of others as false"
)


def read_coco(
    images: str | Path,
    annotations: str | Path,
    *,
    label_map: LabelMap | None = None,
    ignore_unknown_categories: bool = False,
    masks: bool = False,
    decode: DecodeConfig = DEFAULT_DECODING,
) -> Annotations:
    """Read an annotation file in COCO format and check that it can be trained on.

    The following entries are skipped or changed, and counted in the report:

    * A box without width or height is dropped. So is one whose width or height vanishes when it is clipped, in float32.
    * A box that extends beyond its image is clipped for training. Evaluation uses the published box.
    * A crowd box (`iscrowd` 1) is left out of training and is an ignored region in evaluation.
    * With `ignore_unknown_categories`, a box whose category is not in the label map is skipped.
    * With `masks`, a box without a usable segmentation is dropped. Unusable are: a missing or empty segmentation;
      neither polygons nor RLE; a polygon of fewer than three points, with values that are not pairs of finite numbers,
      or extending beyond the image by more than its size; RLE of a different size than the image, with invalid counts,
      or of an empty mask.
    * An image without boxes stays in the dataset, with an empty target.

    The following is read although it differs from COCO's own files. The report notes what depends on files:

    * Ids of annotations do not matter: they may be missing, repeated or of any type.
    * Ids of images may be text. Ids may also be whole numbers written as floats or as text.
    * `iscrowd` and `area` may be missing or null. The area is then that of the box.
    * A file name may have backslashes, or another Unicode form (NFC, NFD) than the file. Without a file name, it
      follows from `coco_url`, as in LVIS.
    * If the width or height of an image is missing, null, 0 or negative, both are taken from the file.
    * An image that is listed twice, with the same entry, is read once.

    The following problems raise an error: a file that is missing, empty, not JSON or not in COCO format; no image; an
    image without an id or file name; an image id that is used twice; a missing or empty image file; a box of an unknown
    image or category; a box that is not four finite numbers; a box entirely outside its image; a negative or non-finite
    area; a category whose name or id contradicts the label map.

    Args:
        images: Folder that the file names are relative to.
        annotations: The JSON file.
        label_map: The category of each label. `None` numbers the categories in ascending order of their ids.
        ignore_unknown_categories: Whether to skip boxes whose category is not in the label map, instead of raising.
        masks: Whether to read segmentations. They are not checked otherwise.
        decode: How image files become pixels, for sizes that are taken from files.

    Raises:
        DatasetError: If there are problems. The message has those of each kind with file, id and value.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import ShapesConfig, read_coco, write_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = write_shapes(ShapesConfig(num_train=3, num_val=1), folder)
        ...     annotations = read_coco(config.train_images, config.train_annotations)
        >>> annotations.label_map.names
        ('circle', 'rectangle', 'triangle')
    """
    options = ReadOptions(label_map, ignore_unknown_categories, masks, decode)
    return read_annotations(Path(annotations), Path(images), options)


class ReadOptions(NamedTuple):
    """Arguments of `read_coco`."""

    label_map: LabelMap | None
    ignore_unknown_categories: bool
    masks: bool
    decode: DecodeConfig


def read_annotations(file: Path, folder: Path | None, options: ReadOptions) -> Annotations:
    """Read an annotation file as `read_coco` does. Without a folder, names of images are taken as they are."""
    if not is_large(file):
        return _read(whole_document(file), file, folder, options)[0]
    settings = {"ignore_unknown": options.ignore_unknown_categories, "masks": options.masks}
    index = AnnotationIndex(file, options.label_map, settings)
    known = index.load(folder, allow_outside=options.decode.allow_outside)
    if known is not None:
        return known
    try:
        # Which takes two thirds of the time.
        with without_garbage_collection():
            found, table = _read(open_document(file), file, folder, options)
    except NeedsWholeError:
        found, table = _read(whole_document(file), file, folder, options)
    if not table.has_sizes_of_files:
        index.save(found, absent=table.absent)
    return found


def _read(document: Document, file: Path, folder: Path | None, options: ReadOptions) -> tuple[Annotations, ImageTable]:
    problems = Problems(file)
    label_map = options.label_map
    table = read_images(document.images, folder, problems, options.decode)
    categories = read_categories(document.categories, problems)
    if label_map is None and categories:
        label_map = LabelMap.contiguous(categories, stuff=stuff_categories(document.categories))
    if label_map is None:
        # Otherwise every annotation would be reported for its unknown category.
        problems.report("there are no categories", _NO_CATEGORIES)
        raise dataset_error(problems)
    _compare_categories(categories, label_map, problems)
    entries = document.annotations
    listed = listed_categories(document.categories)
    rows = read_rows(entries, table.positions, listed, problems, masks=options.masks)
    unmapped = ~np.isin(rows.category_ids, label_map.category_ids)
    if not options.ignore_unknown_categories:
        _refuse_unmapped(rows.select(unmapped), entries, categories, problems)
    rows, boxes, counts = _apply_rules(rows.select(~unmapped), table, entries, problems)
    problems.refuse()
    counts["unknown_category"] = int(unmapped.sum())
    partly = sum("neg_category_ids" in image for image in document.images if isinstance(image, dict))
    counts["notes"] = (*table.notes, *[f"{partly:,} {_PARTLY_ANNOTATED}"] * (partly > 0))
    if options.masks:
        sizes = table.sizes[rows.image_index].tolist()
        flaws = [
            flaw(json.loads(text), height, width)
            for text, (height, width) in zip(rows.segmentations, sizes, strict=True)
        ]
        keep = np.array([not each for each in flaws], dtype=np.bool_)
        rows, boxes = rows.select(keep), boxes[keep]
        counts["without_mask"] = Counter(sorted(filter(None, flaws)))
    return _assemble(str(file), table, rows, boxes, label_map, counts, masks=options.masks), table


def _compare_categories(categories: dict[int, str], label_map: LabelMap, problems: Problems) -> None:
    known = dict(zip(label_map.category_ids, label_map.names, strict=True))
    ids_by_name = {name: number for number, name in known.items()}
    for number, name in categories.items():
        if number in known and known[number] != name:
            text = f"category {number} is {name!r} here but {known[number]!r} in the label map"
            problems.report(text, _CONTRADICTION)
        elif number not in known and name in ids_by_name:
            text = f"category {name!r} has the id {number} here but {ids_by_name[name]} in the label map"
            problems.report(text, _CONTRADICTION)


def _refuse_unmapped(rows: Rows, entries: EntryList, categories: dict[int, str], problems: Problems) -> None:
    for number in np.unique(rows.category_ids).tolist():
        users = rows.numbers[rows.category_ids == number].tolist()
        text = (
            f"category {number} ({categories.get(number)!r}) is not in the label map, but {len(users):,} annotations "
            f"have it, the first being {annotation_name(entries[users[0]], users[0])}; add it, or set "
            "ignore_unknown_categories to skip them"
        )
        problems.report(text, _UNMAPPED)


def _apply_rules(
    rows: Rows, table: ImageTable, entries: EntryList, problems: Problems
) -> tuple[Rows, Float32[np.ndarray, "kept 4"], dict[str, Any]]:
    limits = table.sizes[:, ::-1].astype(np.float64)[rows.image_index]
    corners = rows.bbox.copy()
    low, high = corners[:, :2], corners[:, 2:]
    with np.errstate(over="ignore"):
        high += low
    has_extent = np.asarray((rows.bbox[:, 2:] > 0).all(axis=1))
    outside = np.asarray(has_extent & ((low >= limits) | (high <= 0)).any(axis=1))
    if outside.any():
        kind = Kind("boxes outside their image", _cause_of_outside(low, high, limits, has_extent))
        for number, image in zip(rows.numbers[outside].tolist(), rows.image_index[outside].tolist(), strict=True):
            height, width = table.sizes[image].tolist()
            text = (
                f"{annotation_name(entries[number], number)}: 'bbox' {entries[number]['bbox']} lies outside its image "
                f"{table.file_names[image]} of {width} x {height} (width x height)"
            )
            problems.report(text, kind)
    reaches_out = ((low < 0) | (high > limits)).any(axis=1)
    # In place, as each copy takes as much memory as a third of the rows.
    for corner in (low, high):
        np.clip(corner, 0, limits, out=corner)
    boxes = corners.astype(np.float32)
    has_extent &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    keep = has_extent & ~outside
    clipped = keep & reaches_out
    counts = {"degenerate": int((~has_extent & ~outside).sum()), "clipped": int(clipped.sum())}
    return rows.select(keep), boxes[keep], counts


def _cause_of_outside(
    low: Float64[np.ndarray, "rows 2"],
    high: Float64[np.ndarray, "rows 2"],
    limits: Float64[np.ndarray, "rows 2"],
    has_extent: Bool[np.ndarray, " rows"],
) -> str:
    """Return what explains boxes outside their images, from all boxes: (x, y) of two corners, and (width, height)."""
    low, high, limits = low[has_extent], high[has_extent], limits[has_extent]
    if (high <= limits[:, ::-1] + 1).all():
        return "width and height of images exchanged, or annotated before photographs were turned?"
    if (low >= 0).all() and 1.5 * limits.max() < high.max() <= 1000:
        return "boxes on a scale of 0 to 1000?"
    return "images resized or cropped after they were annotated, or boxes of other images?"


def _assemble(
    source: str,
    table: ImageTable,
    rows: Rows,
    boxes: Float32[np.ndarray, "boxes 4"],
    label_map: LabelMap,
    counts: dict[str, Any],
    *,
    masks: bool,
) -> Annotations:
    order = np.argsort(rows.image_index, kind="stable")
    rows, boxes = rows.reorder(order), boxes[order]
    by_id = np.argsort(label_map.category_ids)
    labels = by_id[np.searchsorted(label_map.category_ids, rows.category_ids, sorter=by_id)]
    report = DatasetReport(
        source=source,
        images=len(table.ids),
        empty_images=len(table.ids) - len(np.unique(rows.image_index[~rows.is_crowd])),
        boxes=int((~rows.is_crowd).sum()),
        crowd=int(rows.is_crowd.sum()),
        **counts,
    )
    return Annotations(
        file_names=tuple(table.file_names),
        image_ids=table.ids,
        sizes=table.sizes,
        image_index=rows.image_index,
        labels=labels,
        boxes=boxes,
        published=rows.bbox,
        areas=rows.areas,
        is_crowd=rows.is_crowd,
        label_map=label_map,
        report=report,
        segmentations=Segmentations.join(rows.segmentations.tolist()) if masks else None,
    )
