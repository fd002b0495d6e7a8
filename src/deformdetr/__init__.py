"""Deformable attention and Deformable DETR building blocks for PyTorch, with nothing to compile.

Building blocks are in `deformdetr.kernels`, `nn`, `matching`, `losses`, `models`, `boxes` and `structures`. Configs
build whole detectors:

    model = deformdetr.preset("deformable_detr_r50_two_stage").build()

Trained models detect:

    found = deformdetr.load("runs/detector")("photo.jpg", threshold=0.5)

Submodules and names are imported at their first use, so that `import deformdetr` alone is fast.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

# The names below, for type checkers.
if TYPE_CHECKING:
    from deformdetr import boxes as boxes
    from deformdetr import cli as cli
    from deformdetr import config as config
    from deformdetr import data as data
    from deformdetr import engine as engine
    from deformdetr import evaluation as evaluation
    from deformdetr import integrations as integrations
    from deformdetr import kernels as kernels
    from deformdetr import losses as losses
    from deformdetr import matching as matching
    from deformdetr import models as models
    from deformdetr import nn as nn
    from deformdetr import structures as structures
    from deformdetr import testing as testing
    from deformdetr import visualize as visualize
    from deformdetr.boxes import (
        box_area,
        box_iou,
        cxcywh_to_xyxy,
        elementwise_box_iou,
        elementwise_generalized_box_iou,
        generalized_box_iou,
        inverse_sigmoid,
        scale_boxes,
        xyxy_to_cxcywh,
    )
    from deformdetr.config import (
        PRESETS,
        DeformableDETRConfig,
        DETRConfig,
        load_config,
        preset,
        preset_names,
        save_config,
    )
    from deformdetr.engine import load
    from deformdetr.integrations import convert_checkpoint, load_checkpoint, save_checkpoint
    from deformdetr.kernels import ms_deform_attn
    from deformdetr.losses import SetCriterion, dice_loss, giou_loss, sigmoid_focal_loss
    from deformdetr.matching import HungarianMatcher
    from deformdetr.models import DETR, DeformableDETR, Detector, capture
    from deformdetr.nn import (
        MLP,
        DeformableDecoder,
        DeformableDecoderLayer,
        DeformableEncoder,
        DeformableEncoderLayer,
        MSDeformAttn,
    )

__version__ = "0.1.0"

__all__ = [
    "DETR",
    "MLP",
    "PRESETS",
    "DETRConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DeformableDecoder",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "Detector",
    "HungarianMatcher",
    "MSDeformAttn",
    "SetCriterion",
    "box_area",
    "box_iou",
    "capture",
    "convert_checkpoint",
    "cxcywh_to_xyxy",
    "dice_loss",
    "elementwise_box_iou",
    "elementwise_generalized_box_iou",
    "generalized_box_iou",
    "giou_loss",
    "inverse_sigmoid",
    "load",
    "load_checkpoint",
    "load_config",
    "ms_deform_attn",
    "preset",
    "preset_names",
    "save_checkpoint",
    "save_config",
    "scale_boxes",
    "sigmoid_focal_loss",
    "xyxy_to_cxcywh",
]

_NAMES = {
    "boxes": (
        "box_area",
        "box_iou",
        "cxcywh_to_xyxy",
        "elementwise_box_iou",
        "elementwise_generalized_box_iou",
        "generalized_box_iou",
        "inverse_sigmoid",
        "scale_boxes",
        "xyxy_to_cxcywh",
    ),
    "config": (
        "PRESETS",
        "DETRConfig",
        "DeformableDETRConfig",
        "load_config",
        "preset",
        "preset_names",
        "save_config",
    ),
    "engine": ("load",),
    "integrations": ("convert_checkpoint", "load_checkpoint", "save_checkpoint"),
    "kernels": ("ms_deform_attn",),
    "losses": ("SetCriterion", "dice_loss", "giou_loss", "sigmoid_focal_loss"),
    "matching": ("HungarianMatcher",),
    "models": ("DETR", "DeformableDETR", "Detector", "capture"),
    "nn": (
        "DeformableDecoder",
        "DeformableDecoderLayer",
        "DeformableEncoder",
        "DeformableEncoderLayer",
        "MLP",
        "MSDeformAttn",
    ),
}
_SUBMODULES = (*_NAMES, "cli", "data", "evaluation", "structures", "testing", "visualize")
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


# Hidden from type checkers, for which a module with this function has every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a submodule, or a name from one."""
        if name in _SUBMODULES:
            return importlib.import_module(f"deformdetr.{name}")
        if name in _MODULE_OF:
            return getattr(importlib.import_module(f"deformdetr.{_MODULE_OF[name]}"), name)
        known = {_fold(attribute): attribute for attribute in (*_SUBMODULES, *_MODULE_OF)}
        similar = [known[folded] for folded in difflib.get_close_matches(_fold(name), known, cutoff=0.7)]
        hint = f"did you mean {' or '.join(similar)}?" if similar else "dir(deformdetr) lists all names"
        raise AttributeError(f"module 'deformdetr' has no attribute {name!r}; {hint}")


def __dir__() -> list[str]:
    """List public names and submodules, without this file's own imports."""
    return sorted({*__all__, *_SUBMODULES, *(name for name in globals() if name.startswith("__"))})


def _fold(name: str) -> str:
    """Return a name in lower case and without underscores, which people misremember."""
    return name.lower().replace("_", "")
