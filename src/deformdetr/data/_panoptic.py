"""Datasets in COCO's panoptic format: a PNG of segment ids per image, and a JSON file with their categories."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from deformdetr._coco_types import LabelMap, encode_masks
from deformdetr._files import replacing
from deformdetr.data._annotations import Annotations
from deformdetr.data._containment import ContainedNames
from deformdetr.data._documents import load_document
from deformdetr.data._errors import DatasetError
from deformdetr.data._ids import parse_integer
from deformdetr.data._image_entries import file_names
from deformdetr.data._images import load_image
from deformdetr.data._segmentations import decode
from deformdetr.structures import PanopticSegmentation

# A segment's id is R + 256 G + 256^2 B.
_DIGITS = (1, 256, 256**2)
_IDS = range(1, 256**3)


class _Segment(NamedTuple):
    id: int
    label: int
    is_crowd: int


class PanopticFiles:
    """Segments of a dataset in COCO's panoptic format, read image by image.

    Examples:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from deformdetr.data import LabelMap, PanopticFiles, write_panoptic
        >>> categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
        >>> segmentation = {"segment_map": torch.tensor([[2, 1, 0]]), "labels": torch.tensor([0, 1])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     label_map = LabelMap.contiguous({1: "cat", 2: "sky"})
        ...     row = {"segments_info": write_panoptic(segmentation, f"{folder}/a.png", label_map, stuff=[1])}
        ...     row |= {"image_id": 1, "file_name": "a.png"}
        ...     text = json.dumps({"images": [{"id": 1}], "annotations": [row], "categories": categories})
        ...     _ = Path(folder, "a.json").write_text(text)
        ...     files = PanopticFiles(f"{folder}/a.json", folder)
        ...     files[0]["segment_map"]
        tensor([[2, 1, 0]])
        >>> files.stuff
        frozenset({1})

    Args:
        annotations: The JSON file.
        folder: Folder of the PNG files.
        label_map: The category of each label. None numbers the categories in ascending order of their ids.
        allow_outside: Whether to read PNG files outside the folder, as `data.decode.allow_outside` does for images.

    Attributes:
        label_map: The same.
        stuff: Labels of categories that are not things.
        image_ids: Id of each image.

    Raises:
        DatasetError: If the file is missing, not in this format, or has categories that the label map lacks.
    """

    def __init__(
        self,
        annotations: str | Path,
        folder: str | Path,
        *,
        label_map: LabelMap | None = None,
        allow_outside: bool = False,
    ) -> None:
        self._source, self._folder = Path(annotations), Path(folder)
        self._names = None if allow_outside else ContainedNames(folder)
        self._document = load_document(self._source)
        try:
            things = {int(each["id"]): bool(each["isthing"]) for each in self._document["categories"]}
            names = {int(each["id"]): str(each["name"]) for each in self._document["categories"]}
            self.image_ids = tuple(each["image_id"] for each in self._document["annotations"])
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self._source}: not in COCO's panoptic format: categories need id, name and isthing, and annotations "
                f"an image_id: {error!r}"
            ) from error
        stuff = {category for category, is_thing in things.items() if not is_thing}
        self.label_map = LabelMap.contiguous(names, stuff=stuff) if label_map is None else label_map
        self._labels = self.label_map.labels()
        if unknown := sorted(things.keys() - self._labels.keys()):
            raise DatasetError(f"{self._source}: the label map lacks the categories {unknown}")
        self.stuff = frozenset(self._labels[category] for category in stuff)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> PanopticSegmentation:
        """Return the segments of an image, in the order of the file.

        Raises:
            DatasetError: If the PNG file cannot be read or its name leads out of the folder, or a segment is malformed,
                repeated, or missing in the file.
        """
        entry = self._document["annotations"][index]
        name = self._file_name(entry)
        ids = decode_ids(load_image(self._folder / name))
        listed = entry.get("segments_info")
        if not isinstance(listed, list):
            raise DatasetError(f"{self._source}: 'segments_info' of {name} is {listed!r:.60}, not a list")
        segments = [self._segment(each, name) for each in listed]
        numbers, found = [each.id for each in segments], np.unique(ids).tolist()
        if len({*numbers, 0}) <= len(numbers) or not set(found) <= {*numbers, 0}:
            raise DatasetError(
                f"{self._source}: the ids of segments of {name} must be unique and all of its pixels', got {numbers} "
                f"for {found}"
            )
        # From ids, which may be large, to numbers that count from 1.
        order = torch.tensor([0, *numbers])
        ranks, position = order.sort()
        segment_map = position[torch.searchsorted(ranks, ids)]
        return {
            "segment_map": segment_map,
            "labels": torch.tensor([each.label for each in segments], dtype=torch.int64),
            "iscrowd": torch.tensor([each.is_crowd for each in segments], dtype=torch.int64),
        }

    def _file_name(self, entry: dict[str, Any]) -> str:
        names = file_names(entry)
        if not names:
            raise DatasetError(
                f"{self._source}: image {entry['image_id']!r:.60}: 'file_name' is {entry.get('file_name')!r:.60}, not "
                "the name of a file"
            )
        if self._names is not None and not self._names.has(names[0]):
            raise DatasetError(
                f"{self._source}: {names[0]!r:.200} leads out of {self._folder}; allow_outside=True reads such files, "
                "from sources that you trust"
            )
        return names[0]

    def _segment(self, segment: Any, name: str) -> _Segment:
        given = segment if isinstance(segment, dict) else {}
        number, category = (parse_integer(given.get(key)) for key in ("id", "category_id"))
        crowd = parse_integer(given.get("iscrowd", 0))
        label = None if category is None else self._labels.get(category)
        if number is None or number not in _IDS or label is None or crowd not in (0, 1):
            raise DatasetError(
                f"{self._source}: malformed segment of {name}, which needs an id from 1 to {_IDS[-1]}, a known "
                f"category_id, and 0 or 1 as iscrowd if it has one: {segment!r:.200}"
            )
        return _Segment(number, label, crowd)

    def to_coco(self) -> dict[str, Any]:
        """Return the dataset in COCO format, with every segment as an object with a mask, to train on.

        Segments without pixels are left out.

        Raises:
            DatasetError: As for single images.
        """
        rows = [row for index in range(len(self)) for row in self._rows(index)]
        for number, row in enumerate(rows, start=1):
            row["id"] = number
        return {**self._document, "annotations": rows}

    def _rows(self, index: int) -> list[dict[str, Any]]:
        segmentation = self[index]
        rows = []
        crowds = segmentation.get("iscrowd", torch.zeros_like(segmentation["labels"]))
        for number, (label, crowd) in enumerate(zip(segmentation["labels"].tolist(), crowds.tolist(), strict=True), 1):
            mask = segmentation["segment_map"] == number
            if not mask.any():
                continue
            row: dict[str, Any] = {"image_id": self.image_ids[index], "iscrowd": crowd}
            row |= {"category_id": self.label_map.category_ids[label], "area": int(mask.sum())}
            rows.append({**row, "bbox": _box(mask), "segmentation": encode_masks(mask[None, None])[0]})
        return rows


def write_panoptic(
    segmentation: PanopticSegmentation, path: str | Path, label_map: LabelMap, *, stuff: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Write the PNG file of an image, and return its `segments_info` for the JSON file.

    Args:
        segmentation: Segments of the image. Those without pixels are left out.
        path: File with suffix `.png`.
        label_map: The category of each label.
        stuff: Labels that are not things.

    Raises:
        OSError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import LabelMap, write_panoptic
        >>> segmentation = {"segment_map": torch.tensor([[1, 1, 0]]), "labels": torch.tensor([0])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_panoptic(segmentation, f"{folder}/a.png", LabelMap.contiguous({7: "cat"}))
        [{'id': 1, 'category_id': 7, 'isthing': 1, 'iscrowd': 0, 'area': 2, 'bbox': [0, 0, 2, 1]}]
    """
    segment_map, labels = segmentation["segment_map"].cpu(), segmentation["labels"].tolist()
    crowds = segmentation["iscrowd"].tolist() if "iscrowd" in segmentation else [0] * len(labels)
    with replacing(Path(path)) as unfinished:
        Image.fromarray(encode_ids(segment_map).permute(1, 2, 0).numpy()).save(unfinished, format="png")
    rows: list[dict[str, Any]] = []
    for number, (label, crowd) in enumerate(zip(labels, crowds, strict=True), start=1):
        mask = segment_map == number
        if mask.any():
            kind = {"isthing": int(label not in stuff), "iscrowd": crowd}
            category = {"id": number, "category_id": label_map.category_ids[label]}
            rows.append({**category, **kind, "area": int(mask.sum()), "bbox": _box(mask)})
    return rows


def panoptic_truth(annotations: Annotations, index: int) -> PanopticSegmentation:
    """Return the objects of an image as segments; where masks overlap, the last one counts.

    Args:
        annotations: Annotations with masks.
        index: Which image.

    Raises:
        ValueError: If the annotations have no masks.

    Examples:
        >>> from deformdetr.data import ShapesConfig, draw_shapes, panoptic_truth
        >>> annotations, _ = draw_shapes(ShapesConfig(num_val=1, stuff=True), "val", masks=True)
        >>> panoptic_truth(annotations, 0)["segment_map"].shape
        torch.Size([128, 128])
    """
    if annotations.segmentations is None:
        raise ValueError("annotations were read without masks")
    height, width = annotations.sizes[index].tolist()
    segment_map = torch.zeros(height, width, dtype=torch.int64)
    rows = (annotations.image_index == index).nonzero()[0].tolist()
    for number, row in enumerate(rows, start=1):
        mask = decode(annotations.segmentations.of_box(row), height, width)
        segment_map[torch.from_numpy(mask) > 0] = number
    return {
        "segment_map": segment_map,
        "labels": torch.from_numpy(annotations.labels[rows]),
        "iscrowd": torch.from_numpy(annotations.is_crowd[rows]).long(),
    }


def encode_ids(ids: Int64[Tensor, "height width"]) -> UInt8[Tensor, "3 height width"]:
    """Return ids of segments, below 2^24, as the colors of COCO's panoptic format.

    Examples:
        >>> encode_ids(torch.tensor([[258]])).flatten()
        tensor([2, 1, 0], dtype=torch.uint8)
    """
    return torch.stack([ids // digit % 256 for digit in _DIGITS]).to(torch.uint8)


def decode_ids(colors: UInt8[Tensor, "3 height width"]) -> Int64[Tensor, "height width"]:
    """Return the ids of segments from the colors of COCO's panoptic format.

    Examples:
        >>> decode_ids(torch.tensor([2, 1, 0], dtype=torch.uint8).view(3, 1, 1))
        tensor([[258]])
    """
    return (colors.long() * torch.tensor(_DIGITS)[:, None, None]).sum(0)


def _box(mask: Tensor) -> list[int]:
    """Return (x, y, width, height) of a mask, in pixels."""
    columns, rows = (mask.any(axis).nonzero()[:, 0].tolist() for axis in (0, 1))
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
