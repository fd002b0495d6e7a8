"""This library's own state dicts, which are read and written as they are."""

from collections.abc import Mapping

from torch import Tensor

from deformdetr.integrations._lineage import Architecture, Lineage

_PYRAMID = "neck.levels.0.conv.weight"
_ANCHORS = "decoder.position.encoding.layers.0.weight"

# One each for the architectures that others name differently, the more special first.
LINEAGES = (
    Lineage(format="deformdetr", architecture="dino", marks=(_PYRAMID, _ANCHORS, "decoder.norm.weight")),
    Lineage(format="deformdetr", architecture="dn_deformable_detr", marks=(_PYRAMID, _ANCHORS)),
    Lineage(format="deformdetr", architecture="deformable_detr", marks=(_PYRAMID,)),
    Lineage(format="deformdetr", architecture="detr", marks=("query_position.weight",)),
)


def architecture_of(state: Mapping[str, Tensor]) -> Architecture:
    """Return which architecture a state dict in this library's names is of; an unknown one is a Deformable DETR."""
    return next((each.architecture for each in LINEAGES if each.recognizes(state)), "deformable_detr")
