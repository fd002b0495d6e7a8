"""The names of mmdetection's DeformableDETR, versions 2 and 3."""

from deformdetr.integrations._lineage import Lineage
from deformdetr.integrations._names import Rename, Rules, within

# Levels beyond the backbone's last three features.
_NECK = (
    *(
        rule
        for extra in range(3)
        for rule in within(f"neck.levels.{3 + extra}", f"neck.extra_convs.{extra}", {"conv": "conv", "norm": "gn"})
    ),
    *within("neck.levels.#", "neck.convs.#", {"conv": "conv", "norm": "gn"}),
)
# A branch is a sequence in which activations have numbers too.
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
    *_NECK,
    Rename("level_embed", "level_embed"),
    *within(
        "encoder.layers.#",
        "encoder.layers.#",
        {
            "self_attn": "self_attn",
            "self_attn_norm": "norms.0",
            "feed_forward.linear1": "ffn.layers.0.0",
            "feed_forward.linear2": "ffn.layers.1",
            "feed_forward_norm": "norms.1",
        },
    ),
    *within(
        "decoder.layers.#",
        "decoder.layers.#",
        {
            "self_attn": "self_attn.attn",
            "self_attn_norm": "norms.0",
            "cross_attn": "cross_attn",
            "cross_attn_norm": "norms.1",
            "feed_forward.linear1": "ffn.layers.0.0",
            "feed_forward.linear2": "ffn.layers.1",
            "feed_forward_norm": "norms.2",
        },
    ),
    *_HEADS,
    Rename("queries.embedding", "query_embedding"),
    Rename("queries.reference_points", "reference_points_fc"),
    Rename("queries.memory_projection", "memory_trans_fc"),
    Rename("queries.memory_norm", "memory_trans_norm"),
    Rename("queries.position_projection", "pos_trans_fc"),
    Rename("queries.position_norm", "pos_trans_norm"),
)


def transformer_rules(prefix: str) -> Rules:
    """Give the names of a transformer made of mmcv's general layers, which detrex has taken over.

    Args:
        prefix: Name of the transformer.
    """
    return (
        Rename("level_embed", f"{prefix}.level_embeds"),
        *within(
            "encoder.layers.#",
            f"{prefix}.encoder.layers.#",
            {
                "self_attn": "attentions.0",
                "self_attn_norm": "norms.0",
                "feed_forward.linear1": "ffns.0.layers.0.0",
                "feed_forward.linear2": "ffns.0.layers.1",
                "feed_forward_norm": "norms.1",
            },
        ),
        *within(
            "decoder.layers.#",
            f"{prefix}.decoder.layers.#",
            {
                "self_attn": "attentions.0.attn",
                "self_attn_norm": "norms.0",
                "cross_attn": "attentions.1",
                "cross_attn_norm": "norms.1",
                "feed_forward.linear1": "ffns.0.layers.0.0",
                "feed_forward.linear2": "ffns.0.layers.1",
                "feed_forward_norm": "norms.2",
            },
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


VERSION_3 = Lineage(
    format="mmdetection_3",
    architecture="deformable_detr",
    marks=("level_embed", "bbox_head.cls_branches.0.weight"),
    rules=_VERSION_3,
    repeats_heads=True,
    has_neck_biases=False,
    counts_batches=True,
    container="state_dict",
)

VERSION_2 = Lineage(
    format="mmdetection_2",
    architecture="deformable_detr",
    marks=("bbox_head.transformer.level_embeds",),
    rules=(
        Rename("backbone", "backbone"),
        *_NECK,
        *transformer_rules("bbox_head.transformer"),
        *_HEADS,
        Rename("queries.embedding", "bbox_head.query_embedding"),
    ),
    repeats_heads=True,
    has_neck_biases=False,
    counts_batches=True,
    container="state_dict",
)
