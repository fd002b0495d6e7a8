"""The names of the original implementations of Deformable DETR and of DETR."""

from collections.abc import Mapping

from torch import Tensor

from deformdetr.integrations._lineage import Lineage
from deformdetr.integrations._names import Rename, within

# Learned position encodings are the backbone's second part there.
_BACKBONE = (Rename("backbone", "backbone.0.body"), Rename("position", "backbone.1"))
_ENCODER = within(
    "encoder.layers.#",
    "transformer.encoder.layers.#",
    {
        "self_attn": "self_attn",
        "self_attn_norm": "norm1",
        "feed_forward.linear1": "linear1",
        "feed_forward.linear2": "linear2",
        "feed_forward_norm": "norm2",
    },
)
_FEED_FORWARD = {
    "feed_forward.linear1": "linear1",
    "feed_forward.linear2": "linear2",
    "feed_forward_norm": "norm3",
}
# Five convolutions with their norms, of which the last three follow a lateral one each.
MASK_HEAD = (
    Rename("mask_head.attention_maps.query_proj", "bbox_attention.q_linear"),
    Rename("mask_head.attention_maps.key_proj", "bbox_attention.k_linear"),
    *(Rename(f"mask_head.convolutions.convs.{index}", f"mask_head.lay{index + 1}") for index in range(5)),
    *(Rename(f"mask_head.convolutions.norms.{index}", f"mask_head.gn{index + 1}") for index in range(5)),
    *(Rename(f"mask_head.laterals.{index}", f"mask_head.adapter{index + 1}") for index in range(3)),
    Rename("mask_head.convolutions.out", "mask_head.out_lay"),
)

DEFORMABLE_DETR = Lineage(
    format="original",
    architecture="deformable_detr",
    marks=("transformer.level_embed",),
    rules=(
        *_BACKBONE,
        Rename("neck.levels.#.conv", "input_proj.#.0"),
        Rename("neck.levels.#.norm", "input_proj.#.1"),
        Rename("level_embed", "transformer.level_embed"),
        *_ENCODER,
        *within(
            "decoder.layers.#",
            "transformer.decoder.layers.#",
            {
                "self_attn": "self_attn",
                "self_attn_norm": "norm2",
                "cross_attn": "cross_attn",
                "cross_attn_norm": "norm1",
                **_FEED_FORWARD,
            },
        ),
        Rename("decoder.box_heads.#", "bbox_embed.#"),
        Rename("class_heads.#", "class_embed.#"),
        Rename("queries.embedding", "query_embed"),
        *within(
            "queries",
            "transformer",
            {
                "reference_points": "reference_points",
                "memory_projection": "enc_output",
                "memory_norm": "enc_output_norm",
                "position_projection": "pos_trans",
                "position_norm": "pos_trans_norm",
            },
        ),
        *MASK_HEAD,
    ),
    detector_prefix="detr.",
    repeats_heads=True,
    aliases="transformer.decoder.",
    container="model",
)

DETR = Lineage(
    format="original",
    architecture="detr",
    marks=("transformer.decoder.norm.weight",),
    rules=(
        *_BACKBONE,
        Rename("projection", "input_proj"),
        Rename("query_position", "query_embed"),
        *_ENCODER,
        *within(
            "decoder.layers.#",
            "transformer.decoder.layers.#",
            {
                "self_attn": "self_attn",
                "self_attn_norm": "norm1",
                "cross_attn": "multihead_attn",
                "cross_attn_norm": "norm2",
                **_FEED_FORWARD,
            },
        ),
        Rename("decoder.norm", "transformer.decoder.norm"),
        Rename("class_head", "class_embed"),
        Rename("box_head", "bbox_embed"),
        *MASK_HEAD,
    ),
    detector_prefix="detr.",
    container="model",
)


def from_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of the original Deformable DETR or DETR; entries that these do not name stay as they are.

    Raises:
        ValueError: If it holds a head under two names with different values.
    """
    lineage = DETR if DETR.recognises(state_dict) else DEFORMABLE_DETR
    return lineage.read(state_dict).tensors


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of `DeformableDETR` or `DETR` to the original's names, second ones of heads included."""
    lineage = DETR if "decoder.norm.weight" in state_dict else DEFORMABLE_DETR
    return lineage.write(state_dict).tensors
