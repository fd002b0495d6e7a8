"""Detection models, their pre- and post-processing, and a wrapper with the interface of torchvision's detectors."""

from deformdetr.models._capture import Capture, SampledLayer, capture
from deformdetr.models._deformable_detr import DeformableDETR
from deformdetr.models._denoising import needs_targets
from deformdetr.models._detector import Detector
from deformdetr.models._detr import DETR
from deformdetr.models._panoptic import PanopticPostProcess
from deformdetr.models._postprocess import PostProcess, Selection, SigmoidPostProcess, SoftmaxPostProcess
from deformdetr.models._preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalize_image,
    prepare_image,
    resize_image,
    resized_size,
)

__all__ = [
    "DETR",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Capture",
    "DeformableDETR",
    "Detector",
    "PanopticPostProcess",
    "PostProcess",
    "SampledLayer",
    "Selection",
    "SigmoidPostProcess",
    "SoftmaxPostProcess",
    "capture",
    "needs_targets",
    "normalize_image",
    "prepare_image",
    "resize_image",
    "resized_size",
]
