"""COCO's categories and mask encoding, shared by datasets and evaluation."""

from collections.abc import Collection, Mapping
from typing import TypedDict

import torch
from jaxtyping import Bool
from pycocotools import mask as coco_mask
from pydantic import Field, model_validator
from torch import Tensor

from deformdetr.config import Config

ImageId = int | str
"""Id of an image. Those of one dataset are either all integers or all text."""


class LabelMap(Config):
    """Map each label of a model to a category: label `i` is the category `category_ids[i]`, called `names[i]`.

    Labels count from 0 without gaps. Category ids are the integers of the annotation file, in any order. `stuff` has
    the labels of regions without instances, such as sky, of datasets for panoptic segmentation.

    Examples:
        >>> from deformdetr.data import LabelMap
        >>> label_map = LabelMap.contiguous({18: "dog", 17: "cat"})
        >>> label_map.names
        ('cat', 'dog')
        >>> label_map.labels()
        {17: 0, 18: 1}
    """

    names: tuple[str, ...] = Field(min_length=1)
    category_ids: tuple[int, ...] = Field(min_length=1)
    stuff: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check_pairs(self) -> "LabelMap":
        if len(self.names) != len(self.category_ids):
            raise ValueError(
                f"names and category_ids must have the same length, got {len(self.names)} names for "
                f"{len(self.category_ids)} category ids"
            )
        repeated = sorted({number for number in self.category_ids if self.category_ids.count(number) > 1})
        if repeated:
            raise ValueError(f"category ids must be unique, but these occur more than once: {repeated}")
        if unknown := sorted(set(self.stuff) - set(range(len(self.names)))):
            raise ValueError(f"stuff must be labels from 0 to {len(self.names) - 1}, got {unknown}")
        return self

    @classmethod
    def contiguous(cls, categories: Mapping[int, str], *, stuff: Collection[int] = ()) -> "LabelMap":
        """Return a label map of categories (id to name), in ascending order of their ids.

        `stuff` has the ids of categories without instances.
        """
        ids = tuple(sorted(categories))
        labels = tuple(label for label, number in enumerate(ids) if number in stuff)
        return cls(names=tuple(categories[number] for number in ids), category_ids=ids, stuff=labels)

    @classmethod
    def sparse(cls, categories: Mapping[int, str], *, stuff: Collection[int] = ()) -> "LabelMap":
        """Return a label map whose labels equal the category ids, as in the published COCO checkpoints.

        Labels without a category are called "N/A". `stuff` has the ids of categories without instances.

        Raises:
            ValueError: If an id is negative.
        """
        if categories and min(categories) < 0:
            raise ValueError(f"category id {min(categories)} cannot be a label: labels are not negative")
        ids = tuple(range(max(categories, default=-1) + 1))
        names = tuple(categories.get(number, "N/A") for number in ids)
        return cls(names=names, category_ids=ids, stuff=tuple(number for number in ids if number in stuff))

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.names)

    def labels(self) -> dict[int, int]:
        """Return the label of each category id."""
        return {number: label for label, number in enumerate(self.category_ids)}


class RunLengths(TypedDict):
    """A mask in COCO's compressed run-length encoding (RLE), with its counts as a string that JSON can hold."""

    size: list[int]
    """(height, width) in pixels."""
    counts: str


def encode_masks(masks: Bool[Tensor, "masks 1 height width"]) -> list[RunLengths]:
    """Encode masks, True inside the object, in COCO's compressed run-length encoding.

    Examples:
        >>> import torch
        >>> from deformdetr.evaluation import encode_masks
        >>> encode_masks(torch.ones(1, 1, 2, 3, dtype=torch.bool))
        [{'size': [2, 3], 'counts': '06'}]
    """
    height, width = masks.shape[-2:]
    # pycocotools reads columns. Transposing on the masks' own device is faster.
    columns = masks[:, 0].transpose(1, 2).contiguous().to(torch.uint8).cpu().numpy()
    encoded = coco_mask.encode(columns.transpose(2, 1, 0))
    return [{"size": [height, width], "counts": each["counts"].decode("ascii")} for each in encoded]
