"""Whole detectors, their post-processing, and a wrapper with torchvision's detection contract."""

from deformdetr.models._deformable_detr import DeformableDETR
from deformdetr.models._denoising import needs_targets
from deformdetr.models._detector import Detector
from deformdetr.models._detr import DETR
from deformdetr.models._postprocess import PostProcess, Selection, SigmoidPostProcess, SoftmaxPostProcess

__all__ = [
    "DETR",
    "DeformableDETR",
    "Detector",
    "PostProcess",
    "Selection",
    "SigmoidPostProcess",
    "SoftmaxPostProcess",
    "needs_targets",
]
