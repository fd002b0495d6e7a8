"""Detection with a model, as evaluation and prediction run it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deformdetr.structures import Detections, ImageBatch

# The probability above which a pixel counts as the object's.
MASK_THRESHOLD = 0.5
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def detect(
    model: nn.Module,
    postprocess: Callable[..., list[Detections]],
    images: ImageBatch,
    sizes: list[tuple[int, int]],
    *,
    num_labels: int,
    precision: str = "float32",
) -> list[Detections]:
    """Detect objects, with tensors on the CPU.

    Args:
        model: In evaluation mode; called with images (batch, 3, height, width) and their padding mask.
        postprocess: Turns its predictions and the sizes of images into detections.
        images: Moved to the model's device.
        sizes: (height, width) to which boxes and masks are scaled, in pixels.
        num_labels: Detections of labels from this on, which a model may have and its dataset not, are left out.
        precision: As in `TrainConfig`.
    """
    device = next(model.parameters()).device
    images = images.to(device, non_blocking=True)
    with torch.inference_mode(), autocast(device, precision):
        found = postprocess(model(images.images, images.padding_mask), sizes)
    return [_on_host(detections, num_labels) for detections in found]


def _on_host(detections: Detections, num_labels: int) -> Detections:
    keep = detections["labels"] < num_labels

    def move(values: Tensor) -> Tensor:
        return values[keep].cpu()

    moved: Detections = {
        "boxes": move(detections["boxes"]),
        "scores": move(detections["scores"]),
        "labels": move(detections["labels"]),
    }
    if "masks" in detections:
        moved["masks"] = move(detections["masks"])
    return moved


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Let matrix products and convolutions run in a precision of `TrainConfig`."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "float32")
