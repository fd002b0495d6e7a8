"""Judging a dataset as a whole: what reads without errors and is still likely to be wrong."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from deformdetr.data._annotations import Annotations
from deformdetr.data._dataset import Datasets, DetectionDataset
from deformdetr.data._headers import Headers, named_splits

# Share of boxes that must fit an explanation, and pixels that rounding may add to a side.
_NEARLY_ALL = 0.95
_ROUNDING = 1.0
_FAR_PIXELS = 2.0
_MANY = 0.1
_NAMED = 5


class ObjectLimits(NamedTuple):
    """How many objects per image a model and its evaluation can find. `None` sets no limit."""

    num_queries: int | None = None
    max_detections: int | None = None
    """Detections per image that post-processing keeps."""
    max_per_category: int | None = 100
    """Detections per image and category that are evaluated."""


NO_LIMITS = ObjectLimits()


def find_warnings(
    datasets: Datasets | DetectionDataset, *, limits: ObjectLimits = NO_LIMITS, headers: Headers | None = None
) -> list[str]:
    """Return warnings about both splits, or about a single dataset, one per kind, with counts.

    Args:
        datasets: Both splits, or one dataset.
        limits: Limits of the model and of the evaluation.
        headers: Headers of the image files, for warnings about orientations and pixel formats.

    Examples:
        >>> from deformdetr.data import ObjectLimits, ShapesConfig, build_datasets, find_warnings
        >>> datasets = build_datasets(ShapesConfig(num_train=4, num_val=2, min_objects=5))
        >>> for warning in find_warnings(datasets, limits=ObjectLimits(num_queries=3)):
        ...     print(warning)
        train: 3 images have more objects than the model has queries (3): up to 5
        val: 2 images have more objects than the model has queries (3): up to 5
    """
    warnings = []
    for name, dataset in named_splits(datasets).items():
        found = [*_of_boxes(dataset.annotations), *_of_counts(dataset.annotations, limits)]
        if name != "val":
            found += _of_entries(dataset.annotations)
        found += [] if headers is None else headers.warnings(name, dataset)
        warnings += [f"{name}: {each}" if name else each for each in found]
    return warnings if isinstance(datasets, DetectionDataset) else [*warnings, *_of_splits(datasets)]


def _of_boxes(annotations: Annotations) -> Iterator[str]:
    keep = ~annotations.is_crowd
    boxes, areas = annotations.published[keep], annotations.areas[keep]
    images = annotations.image_index[keep]
    if not len(boxes):
        return

    def noted(chosen: Bool[np.ndarray, " boxes"]) -> str:
        first = annotations.file_names[images[np.flatnonzero(chosen)[0]]]
        return f"{chosen.sum():,} of {len(boxes):,} boxes, the first in {first},"

    limits = annotations.sizes[images][:, ::-1]
    normalized = (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1)
    if normalized.any():
        yield f"{noted(normalized)} have only numbers from 0 to 1: fractions of the image instead of pixels?"
    beyond = np.asarray((boxes[:, :2] + boxes[:, 2:] > limits + _FAR_PIXELS).any(axis=1))
    as_corners = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= limits + _ROUNDING).all(axis=1)
    if beyond.any() and as_corners.mean() >= _NEARLY_ALL:
        yield (
            f"{noted(beyond)} reach beyond their images, and {as_corners.mean():.0%} of all boxes would not if their "
            "last two numbers were the right and bottom edge: corners written as width and height?"
        )
    elif beyond.mean() > _MANY:
        yield (
            f"{noted(beyond)} reach more than {_FAR_PIXELS:.0f} pixels beyond their images: images resized after they "
            "were annotated, or centers instead of corners?"
        )
    largest = (boxes[:, 2:] + _ROUNDING).prod(axis=1)
    contradictory = (areas <= 0) | (areas > 1.01 * largest)
    if contradictory.any():
        yield (
            f"{noted(contradictory)} have an area of 0 or one larger than the box; areas decide which objects count "
            "as small, medium and large"
        )


def _of_counts(annotations: Annotations, limits: ObjectLimits) -> Iterator[str]:
    keep = ~annotations.is_crowd
    images, labels = annotations.image_index[keep], annotations.labels[keep]
    per_image = np.bincount(images, minlength=1)
    _, per_category = np.unique(images * annotations.label_map.num_classes + labels, return_counts=True)
    checks: list[tuple[Int64[np.ndarray, " counts"], int | None, str, str]] = [
        (per_image, limits.num_queries, "images have more objects", "than the model has queries"),
        (per_image, limits.max_detections, "images have more objects", "than detections are kept"),
        (
            per_category,
            limits.max_per_category,
            "times an image has more objects of one category",
            "than detections are evaluated",
        ),
    ]
    for counts, limit, what, than in checks:
        if limit is not None and (counts > limit).any():
            yield f"{(counts > limit).sum():,} {what} {than} ({limit}): up to {counts.max():,}"


def _of_entries(annotations: Annotations) -> Iterator[str]:
    names, ids = annotations.label_map.names, annotations.label_map.category_ids
    for name, count in Counter(names).items():
        if count > 1:
            shared = [str(number) for number, other in zip(ids, names, strict=True) if other == name]
            yield f"the name {name!r} belongs to categories {', '.join(shared)}, which are trained as different ones"
    boxes = np.bincount(annotations.labels[~annotations.is_crowd], minlength=len(names))
    empty = [names[label] for label in np.flatnonzero(boxes == 0)]
    if empty:
        listed = ", ".join(empty[:_NAMED]) + (", ..." if len(empty) > _NAMED else "")
        yield f"{len(empty):,} of {len(names):,} categories have no boxes: {listed}"
    repeated = len(annotations.file_names) - len(set(annotations.file_names))
    if repeated:
        yield f"{repeated:,} images have the file of another image"


def _of_splits(datasets: Datasets) -> Iterator[str]:
    train, val = datasets
    if val.annotations.is_crowd.all():
        yield "val: no box to evaluate, so that there will be no AP, no best checkpoint and no early stopping"
    train_files, val_files = (set() if each.files is None else each.files.resolved() for each in datasets)
    shared = train_files & val_files
    if shared:
        yield f"{len(shared):,} of {len(val):,} evaluation images are training images too, the first: {min(shared)}"
    elif (
        len(train.annotations.published)
        and train.annotations.file_names == val.annotations.file_names
        and np.array_equal(train.annotations.published, val.annotations.published)
        and np.array_equal(train.annotations.labels, val.annotations.labels)
    ):
        yield "the evaluation images have the names and boxes of the training images: a copy?"
