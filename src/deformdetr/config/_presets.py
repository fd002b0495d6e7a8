"""Configs of the published models, by name."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, overload

from pydantic import Field

from deformdetr.config._criterion import FocalCriterionConfig
from deformdetr.config._deformable_detr import DeformableDETRConfig
from deformdetr.config._denoising import ContrastiveDenoisingConfig, DenoisingConfig
from deformdetr.config._detr import DETRConfig
from deformdetr.config._parts import ConvBackboneConfig, DATConfig, ResNetConfig, SinePositionConfig

ModelConfig: TypeAlias = Annotated[DeformableDETRConfig | DETRConfig, Field(discriminator="kind")]

# For type checkers, which then know the fields of `preset("detr_r50")`.
_DETRNames: TypeAlias = Literal[
    "detr_r50", "detr_r50_dc5", "detr_r50_dc5_plus", "detr_r101", "detr_r101_dc5", "detr_r50_panoptic"
]
_DeformableNames: TypeAlias = Literal[
    "deformable_detr_r50_single_scale",
    "deformable_detr_r50_single_scale_dc5",
    "deformable_detr_r50",
    "deformable_detr_r50_refine",
    "deformable_detr_r50_two_stage",
    "dn_deformable_detr_r50",
    "dino_r50_4scale",
    "demo",
]

_SINGLE_SCALE = DeformableDETRConfig(num_feature_levels=1)
_DENOISING = DeformableDETRConfig(
    with_box_refine=True,
    anchor_queries=True,
    inverse_sigmoid_eps=1e-3,
    d_ffn=2048,
    dropout=0.0,
    criterion=FocalCriterionConfig(loss_class=1.0),
    top_k=300,
)

PRESETS: Mapping[str, DeformableDETRConfig | DETRConfig] = {
    "deformable_detr_r50_single_scale": _SINGLE_SCALE,
    "deformable_detr_r50_single_scale_dc5": _SINGLE_SCALE.replace(backbone=ResNetConfig(dilation=True)),
    "deformable_detr_r50": DeformableDETRConfig(),
    "deformable_detr_r50_refine": DeformableDETRConfig(with_box_refine=True),
    "deformable_detr_r50_two_stage": DeformableDETRConfig(with_box_refine=True, two_stage=True),
    "dn_deformable_detr_r50": _DENOISING.replace(query_scale=True, denoising=DenoisingConfig()),
    "dino_r50_4scale": _DENOISING.replace(
        num_queries=900,
        two_stage=True,
        query_selection="mixed",
        look_forward_twice=True,
        decoder_norm=True,
        share_heads=True,
        denoising=ContrastiveDenoisingConfig(),
        position=SinePositionConfig(temperature=20.0, offset=0.0),
    ),
    "detr_r50": DETRConfig(),
    "detr_r50_dc5": DETRConfig(backbone=ResNetConfig(dilation=True)),
    "detr_r50_dc5_plus": DETRConfig(
        num_queries=300, criterion=FocalCriterionConfig(), backbone=ResNetConfig(dilation=True)
    ),
    "detr_r101": DETRConfig(backbone=ResNetConfig(name="resnet101")),
    "detr_r101_dc5": DETRConfig(backbone=ResNetConfig(name="resnet101", dilation=True)),
    "detr_r50_panoptic": DETRConfig(num_classes=250, masks=True),
    "demo": DeformableDETRConfig(
        num_classes=3,
        num_queries=30,
        num_feature_levels=3,
        with_box_refine=True,
        two_stage=True,
        d_model=64,
        n_heads=4,
        num_encoder_layers=1,
        num_decoder_layers=2,
        d_ffn=128,
        dropout=0.0,
        enc_n_points=2,
        norm_groups=8,
        backbone=ConvBackboneConfig(channels=(16, 32, 64, 128)),
    ),
}


@overload
def preset(name: _DeformableNames) -> DeformableDETRConfig: ...


@overload
def preset(name: _DETRNames) -> DETRConfig: ...


@overload
def preset(name: str) -> DeformableDETRConfig | DETRConfig: ...


def preset(name: str) -> DeformableDETRConfig | DETRConfig:
    """Return the config of a published model.

    Examples:
        >>> preset("deformable_detr_r50_two_stage").two_stage
        True

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_names() -> list[str]:
    """Return the names of the presets.

    Examples:
        >>> "dino_r50_4scale" in preset_names()
        True
    """
    return list(PRESETS)


def with_backbone_weights(
    config: DeformableDETRConfig | DETRConfig, weights: str | None
) -> DeformableDETRConfig | DETRConfig:
    """Return a config whose backbone starts from other weights, or the same config if its backbone has none to load.

    Args:
        config: Config of a model.
        weights: As in `ResNetConfig` and `TimmConfig`: None for random ones, which a checkpoint of the whole model then
            replaces, or "DEFAULT" for pretrained ones, which DAT does not have.

    Examples:
        >>> with_backbone_weights(preset("deformable_detr_r50"), "DEFAULT").backbone.weights
        'DEFAULT'
    """
    backbone = config.backbone
    if isinstance(backbone, ConvBackboneConfig) or (isinstance(backbone, DATConfig) and weights == "DEFAULT"):
        return config
    return config.replace(backbone=backbone.replace(weights=weights))
