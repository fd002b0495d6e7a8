"""Typed descriptions of models, which build them, and the presets."""

from deformdetr.config._base import Config, load_config, save_config
from deformdetr.config._deformable_detr import CriterionConfig, DeformableDETRConfig
from deformdetr.config._detr import DETRConfig, SoftmaxCriterionConfig
from deformdetr.config._parts import (
    BackboneConfig,
    ConvBackboneConfig,
    LearnedPositionConfig,
    PositionConfig,
    ResNetConfig,
    SinePositionConfig,
)
from deformdetr.config._presets import PRESETS, ModelConfig, preset, preset_names

__all__ = [
    "PRESETS",
    "BackboneConfig",
    "Config",
    "ConvBackboneConfig",
    "CriterionConfig",
    "DETRConfig",
    "DeformableDETRConfig",
    "LearnedPositionConfig",
    "ModelConfig",
    "PositionConfig",
    "ResNetConfig",
    "SinePositionConfig",
    "SoftmaxCriterionConfig",
    "load_config",
    "preset",
    "preset_names",
    "save_config",
]
