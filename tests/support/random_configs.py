"""Descriptions of models drawn at random: every field that changes what a state dict holds."""

import random
from typing import Any

from deformdetr.config import (
    BackboneConfig,
    ContrastiveDenoisingConfig,
    ConvBackboneConfig,
    DeformableDETRConfig,
    DenoisingConfig,
    DETRConfig,
    FocalCriterionConfig,
    LearnedPositionConfig,
    PositionConfig,
    ResNetConfig,
    SinePositionConfig,
    TimmConfig,
)


def draw_config(draw: random.Random, *, small: bool = True) -> DeformableDETRConfig | DETRConfig:
    """Draw a description of a model of few channels.

    Args:
        draw: Where the numbers come from.
        small: Whether the backbone is small too, rather than a ResNet.
    """
    masks = draw.random() < 0.3
    d_model = 32 if masks else draw.choice([8, 16, 32])
    fields: dict[str, Any] = {
        "num_classes": draw.randint(1, 6),
        "num_queries": draw.randint(1, 9),
        "masks": masks,
        "d_model": d_model,
        "n_heads": draw.choice([1, 2, 4]),
        "num_encoder_layers": draw.randint(0, 2),
        "num_decoder_layers": draw.randint(1, 3),
        "d_ffn": draw.choice([8, 24]),
        "backbone": _draw_small_backbone(draw) if small else _draw_resnet(draw),
        "position": _draw_position(draw),
    }
    if draw.random() < 0.2:
        return DETRConfig(**fields, **({"criterion": FocalCriterionConfig()} if draw.random() < 0.5 else {}))
    levels = draw.randint(1, 6)
    return DeformableDETRConfig(
        **fields,
        **_draw_queries(draw, fields["num_decoder_layers"]),
        num_feature_levels=levels,
        enc_n_points=_draw_points(draw, levels),
        dec_n_points=_draw_points(draw, levels),
        norm_groups=draw.choice([1, 4]),
    )


def _draw_queries(draw: random.Random, layers: int) -> dict[str, Any]:
    two_stage = draw.random() < 0.5
    if draw.random() < 0.4:
        return {"two_stage": two_stage, "with_box_refine": draw.random() < 0.5}
    return {
        "two_stage": two_stage,
        "query_selection": "mixed" if two_stage else "pure",
        "with_box_refine": True,
        "anchor_queries": True,
        "query_scale": layers > 1 and draw.random() < 0.5,
        "look_forward_twice": draw.random() < 0.5,
        "decoder_norm": draw.random() < 0.5,
        "share_heads": draw.random() < 0.5,
        "denoising": draw.choice([None, DenoisingConfig(), ContrastiveDenoisingConfig()]),
    }


def _draw_points(draw: random.Random, levels: int) -> int | tuple[int, ...]:
    return draw.choice([draw.randint(1, 3), tuple(draw.randint(1, 3) for _ in range(levels))])


def _draw_position(draw: random.Random) -> PositionConfig:
    return draw.choice([SinePositionConfig(), LearnedPositionConfig(max_size=draw.randint(1, 5))])


def _draw_small_backbone(draw: random.Random) -> BackboneConfig:
    widths = [8 * draw.randint(1, 3) for _ in range(4)]
    conv = ConvBackboneConfig(channels=(widths[0], widths[1], widths[2], widths[3]), dilation=draw.random() < 0.5)
    return draw.choice([conv, conv, TimmConfig(name="test_resnet.r160_in1k")])


def _draw_resnet(draw: random.Random) -> BackboneConfig:
    return ResNetConfig(name="resnet18", norm=draw.choice(["frozen_batch", "batch", "group"]))
