"""Selecting some of the classes that a model was trained on."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from deformdetr.integrations._checkpoints._variant import has_anchors

COCO_CATEGORY_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
"""COCO's 80 categories in the order of their ids, which run to 90 with gaps."""


def select_classes(state_dict: Mapping[str, Tensor], classes: Sequence[int]) -> dict[str, Tensor]:
    """Return a state dict with some classes of the class heads and of the label embedding, in the given order.

    `COCO_CATEGORY_IDS` turns heads of 91 classes, whose labels are category ids, into heads of 80, whose labels are
    indices into the list of categories, as in mmdetection and detrex.

    The class head of a two-stage Deformable DETR's encoder keeps its first channels: channel 0 is the objectness, and
    the others are not used. That of DINO has classes, as the decoder's heads do. The last row of DETR ("no object") and
    of the label embedding (padding) is kept.

    Args:
        state_dict: State dict in this library's names.
        classes: Labels to keep; label i of the result is label `classes[i]` of the given heads.

    Raises:
        ValueError: If there are no class heads in this library's names, a class is out of range or `classes` is empty
            or has duplicates.

    Examples:
        >>> import torch
        >>> select_classes({"class_heads.0.bias": torch.tensor([10.0, 11.0, 12.0])}, [2, 0])
        {'class_heads.0.bias': tensor([12., 10.])}
    """
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must hold at least one class and no duplicates, got {list(classes)}")
    heads = [name for name in state_dict if _HEAD.match(name)]
    if not heads:
        raise ValueError("the state dict has no class heads in this library's names")
    taken = {name: state_dict[name][_rows(name, state_dict, classes)] for name in heads}
    return {**state_dict, **taken}


def dropped_rows(state_dict: Mapping[str, Tensor], classes: Sequence[int]) -> dict[str, Tensor]:
    """Return the rows of every class head that `select_classes` drops."""
    dropped = {}
    for name, tensor in state_dict.items():
        if _HEAD.match(name):
            kept = set(_rows(name, state_dict, classes))
            dropped[name] = tensor[[row for row in range(len(tensor)) if row not in kept]]
    return dropped


_HEAD = re.compile(
    r"((class_heads\.\d+|queries\.class_head|class_head)\.(weight|bias)|denoising\.label_embedding\.weight)$"
)


def _rows(name: str, state_dict: Mapping[str, Tensor], classes: Sequence[int]) -> list[int]:
    """Return the indices of the rows to keep of a class head or of the label embedding."""
    if not state_dict[name].ndim:
        raise ValueError(f"{name} is a single number, not one row per class")
    # The last row is "no object" or padding.
    has_last = name.startswith(("class_head.", "denoising."))
    count = len(state_dict[name]) - has_last
    if min(classes) < 0 or max(classes) >= count:
        raise ValueError(f"{name} has classes 0 to {count - 1}, but {min(classes)} to {max(classes)} are asked for")
    if name.startswith("queries.") and not has_anchors(state_dict):
        return list(range(len(classes)))
    return [*classes, count] if has_last else list(classes)
