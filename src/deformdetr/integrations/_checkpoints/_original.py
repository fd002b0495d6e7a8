"""The names of the original implementations of Deformable DETR, DINO, DN-DETR and DETR."""

from deformdetr.integrations._checkpoints._changes import (
    DetectorPrefix,
    LabelRows,
    NoBatchCounts,
    NoEmbeddingOfOneLevel,
    SecondNames,
)
from deformdetr.integrations._checkpoints._format import Format
from deformdetr.integrations._checkpoints._heads import HeadsPerLayer
from deformdetr.integrations._checkpoints._names import Rename, Rules, decoder_rules, encoder_rules, within

# Learned position encodings are the second part of the backbone there.
_BACKBONE = (Rename("backbone", "backbone.0.body"), Rename("position", "backbone.1"))
_ENCODER = encoder_rules("transformer.encoder.layers", "self_attn norm1 linear1 linear2 norm2")
# Five convolutions with norms; each of the last three follows a lateral convolution.
MASK_HEAD = (
    Rename("mask_head.attention_maps.query_proj", "bbox_attention.q_linear"),
    Rename("mask_head.attention_maps.key_proj", "bbox_attention.k_linear"),
    *(Rename(f"mask_head.convolutions.convs.{index}", f"mask_head.lay{index + 1}") for index in range(5)),
    *(Rename(f"mask_head.convolutions.norms.{index}", f"mask_head.gn{index + 1}") for index in range(5)),
    *(Rename(f"mask_head.laterals.{index}", f"mask_head.adapter{index + 1}") for index in range(3)),
    Rename("mask_head.convolutions.out", "mask_head.out_lay"),
)

# Common to Deformable DETR, DINO and DN-DETR.
_DEFORMABLE: Rules = (
    *_BACKBONE,
    Rename("neck.levels.#.conv", "input_proj.#.0"),
    Rename("neck.levels.#.norm", "input_proj.#.1"),
    Rename("level_embed", "transformer.level_embed"),
    *_ENCODER,
    *decoder_rules("transformer.decoder.layers", "self_attn norm2 cross_attn norm1 linear1 linear2 norm3"),
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

DEFORMABLE_DETR = Format(
    name="original",
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
)

DINO = Format(
    name="original",
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
)

DN_DEFORMABLE_DETR = Format(
    name="original",
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
)

DETR = Format(
    name="original",
    architecture="detr",
    marks=("transformer.decoder.norm.weight", "transformer.decoder.layers.0.multihead_attn.in_proj_weight"),
    rules=(
        *_BACKBONE,
        Rename("projection", "input_proj"),
        Rename("query_position", "query_embed"),
        *_ENCODER,
        *decoder_rules("transformer.decoder.layers", "self_attn norm1 multihead_attn norm2 linear1 linear2 norm3"),
        Rename("decoder.norm", "transformer.decoder.norm"),
        Rename("class_head", "class_embed"),
        Rename("box_head", "bbox_embed"),
        *MASK_HEAD,
    ),
    changes=(NoBatchCounts(),),
    masks=_MASKS,
)

# Special formats first: some have the marks of later ones.
FORMATS = (DINO, DN_DEFORMABLE_DETR, DEFORMABLE_DETR, DETR)
