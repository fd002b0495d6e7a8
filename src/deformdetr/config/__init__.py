"""Typed configs of models, which build them, and the presets."""

from deformdetr.config._base import Config, DefaultedConfig, Source, load_config, save_config
from deformdetr.config._criterion import FocalCriterionConfig, SoftmaxCriterionConfig
from deformdetr.config._deformable_detr import DeformableDETRConfig
from deformdetr.config._denoising import ContrastiveDenoisingConfig, DenoisingConfig
from deformdetr.config._detr import DETRConfig
from deformdetr.config._parts import (
    BackboneConfig,
    ConvBackboneConfig,
    DATConfig,
    DeformConvConfig,
    LearnedPositionConfig,
    PositionConfig,
    ResNetConfig,
    SinePositionConfig,
)
from deformdetr.config._presets import PRESETS, ModelConfig, preset, preset_names, with_backbone_weights
from deformdetr.config._timm import TimmConfig

__all__ = [
    "PRESETS",
    "BackboneConfig",
    "Config",
    "ContrastiveDenoisingConfig",
    "ConvBackboneConfig",
    "DATConfig",
    "DETRConfig",
    "DefaultedConfig",
    "DeformConvConfig",
    "DeformableDETRConfig",
    "DenoisingConfig",
    "FocalCriterionConfig",
    "LearnedPositionConfig",
    "ModelConfig",
    "PositionConfig",
    "ResNetConfig",
    "SinePositionConfig",
    "SoftmaxCriterionConfig",
    "Source",
    "TimmConfig",
    "load_config",
    "preset",
    "preset_names",
    "save_config",
    "with_backbone_weights",
]
