"""Running a model for evaluation and prediction."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from deformdetr.config import DeformableDETRConfig, DETRConfig
from deformdetr.data import LabelMap
from deformdetr.engine._config import Experiment
from deformdetr.models import PanopticPostProcess, PostProcess, SigmoidPostProcess
from deformdetr.structures import Detections, ImageBatch, PanopticSegmentation

# Pixels with a higher mask probability belong to the object.
MASK_THRESHOLD = 0.5
# What COCO's rules keep. A model may be set to fewer.
COCO_DETECTIONS = 100
_SIGMOID_THRESHOLD = 0.3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def evaluated_model(experiment: Experiment) -> DeformableDETRConfig | DETRConfig:
    """Return the model's config with post-processing that keeps as many detections as evaluation counts."""
    config, most = experiment.model, experiment.train.max_detections
    if isinstance(config, DeformableDETRConfig) and config.top_k < most and most > COCO_DETECTIONS:
        return config.replace(top_k=most)
    return config


def evaluation_postprocess(experiment: Experiment) -> PostProcess:
    """Build post-processing with boolean masks that keeps as many detections as evaluation counts."""
    return evaluated_model(experiment).build_postprocess(mask_threshold=MASK_THRESHOLD)


def panoptic_postprocess(experiment: Experiment, label_map: LabelMap) -> PanopticPostProcess | None:
    """Build panoptic post-processing for a model with masks and labels with stuff; without either, return `None`."""
    if not (experiment.model.masks and label_map.stuff):
        return None
    detections = experiment.model.build_postprocess()
    panoptic = PanopticPostProcess(stuff=label_map.stuff, detections=detections)
    # Sigmoids, trained with the focal loss, are less certain than a softmax, for which the default is DETR's.
    return replace(panoptic, threshold=_SIGMOID_THRESHOLD) if isinstance(detections, SigmoidPostProcess) else panoptic


class Found(NamedTuple):
    """Detections in a batch of images, and their panoptic segmentations if there are any."""

    detections: list[Detections]
    segmentations: list[PanopticSegmentation] | None


def detect(
    model: nn.Module,
    postprocess: Callable[..., list[Detections]],
    images: ImageBatch,
    sizes: list[tuple[int, int]],
    *,
    num_labels: int,
    precision: str = "float32",
    panoptic: PanopticPostProcess | None = None,
) -> Found:
    """Return the detections in a batch of images, on the CPU.

    Args:
        model: Model in evaluation mode. It is called with images and their padding mask.
        postprocess: Function from predictions and image sizes to detections.
        images: Batch on any device.
        sizes: (height, width) in pixels to which boxes and masks are scaled.
        num_labels: Number of labels in the dataset. Detections of further labels that the model may have are dropped.
        precision: As in `TrainConfig`.
        panoptic: Post-processing for panoptic segmentations.
    """
    weight = next(model.parameters())
    device = weight.device
    images = images.to(device, non_blocking=True)
    with torch.inference_mode(), autocast(device, precision):
        outputs = model(images.images.to(weight.dtype), images.padding_mask)
        found = [_known_labels(detections, num_labels) for detections in postprocess(outputs, sizes)]
        if panoptic is None:
            return Found(found, None)
        return Found(found, [_known_segments(each, num_labels) for each in panoptic(outputs, sizes)])


def _known_labels(detections: Detections, num_labels: int) -> Detections:
    keep = detections["labels"] < num_labels
    kept: Detections = {
        "boxes": detections["boxes"][keep].cpu(),
        "scores": detections["scores"][keep].cpu(),
        "labels": detections["labels"][keep].cpu(),
    }
    if "masks" in detections:
        kept["masks"] = detections["masks"][keep].cpu()
    return kept


def _known_segments(found: PanopticSegmentation, num_labels: int) -> PanopticSegmentation:
    keep = found["labels"] < num_labels
    # Numbers of the segments that are kept, from 1; void, and what becomes void, is 0.
    numbers = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0) * keep])
    kept: PanopticSegmentation = {
        "segment_map": numbers[found["segment_map"]].cpu(),
        "labels": found["labels"][keep].cpu(),
    }
    if "scores" in found:
        kept["scores"] = found["scores"][keep].cpu()
    return kept


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context that runs matrix products and convolutions in a precision of `TrainConfig`."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "float32")
