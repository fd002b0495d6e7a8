"""Splitting one annotation file into a training and an evaluation set."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deformdetr.data._documents import load_document
from deformdetr.data._entries import UNKNOWN_IMAGE, annotation_name
from deformdetr.data._errors import Problems
from deformdetr.data._ids import parse_id, spellings


class SplitDocuments(NamedTuple):
    """Both parts of an annotation file, in COCO format."""

    train: dict[str, Any]
    val: dict[str, Any]


def split_coco(annotations: str | Path, *, val_share: float = 0.2, seed: int = 0) -> SplitDocuments:
    """Split the images of a COCO annotation file, so that each category has about the same share in both parts.

    Categories are dealt out from the rarest to the most frequent: of the images that have one, `val_share` become
    evaluation images. A category in a single image is trained on. Equal arguments give equal parts. Everything else in
    the file is in both parts.

    Args:
        annotations: The JSON file.
        val_share: Share of the images for evaluation, between 0 and 1.
        seed: Number that the choice depends on.

    Raises:
        ValueError: If `val_share` is not between 0 and 1, or one of the parts would have no image.
        DatasetError: If the file is not in COCO format, or an annotation has no image.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import ShapesConfig, split_coco, write_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = write_shapes(ShapesConfig(num_train=10, num_val=1), folder)
        ...     train, val = split_coco(config.train_annotations, val_share=0.3)
        >>> len(train["images"]), len(val["images"])
        (7, 3)
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must be between 0 and 1, got {val_share}")
    document = load_document(Path(annotations))
    ids = [parse_id(entry.get("id")) if isinstance(entry, dict) else None for entry in document["images"]]
    positions = {each: number for number, found in enumerate(ids) if found is not None for each in spellings(found)}
    image_of = [_position(entry, positions) for entry in document["annotations"]]
    problems = Problems(annotations)
    images_of: dict[str, set[int]] = {}
    for number, (entry, image) in enumerate(zip(document["annotations"], image_of, strict=True)):
        if image is None:
            problems.report(_without_image(entry, number), UNKNOWN_IMAGE)
        else:
            images_of.setdefault(str(entry.get("category_id")), set()).add(image)
    problems.refuse()
    in_val = _choose(len(document["images"]), sorted(images_of.values(), key=len), val_share, seed)
    if not 0 < sum(in_val) < len(in_val):
        raise ValueError(f"{annotations}: its {len(in_val)} images are too few for a share of {val_share}")
    parts = []
    for part in (False, True):
        images = [entry for entry, chosen in zip(document["images"], in_val, strict=True) if chosen is part]
        rows = [
            entry
            for entry, image in zip(document["annotations"], image_of, strict=True)
            if image is not None and in_val[image] is part
        ]
        parts.append({**document, "images": images, "annotations": rows})
    return SplitDocuments(*parts)


def _without_image(entry: Any, number: int) -> str:
    if not isinstance(entry, dict):
        return f"annotation number {number + 1} is {entry!r:.60}, not an object"
    name = annotation_name(entry, number)
    if "image_id" not in entry:
        return f"{name}: it has no 'image_id'"
    return f"{name}: image {entry['image_id']!r:.60} is not in the list of images"


def _position(entry: Any, positions: dict[Any, int]) -> int | None:
    identifier = parse_id(entry.get("image_id")) if isinstance(entry, dict) else None
    return None if identifier is None else positions.get(identifier)


def _choose(count: int, groups: list[set[int]], share: float, seed: int) -> list[bool]:
    """Return whether each image is for evaluation. `groups` are the images of each category, the rarest first."""
    rank = np.random.default_rng(seed).permutation(count).tolist()
    chosen: dict[int, bool] = {}
    for group in [*groups, set(range(count))]:
        missing = round(share * len(group)) - sum(chosen.get(image, False) for image in group)
        for image in sorted(group - chosen.keys(), key=rank.__getitem__):
            chosen[image] = missing > 0
            missing -= 1
    return [chosen[image] for image in range(count)]
