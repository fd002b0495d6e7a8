"""This library's own formats, which are read and written without changes."""

from collections.abc import Mapping

from torch import Tensor

from deformdetr.integrations._checkpoints._format import Architecture, Format

_PYRAMID = "neck.levels.0.conv.weight"
_ANCHORS = "decoder.position.encoding.layers.0.weight"

# One for each architecture, because others name those differently; special ones first.
FORMATS = (
    Format(name="deformdetr", architecture="dino", marks=(_PYRAMID, _ANCHORS, "decoder.norm.weight")),
    Format(name="deformdetr", architecture="dn_deformable_detr", marks=(_PYRAMID, _ANCHORS)),
    Format(name="deformdetr", architecture="deformable_detr", marks=(_PYRAMID,)),
    Format(name="deformdetr", architecture="detr", marks=("query_position.weight",)),
)


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of a state dict in this library's names; Deformable DETR if no other is recognized."""
    return next((each.architecture for each in FORMATS if each.recognizes(state)), "deformable_detr")
