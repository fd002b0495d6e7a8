"""The mask head of either model, from its description."""

from deformdetr.nn import AttentionMaps, ConvBackbone, FeatureBackbone, MaskHead, ResNetBackbone

MASKS = "Predict a mask for every query too, by DETR's head of attention maps and convolutions (DETR, section 4.4)."
MASK_LOSS_COEF = "Weight of the masks' focal loss, where there are masks."
DICE_LOSS_COEF = "Weight of the masks' dice loss, where there are masks."
# Stages of a backbone: the last one, and those before it that refine masks.
MASK_STAGES = (1, 2, 3, 4)


def build_mask_head(d_model: int, n_heads: int, backbone: ResNetBackbone | ConvBackbone | FeatureBackbone) -> MaskHead:
    """Build the head for what a backbone gives before its last feature, at most three of it.

    Raises:
        ValueError: If there is nothing before it, or `d_model` is too small.
    """
    laterals = backbone.channels[-len(MASK_STAGES) : -1]
    if not laterals:
        raise ValueError(
            "masks=True needs a backbone that gives finer features before its last, such as strides (4, 8, 16, 32); "
            f"this one has strides {tuple(backbone.strides)}"
        )
    return MaskHead(AttentionMaps(d_model, n_heads), laterals, d_model=d_model)
