"""Names and order of parameters, on which checkpoints and the optimizer states of runs depend."""

import pytest

from checkpoints import tiny_config

HEAD = [f"layers.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")]
PROPOSALS = ["memory_projection.weight", "memory_projection.bias", "memory_norm.weight", "memory_norm.bias"]
HEADS = ["class_head.weight", "class_head.bias", *(f"box_head.{name}" for name in HEAD)]
ANCHORS = {"with_box_refine": True, "anchor_queries": True}
VARIANTS = {
    "learned": (
        {},
        ["embedding.weight", "reference_points.weight", "reference_points.bias"],
        [f"box_heads.0.{name}" for name in HEAD],
    ),
    "two_stage": (
        {"two_stage": True},
        [
            *PROPOSALS,
            *(f"position_{part}.{kind}" for part in ("projection", "norm") for kind in ("weight", "bias")),
            *HEADS,
        ],
        [f"box_heads.0.{name}" for name in HEAD],
    ),
    "dn_detr": (
        {**ANCHORS, "share_heads": True, "query_scale": True, "denoising": {"kind": "dn"}},
        ["content.weight", "anchors.weight"],
        [
            *(f"box_heads.0.{name}" for name in HEAD),
            *(f"position.{part}.{name}" for part in ("encoding", "scale") for name in HEAD[:4]),
        ],
    ),
    "dino": (
        {
            **ANCHORS,
            "share_heads": True,
            "two_stage": True,
            "query_selection": "mixed",
            "decoder_norm": True,
            "denoising": {"kind": "cdn"},
        },
        ["content.weight", *PROPOSALS, *HEADS],
        [
            *(f"box_heads.0.{name}" for name in HEAD),
            *(f"position.encoding.{name}" for name in HEAD[:4]),
            "norm.weight",
            "norm.bias",
        ],
    ),
}


@pytest.mark.parametrize(("fields", "queries", "decoder"), VARIANTS.values(), ids=VARIANTS.keys())
def test_parameters_keep_their_names_and_order(fields, queries, decoder):
    model = tiny_config(masks=True, **fields).build()
    assert [name for name, _ in model.queries.named_parameters()] == queries
    assert [name for name, _ in model.decoder.named_parameters() if not name.startswith("layers.")] == decoder
    parts = list(dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters()))
    denoising = ["denoising"] if "denoising" in fields else []
    expected = [
        "level_embed",
        "backbone",
        "neck",
        "encoder",
        "queries",
        "decoder",
        "class_heads",
        *denoising,
        "mask_head",
    ]
    assert parts == expected
