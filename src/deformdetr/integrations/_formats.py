"""Whose names a state dict has."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from torch import Tensor

CheckpointFormat: TypeAlias = Literal["deformdetr", "original", "hugging_face"]


def recognise(state_dict: Mapping[str, Tensor]) -> CheckpointFormat:
    """Tell whose names a state dict has.

    Raises:
        ValueError: If it has none of the known ones; the message shows a few names.
    """
    marks: dict[CheckpointFormat, tuple[str, ...]] = {
        "deformdetr": ("neck.levels.0.conv.weight", "query_position.weight"),
        "original": ("transformer.level_embed", "transformer.decoder.norm.weight"),
        "hugging_face": ("model.level_embed",),
    }
    for name, either in marks.items():
        if any(mark in state_dict for mark in either):
            return name
    some = ", ".join(list(state_dict)[:5]) or "none at all"
    raise ValueError(f"not a checkpoint of Deformable DETR or DETR in a known format; it has the entries {some}")
