"""Comparison of an exported file with its model on the same images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.integrations._export._program import AnyPostProcess, ExportError, probable_masks
from deformdetr.models import Selection
from deformdetr.structures import ImageBatch


class FileOutputs(NamedTuple):
    """Outputs of an exported file."""

    tensors: dict[str, Tensor]
    choices: list[Int64[Tensor, "batch _chosen"]]
    """Indices that every top-k of the graph has selected, in order."""


Run: TypeAlias = Callable[[Mapping[str, Tensor]], FileOutputs]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The largest differences between a file and its model on one batch.

    Attributes:
        images: Number of images.
        height: Height of the padded batch, in pixels.
        width: Width of the padded batch, in pixels.
        logits: Largest difference of class logits, including those that select proposals.
        boxes: Largest difference of box coordinates, as a fraction of the image.
        detections: Largest difference of scores, labels, or boxes as fractions of the image, between the file's
            detections and the model's post-processing of the file's predictions; None without post-processing.
        masks: Largest difference of mask logits or, with post-processing, probabilities; None without masks.

    Examples:
        >>> comparison = Comparison(images=2, height=64, width=96, logits=2e-5, boxes=1e-6, detections=None)
        >>> print(comparison)
        2 images of 64 x 96: logits 2e-05, boxes 1e-06
        >>> comparison.is_within(1e-4)
        True
    """

    images: int
    height: int
    width: int
    logits: float
    boxes: float
    detections: float | None
    masks: float | None = None

    def is_within(self, tolerance: float) -> bool:
        """Return whether no difference exceeds the tolerance; NaN does."""
        numbers = (self.logits, self.boxes, self.detections, self.masks)
        return all(number <= tolerance for number in numbers if number is not None)

    def __str__(self) -> str:
        images = f"{self.images} image{'s' if self.images > 1 else ''} of {self.height} x {self.width}"
        others = {"detections": self.detections, "masks": self.masks}
        parts = [f", {name} {number:.2g}" for name, number in others.items() if number is not None]
        return f"{images}: logits {self.logits:.2g}, boxes {self.boxes:.2g}{''.join(parts)}"


def check_batches(images: Sequence[Float[Tensor, "3 _ _"]]) -> list[ImageBatch]:
    """Return batches of several sizes: every image alone, the first one resized, and all of these in one batch."""
    size = [max(1, round(side * share)) for side, share in zip(images[0].shape[1:], (0.75, 0.625), strict=True)]
    singles = [*images, F.interpolate(images[0][None], size=size, mode="bilinear")[0]]
    return [ImageBatch.from_images(batch) for batch in (*([single] for single in singles), singles)]


def compare(model: nn.Module, run: Run, batch: ImageBatch, *, postprocess: AnyPostProcess | None) -> Comparison:
    """Run model and file on a batch and return their differences.

    Rounding may change the order of proposals with nearly equal scores. The model therefore continues with the
    proposals that the file has selected, whose scores are compared with those of its own selection.

    Args:
        model: The model, in evaluation mode on the CPU.
        run: Runs the file.
        batch: Images and padding mask.
        postprocess: The post-processing that the file contains.

    Raises:
        ExportError: If the file returns tensors of other shapes, or has another number of top-k than the model.
    """
    sizes = _unpadded_sizes(batch)
    inputs = {"images": batch.images, "padding_mask": batch.padding_mask}
    tensors, choices = run(inputs if postprocess is None else {**inputs, "image_sizes": sizes})
    with torch.no_grad(), _ForcedTopK(choices) as forced:
        outputs = model(*batch)
        of_logits = [_difference(tensors["pred_logits"], outputs["pred_logits"]), *forced.differences]
        of_boxes = [_difference(tensors["pred_boxes"], outputs["pred_boxes"])]
        of_detections = []
        of_masks = []
        if postprocess is not None:
            forced.differences.clear()
            selected = postprocess.select({"pred_logits": tensors["pred_logits"], "pred_boxes": tensors["pred_boxes"]})
            of_detections = [*_detection_differences(tensors, selected, sizes), *forced.differences]
            if "pred_masks" in outputs:
                of_masks.append(_difference(tensors["masks"], probable_masks(outputs["pred_masks"], selected)))
        elif "pred_masks" in outputs:
            of_masks.append(_difference(tensors["pred_masks"], outputs["pred_masks"]))
    if forced.left:
        raise ExportError(f"the exported file has {len(forced.left)} top-k more than the model")
    count, _, height, width = batch.images.shape
    return Comparison(
        images=count,
        height=height,
        width=width,
        logits=_largest(of_logits),
        boxes=_largest(of_boxes),
        detections=_largest(of_detections) if of_detections else None,
        masks=_largest(of_masks) if of_masks else None,
    )


class _ForcedTopK(TorchFunctionMode):
    """Makes every top-k select given indices, and records how the values differ from the largest ones."""

    def __init__(self, choices: Sequence[Int64[Tensor, "batch _chosen"]]) -> None:
        super().__init__()
        self.left = list(choices)
        self.differences: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return result
        if not self.left:
            raise ExportError("the exported file has fewer top-k than the model")
        indices = self.left.pop(0)
        values = args[0].gather(1, indices)
        self.differences.append(_difference(values, result.values))
        return torch.return_types.topk((values, indices))


def _detection_differences(
    tensors: Mapping[str, Tensor], selected: Selection, sizes: Int64[Tensor, "batch 2"]
) -> list[Tensor]:
    return [
        _difference(scale_boxes(tensors["boxes"], (1 / sizes)[:, None]), cxcywh_to_xyxy(selected.boxes)),
        _difference(tensors["scores"], selected.scores),
        _difference(tensors["labels"], selected.labels),
    ]


def _difference(got: Tensor, expected: Tensor) -> Float[Tensor, ""]:
    if got.shape != expected.shape:
        raise ExportError(
            f"the exported file gives a tensor {tuple(got.shape)} where the model's is {tuple(expected.shape)}"
        )
    return (got - expected).abs().amax().float()


def _largest(differences: Sequence[Float[Tensor, ""]]) -> float:
    # PyTorch's maximum propagates NaN.
    return torch.stack(list(differences)).amax().item()


def _unpadded_sizes(batch: ImageBatch) -> Int64[Tensor, "batch 2"]:
    """Return (height, width) of every image."""
    valid = ~batch.padding_mask
    return torch.stack([valid[:, :, 0].sum(1), valid[:, 0].sum(1)], dim=1)
