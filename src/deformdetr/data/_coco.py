"""Reading annotation files in COCO format: what is kept, changed, skipped and refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from deformdetr._coco_types import LabelMap
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._entries import (
    ImageTable,
    Rows,
    listed_ids,
    load_document,
    read_categories,
    read_images,
    read_rows,
)
from deformdetr.data._errors import DatasetError, dataset_error
from deformdetr.data._segmentations import Segmentations, flaw


def read_coco(
    images: str | Path,
    annotations: str | Path,
    *,
    label_map: LabelMap | None = None,
    ignore_unknown_categories: bool = False,
    masks: bool = False,
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

    The following problems raise an error: a file that is missing, empty, not JSON or not in COCO format; no image; an
    image without an integer id, file name, width or height; a repeated image or annotation id; a missing or empty image
    file; a box of an unknown image or category; a box that is not four finite numbers; a box entirely outside its
    image; a negative or non-finite area; a category whose name or id contradicts the label map.

    Args:
        images: Folder that the file names are relative to.
        annotations: The JSON file.
        label_map: The category of each label. `None` numbers the categories in ascending order of their ids.
        ignore_unknown_categories: Whether to skip boxes whose category is not in the label map, instead of raising.
        masks: Whether to read segmentations. They are not checked otherwise.

    Raises:
        DatasetError: If there are problems. The message has one line per problem, with file, id and value.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import ShapesConfig, read_coco, write_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = write_shapes(ShapesConfig(num_train=3, num_val=1), folder)
        ...     annotations = read_coco(config.train_images, config.train_annotations)
        >>> annotations.label_map.names
        ('circle', 'rectangle', 'triangle')
    """
    problems: list[str] = []
    annotations = Path(annotations)
    document = load_document(annotations)
    table = read_images(document["images"], Path(images), problems)
    categories = read_categories(document["categories"], problems)
    if label_map is None and categories:
        label_map = LabelMap.contiguous(categories)
    if label_map is None:
        # Otherwise every annotation would be reported for its unknown category.
        problems.append("there are no categories")
        raise _in_file(annotations, problems)
    _compare_categories(categories, label_map, problems)
    rows = read_rows(
        document["annotations"],
        {identifier: position for position, identifier in enumerate(table.ids)},
        listed_ids(document["images"]),
        listed_ids(document["categories"]),
        problems,
        masks=masks,
    )
    unmapped = ~np.isin(rows.category_ids, label_map.category_ids)
    if not ignore_unknown_categories:
        _refuse_unmapped(rows.select(unmapped), categories, problems)
    rows, boxes, counts = _apply_rules(rows.select(~unmapped), table, problems)
    if problems:
        raise _in_file(annotations, problems)
    counts["unknown_category"] = int(unmapped.sum())
    if masks:
        sizes = table.sizes[rows.image_index].tolist()
        flaws = [flaw(each, height, width) for each, (height, width) in zip(rows.segmentations, sizes, strict=True)]
        keep = np.array([not each for each in flaws], dtype=np.bool_)
        rows, boxes = rows.select(keep), boxes[keep]
        counts["without_mask"] = Counter(sorted(filter(None, flaws)))
    return _assemble(str(annotations), table, rows, boxes, label_map, counts, masks=masks)


def _in_file(annotations: Path, problems: list[str]) -> DatasetError:
    return dataset_error([f"{annotations}: {problem}" for problem in problems])


def _compare_categories(categories: dict[int, str], label_map: LabelMap, problems: list[str]) -> None:
    known = dict(zip(label_map.category_ids, label_map.names, strict=True))
    ids_by_name = {name: number for number, name in known.items()}
    for number, name in categories.items():
        if number in known and known[number] != name:
            problems.append(f"category {number} is {name!r} here but {known[number]!r} in the label map")
        elif number not in known and name in ids_by_name:
            problems.append(f"category {name!r} has the id {number} here but {ids_by_name[name]} in the label map")


def _refuse_unmapped(rows: Rows, categories: dict[int, str], problems: list[str]) -> None:
    for number in np.unique(rows.category_ids).tolist():
        users = np.flatnonzero(rows.category_ids == number)
        problems.append(
            f"category {number} ({categories.get(number)!r}) is not in the label map, but {len(users):,} annotations "
            f"have it, the first being {rows.ids[users[0]]}; add it, or set ignore_unknown_categories to skip them"
        )


def _apply_rules(
    rows: Rows, table: ImageTable, problems: list[str]
) -> tuple[Rows, Float32[np.ndarray, "kept 4"], dict[str, Any]]:
    limits = table.sizes[rows.image_index][:, ::-1].astype(np.float64)
    with np.errstate(over="ignore"):
        low, high = rows.bbox[:, :2], rows.bbox[:, :2] + rows.bbox[:, 2:]
    has_extent = (rows.bbox[:, 2:] > 0).all(axis=1)
    outside = has_extent & ((low >= limits) | (high <= 0)).any(axis=1)
    for row in np.flatnonzero(outside):
        image = rows.image_index[row]
        problems.append(
            f"annotation {rows.ids[row]}: 'bbox' {rows.bbox[row].tolist()} lies outside its image "
            f"{table.file_names[image]} of {table.sizes[image, 1]} x {table.sizes[image, 0]} (width x height)"
        )
    boxes = np.concatenate([low.clip(0, limits), high.clip(0, limits)], axis=1).astype(np.float32)
    has_extent &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    keep = has_extent & ~outside
    clipped = keep & ((low < 0) | (high > limits)).any(axis=1)
    counts = {"degenerate": int((~has_extent & ~outside).sum()), "clipped": int(clipped.sum())}
    return rows.select(keep), boxes[keep], counts


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
    label_of = label_map.labels()
    labels = np.array([label_of[number] for number in rows.category_ids.tolist()], dtype=np.int64)
    order = np.argsort(rows.image_index, kind="stable")
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
        image_ids=tuple(table.ids),
        sizes=table.sizes,
        image_index=rows.image_index[order],
        labels=labels[order],
        boxes=boxes[order],
        published=rows.bbox[order],
        areas=rows.areas[order],
        is_crowd=rows.is_crowd[order],
        label_map=label_map,
        report=report,
        segmentations=Segmentations.pack(rows.segmentations[order]) if masks else None,
    )
