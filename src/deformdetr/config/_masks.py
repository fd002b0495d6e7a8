"""Masks in configs: their fields, and the mask head."""

from typing import Annotated, TypeAlias

from pydantic import Field, NonNegativeFloat

from deformdetr.nn import AttentionMaps, ConvBackbone, DATBackbone, FeatureBackbone, MaskHead, ResNetBackbone

Masks: TypeAlias = Annotated[
    bool,
    Field(
        description="Predict a mask for every query too, by DETR's head of attention maps and convolutions (DETR, "
        "section 4.4)."
    ),
]
MaskLossCoef: TypeAlias = Annotated[
    NonNegativeFloat, Field(description="Weight of the focal loss of masks; unused without masks.")
]
DiceLossCoef: TypeAlias = Annotated[
    NonNegativeFloat, Field(description="Weight of the dice loss of masks; unused without masks.")
]
# Stages of a backbone: the last one, and those before it that refine masks.
MASK_STAGES = (1, 2, 3, 4)


def build_mask_head(
    d_model: int, n_heads: int, backbone: ResNetBackbone | ConvBackbone | DATBackbone | FeatureBackbone
) -> MaskHead:
    """Build the mask head for a backbone, of which it takes up to three features before the last.

    Raises:
        ValueError: If the backbone returns a single feature, or `d_model` is too small.
    """
    laterals = backbone.channels[-len(MASK_STAGES) : -1]
    if not laterals:
        raise ValueError(
            "masks=True needs a backbone that gives finer features before its last, such as strides (4, 8, 16, 32); "
            f"this one has strides {tuple(backbone.strides)}"
        )
    return MaskHead(AttentionMaps(d_model, n_heads), laterals, d_model=d_model)
