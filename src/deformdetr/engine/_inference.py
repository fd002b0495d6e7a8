"""Running a model for evaluation and prediction."""

from collections.abc import Callable

import torch
from torch import nn

from deformdetr.config import DeformableDETRConfig, DETRConfig
from deformdetr.engine._config import Experiment
from deformdetr.models import PostProcess
from deformdetr.structures import Detections, ImageBatch

# Pixels with a higher mask probability belong to the object.
MASK_THRESHOLD = 0.5
# What COCO's rules keep. A model may be set to fewer.
COCO_DETECTIONS = 100
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


def detect(
    model: nn.Module,
    postprocess: Callable[..., list[Detections]],
    images: ImageBatch,
    sizes: list[tuple[int, int]],
    *,
    num_labels: int,
    precision: str = "float32",
) -> list[Detections]:
    """Return the detections in a batch of images, on the CPU.

    Args:
        model: Model in evaluation mode. It is called with images and their padding mask.
        postprocess: Function from predictions and image sizes to detections.
        images: Batch on any device.
        sizes: (height, width) in pixels to which boxes and masks are scaled.
        num_labels: Number of labels in the dataset. Detections of further labels that the model may have are dropped.
        precision: As in `TrainConfig`.
    """
    device = next(model.parameters()).device
    images = images.to(device, non_blocking=True)
    with torch.inference_mode(), autocast(device, precision):
        found = postprocess(model(images.images, images.padding_mask), sizes)
    return [_known_labels(detections, num_labels) for detections in found]


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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context that runs matrix products and convolutions in a precision of `TrainConfig`."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "float32")
