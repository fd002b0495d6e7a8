"""The names of the original implementations of Deformable DETR, DINO, DN-DETR and DETR."""

from collections.abc import Mapping

from torch import Tensor

from deformdetr.integrations._changes import (
    DetectorPrefix,
    LabelRows,
    NoBatchCounts,
    NoEmbeddingOfOneLevel,
    SecondNames,
)
from deformdetr.integrations._heads import HeadsPerLayer
from deformdetr.integrations._lineage import Lineage
from deformdetr.integrations._names import Rename, Rules, within
from deformdetr.integrations._own import architecture_of

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

# What Deformable DETR has in common with those that build on it.
_DEFORMABLE: Rules = (
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
    *within("queries", "transformer", {"memory_projection": "enc_output", "memory_norm": "enc_output_norm"}),
    *MASK_HEAD,
)
_ANCHORS = (
    Rename("decoder.position.encoding", "transformer.decoder.ref_point_head"),
    Rename("denoising.label_embedding", "label_enc"),
)
_SAMPLING = "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight"
_REFERENCES = "transformer.decoder.ref_point_head.layers.0.weight"
_MASKS = DetectorPrefix("detr.")

DEFORMABLE_DETR = Lineage(
    format="original",
    architecture="deformable_detr",
    marks=("transformer.level_embed",),
    rules=(
        *_DEFORMABLE,
        Rename("queries.embedding", "query_embed"),
        *within(
            "queries",
            "transformer",
            {
                "reference_points": "reference_points",
                "position_projection": "pos_trans",
                "position_norm": "pos_trans_norm",
            },
        ),
    ),
    changes=(NoBatchCounts(), HeadsPerLayer()),
    late_changes=(SecondNames("transformer.decoder."),),
    masks=_MASKS,
    container="model",
)

DINO = Lineage(
    format="original",
    architecture="dino",
    marks=(_REFERENCES, "transformer.decoder.norm.weight", _SAMPLING),
    rules=(
        *_DEFORMABLE,
        *_ANCHORS,
        Rename("decoder.norm", "transformer.decoder.norm"),
        *within(
            "queries",
            "transformer",
            {
                "content": "tgt_embed",
                "anchors": "refpoint_embed",
                "class_head": "enc_out_class_embed",
                "box_head": "enc_out_bbox_embed",
            },
        ),
    ),
    changes=(NoBatchCounts(), NoEmbeddingOfOneLevel(), LabelRows(spare=True), HeadsPerLayer(encoder_continues=False)),
    late_changes=(SecondNames("transformer.decoder.", always=("bbox_embed.", "class_embed.")),),
    masks=_MASKS,
    container="model",
)

DN_DEFORMABLE_DETR = Lineage(
    format="original",
    architecture="dn_deformable_detr",
    marks=(_REFERENCES, "transformer.decoder.query_scale.layers.0.weight", _SAMPLING),
    rules=(
        *_DEFORMABLE,
        *_ANCHORS,
        Rename("decoder.position.scale", "transformer.decoder.query_scale"),
        Rename("queries.content", "tgt_embed"),
        Rename("queries.anchors", "refpoint_embed"),
    ),
    changes=(NoBatchCounts(), LabelRows(spare=True), HeadsPerLayer(never_shared=True)),
    late_changes=(SecondNames("transformer.decoder.", always=("bbox_embed.",)),),
    masks=_MASKS,
    needs={"decoder.position.scale.layers.0.weight": "query_scale=True", "queries.anchors.weight": "two_stage=False"},
    container="model",
)

DETR = Lineage(
    format="original",
    architecture="detr",
    marks=("transformer.decoder.norm.weight", "transformer.decoder.layers.0.multihead_attn.in_proj_weight"),
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
    changes=(NoBatchCounts(),),
    masks=_MASKS,
    container="model",
)

# The more special first: all have the transformer's mark.
LINEAGES = (DINO, DN_DEFORMABLE_DETR, DEFORMABLE_DETR, DETR)


def from_original(state_dict: Mapping[str, Tensor], *, share_heads: bool | None = None) -> dict[str, Tensor]:
    """Translate a state dict of the original Deformable DETR, DINO, DN-DETR or DETR to this library's names.

    Args:
        state_dict: Entries that the original does not name stay as they are.
        share_heads: Whether all decoder layers of a DINO share their heads, where neither their values nor their memory
            tell.

    Raises:
        ValueError: If it holds a head under two names with different values, or does not tell whether layers share
            their heads.
    """
    lineage = next((each for each in LINEAGES if each.recognizes(state_dict)), DEFORMABLE_DETR)
    return lineage.read(state_dict, share_heads=share_heads).everything


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of this library to the original's names, second ones of heads included.

    Args:
        state_dict: Of a `DeformableDETR` or a `DETR`; entries that the original does not name stay as they are.

    Raises:
        ValueError: If the original has no such model.
    """
    architecture = architecture_of(state_dict)
    lineage = next(each for each in LINEAGES if each.architecture == architecture)
    return lineage.write(state_dict).everything
