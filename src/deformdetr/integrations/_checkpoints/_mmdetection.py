"""The names of mmdetection's DeformableDETR and DINO, versions 2 and 3."""

from itertools import chain

from deformdetr.integrations._checkpoints._changes import BatchCounts, LabelRows, NeckWithoutBiases
from deformdetr.integrations._checkpoints._format import Format
from deformdetr.integrations._checkpoints._heads import HeadsPerLayer
from deformdetr.integrations._checkpoints._names import Rename, Rules, decoder_rules, encoder_rules, within


def neck_rules(norm: str) -> Rules:
    """Return rules for a channel mapper, which names levels beyond the backbone's last three features separately.

    Args:
        norm: Name of its norms.
    """
    parts = {"conv": "conv", "norm": norm}
    extra = (within(f"neck.levels.{3 + index}", f"neck.extra_convs.{index}", parts) for index in range(3))
    return (*chain.from_iterable(extra), *within("neck.levels.#", "neck.convs.#", parts))


# Branches are sequences, which number activations too.
_HEADS = (
    *within(
        "decoder.box_heads.#",
        "bbox_head.reg_branches.#",
        {f"layers.{layer}": f"{2 * layer}" for layer in range(3)},
    ),
    Rename("class_heads.#", "bbox_head.cls_branches.#"),
)

_VERSION_3: Rules = (
    Rename("backbone", "backbone"),
    *neck_rules("gn"),
    Rename("level_embed", "level_embed"),
    *encoder_rules("encoder.layers", "self_attn norms.0 ffn.layers.0.0 ffn.layers.1 norms.1"),
    *decoder_rules("decoder.layers", "self_attn.attn norms.0 cross_attn norms.1 ffn.layers.0.0 ffn.layers.1 norms.2"),
    *_HEADS,
    Rename("queries.memory_projection", "memory_trans_fc"),
    Rename("queries.memory_norm", "memory_trans_norm"),
    Rename("queries.position_projection", "pos_trans_fc"),
    Rename("queries.position_norm", "pos_trans_norm"),
)


def transformer_rules(prefix: str) -> Rules:
    """Return rules for a transformer made of mmcv's generic layers, which detrex has too.

    Args:
        prefix: Name of the transformer.
    """
    return (
        Rename("level_embed", f"{prefix}.level_embeds"),
        *encoder_rules(f"{prefix}.encoder.layers", "attentions.0 norms.0 ffns.0.layers.0.0 ffns.0.layers.1 norms.1"),
        *decoder_rules(
            f"{prefix}.decoder.layers",
            "attentions.0.attn norms.0 attentions.1 norms.1 ffns.0.layers.0.0 ffns.0.layers.1 norms.2",
        ),
        *within(
            "queries",
            prefix,
            {
                "reference_points": "reference_points",
                "memory_projection": "enc_output",
                "memory_norm": "enc_output_norm",
                "position_projection": "pos_trans",
                "position_norm": "pos_trans_norm",
            },
        ),
    )


_CHANGES = (BatchCounts(), NeckWithoutBiases())
_DINO_CHANGES = (*_CHANGES, LabelRows(spare=False), HeadsPerLayer(never_shared=True))
_TWO_STAGE = {"queries.memory_projection.weight": "two_stage=True"}

_DEFORMABLE_DETR_3 = Format(
    name="mmdetection_3",
    architecture="deformable_detr",
    marks=("level_embed", "bbox_head.cls_branches.0.weight"),
    rules=(
        *_VERSION_3,
        Rename("queries.embedding", "query_embedding"),
        Rename("queries.reference_points", "reference_points_fc"),
    ),
    changes=(*_CHANGES, HeadsPerLayer()),
)

_DINO_3 = Format(
    name="mmdetection_3",
    architecture="dino",
    marks=(*_DEFORMABLE_DETR_3.marks, "decoder.ref_point_head.layers.0.weight", "decoder.norm.weight"),
    rules=(
        *_VERSION_3,
        Rename("queries.content", "query_embedding"),
        Rename("decoder.position.encoding", "decoder.ref_point_head"),
        Rename("decoder.norm", "decoder.norm"),
        Rename("denoising.label_embedding", "dn_query_generator.label_embedding"),
    ),
    changes=_DINO_CHANGES,
    needs=_TWO_STAGE,
)

_VERSION_2: Rules = (
    Rename("backbone", "backbone"),
    *neck_rules("gn"),
    *transformer_rules("bbox_head.transformer"),
    *_HEADS,
)

_DEFORMABLE_DETR_2 = Format(
    name="mmdetection_2",
    architecture="deformable_detr",
    marks=("bbox_head.transformer.level_embeds",),
    rules=(*_VERSION_2, Rename("queries.embedding", "bbox_head.query_embedding")),
    changes=(*_CHANGES, HeadsPerLayer()),
)

_DINO_2 = Format(
    name="mmdetection_2",
    architecture="dino",
    marks=(
        *_DEFORMABLE_DETR_2.marks,
        "bbox_head.transformer.decoder.ref_point_head.0.weight",
        "bbox_head.transformer.decoder.norm.weight",
    ),
    rules=(
        *_VERSION_2,
        # A sequence, which numbers the activation too.
        Rename("decoder.position.encoding.layers.0", "bbox_head.transformer.decoder.ref_point_head.0"),
        Rename("decoder.position.encoding.layers.1", "bbox_head.transformer.decoder.ref_point_head.2"),
        Rename("decoder.norm", "bbox_head.transformer.decoder.norm"),
        Rename("queries.content", "bbox_head.transformer.query_embed"),
        Rename("denoising.label_embedding", "bbox_head.label_embedding"),
    ),
    changes=_DINO_CHANGES,
    needs=_TWO_STAGE,
)

# Special formats first: they have the marks of later ones.
FORMATS = (_DINO_3, _DINO_2, _DEFORMABLE_DETR_3, _DEFORMABLE_DETR_2)
