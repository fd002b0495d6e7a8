"""Taking some of the classes that a model was trained on."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from deformdetr.integrations._structure import has_anchors

COCO_CATEGORY_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
"""COCO's 80 categories in the order of their ids, which run to 90 with gaps."""


def select_classes(state_dict: Mapping[str, Tensor], classes: Sequence[int]) -> dict[str, Tensor]:
    """Return a state dict with some classes of the class heads and of the label embedding, in the order given.

    With `COCO_CATEGORY_IDS`, heads of 91 classes, whose labels are category ids, become heads of 80, whose labels are
    positions in the list of categories, as mmdetection and detrex count them.

    The head with which the encoder of a two-stage Deformable DETR proposes queries is cut to as many channels, the
    first ones: its channel 0 tells objects from background and must stay where it is, and the others are not used. That
    of DINO tells classes, as the decoder's do. DETR's "no object" is kept, and stays the last; so does the row of
    padding of the embedding of labels that are denoised.

    Args:
        state_dict: In this library's names.
        classes: Labels to keep; label i of the result is `classes[i]` of the given heads.

    Returns:
        The state dict with smaller heads.

    Raises:
        ValueError: If it has no class heads in this library's names, or they have not all of these classes, or one is
            named twice.
    """
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be different ones, at least one of them; got {list(classes)}")
    heads = [name for name in state_dict if _HEAD.match(name)]
    if not heads:
        raise ValueError("the state dict has no class heads in this library's names")
    taken = {name: state_dict[name][_rows(name, state_dict, classes)] for name in heads}
    return {**state_dict, **taken}


def left_out_rows(state_dict: Mapping[str, Tensor], classes: Sequence[int]) -> dict[str, Tensor]:
    """Return what `select_classes` leaves out of every class head."""
    left_out = {}
    for name, tensor in state_dict.items():
        if _HEAD.match(name):
            kept = set(_rows(name, state_dict, classes))
            left_out[name] = tensor[[row for row in range(len(tensor)) if row not in kept]]
    return left_out


_HEAD = re.compile(
    r"((class_heads\.\d+|queries\.class_head|class_head)\.(weight|bias)|denoising\.label_embedding\.weight)$"
)


def _rows(name: str, state_dict: Mapping[str, Tensor], classes: Sequence[int]) -> list[int]:
    """Choose the rows of a class head, or of the embedding of labels."""
    if not state_dict[name].ndim:
        raise ValueError(f"{name} is a single number, not a row for each class")
    # The last row is that of no object, or of padding.
    has_last = name.startswith(("class_head.", "denoising."))
    count = len(state_dict[name]) - has_last
    if min(classes) < 0 or max(classes) >= count:
        raise ValueError(f"{name} has classes 0 to {count - 1}, but {min(classes)} to {max(classes)} are asked for")
    if name.startswith("queries.") and not has_anchors(state_dict):
        return list(range(len(classes)))
    return [*classes, count] if has_last else list(classes)
