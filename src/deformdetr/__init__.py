"""Deformable attention and Deformable DETR building blocks for PyTorch, with nothing to compile.

The parts live in `deformdetr.kernels`, `nn`, `matching`, `losses`, `models`, `boxes` and `structures`; whole detectors
are described by configs and built from them:

    model = deformdetr.preset("deformable_detr_r50_two_stage").build()
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deformdetr.config import PRESETS, DeformableDETRConfig, DETRConfig, preset, preset_names
    from deformdetr.kernels import ms_deform_attn
    from deformdetr.models import DETR, DeformableDETR, Detector
    from deformdetr.nn import MSDeformAttn

__version__ = "0.1.0"

__all__ = [
    "DETR",
    "PRESETS",
    "DETRConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "Detector",
    "MSDeformAttn",
    "ms_deform_attn",
    "preset",
    "preset_names",
]

# Loaded at first use, so that whoever needs one part does not wait for the others.
_HOMES = {
    "DETR": "deformdetr.models",
    "DETRConfig": "deformdetr.config",
    "PRESETS": "deformdetr.config",
    "DeformableDETR": "deformdetr.models",
    "DeformableDETRConfig": "deformdetr.config",
    "Detector": "deformdetr.models",
    "MSDeformAttn": "deformdetr.nn",
    "ms_deform_attn": "deformdetr.kernels",
    "preset": "deformdetr.config",
    "preset_names": "deformdetr.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deformdetr' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
