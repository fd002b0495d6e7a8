"""Detectors as graphs for any batch, height and width."""

import copy
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import OutputKind

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.models import Selection, SigmoidPostProcess, SoftmaxPostProcess

AnyPostProcess: TypeAlias = SigmoidPostProcess | SoftmaxPostProcess

# The sizes at which the model is traced. PyTorch specializes graphs for batches of one or two and for maps of one
# pixel, which levels of stride 256 would have in smaller images.
_BATCH, _HEIGHT, _WIDTH = 7, 288, 352


class ExportError(ValueError):
    """A model cannot be exported, or the exported file computes something else."""


def export_program(model: nn.Module, *, postprocess: AnyPostProcess | None = None) -> ExportedProgram:
    """Export a detector in evaluation mode as a graph for any batch, height and width.

    The program takes normalized `images` (batch, 3, height, width) and their `padding_mask` (batch, height, width),
    True at padded pixels. It returns a dict of `pred_logits`, `pred_boxes` and, of models with masks, `pred_masks`.

    With `postprocess`, the program also takes `image_sizes` (batch, 2), (height, width) in pixels. It also returns
    `boxes` (batch, detections, 4), xyxy in these pixels, `scores` and `labels`. In place of `pred_masks` it returns
    `masks` (batch, detections, mask_height, mask_width), probabilities over the padded images.

    Deformable attention is one operator, `deformdetr::ms_deform_attn`, which needs this library at run time and the
    device that the model is on. `decompositions` replaces it by PyTorch's own operators.

    Args:
        model: A module that returns `Predictions` for images and padding mask; it is not changed.
        postprocess: Post-processing to include.

    Raises:
        ExportError: If the model cannot be traced for all sizes.

    Examples:
        >>> from deformdetr import preset
        >>> program = export_program(preset("demo").build())  # doctest: +SKIP
        >>> predictions = program.module()(images, padding_mask)  # doctest: +SKIP
    """
    like = next(model.parameters(), torch.empty(0))
    # Copied, because the mode of the caller's model must not change.
    deployed = _Deployed(copy.deepcopy(model).eval(), postprocess).eval()
    images = like.new_zeros(_BATCH, 3, _HEIGHT, _WIDTH)
    inputs = [images, torch.zeros_like(images[:, 0], dtype=torch.bool)]
    dynamic = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}]
    if postprocess is not None:
        inputs.append(images.new_ones(_BATCH, 2, dtype=torch.int64))
        dynamic.append({0: Dim.DYNAMIC})
    try:
        with torch.no_grad():
            return export(deployed, tuple(inputs), dynamic_shapes=tuple(dynamic), strict=True)
    except RuntimeError as error:
        raise ExportError(f"{type(model).__name__} cannot be traced for all sizes: {error}") from error


def output_names(program: ExportedProgram, postprocess: AnyPostProcess | None) -> list[str]:
    """Return the names of the program's outputs, in order."""
    detections = ("pred_masks",) if postprocess is None else ("boxes", "scores", "labels", "masks")
    outputs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    # The last one is missing without a mask head.
    return ["pred_logits", "pred_boxes", *detections][: len(outputs)]


class _Deployed(nn.Module):
    """A model and its post-processing, without outputs that only training needs."""

    def __init__(self, model: nn.Module, postprocess: AnyPostProcess | None) -> None:
        super().__init__()
        self.model = model
        self.postprocess = postprocess

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding_mask: Bool[Tensor, "batch height width"],
        image_sizes: Int64[Tensor, "batch 2"] | None = None,
    ) -> dict[str, Tensor]:
        outputs = self.model(images, padding_mask)
        kept = {name: outputs[name] for name in ("pred_logits", "pred_boxes")}
        masks = outputs.get("pred_masks")
        if self.postprocess is None or image_sizes is None:
            return kept if masks is None else {**kept, "pred_masks": masks}
        selected = self.postprocess.select(outputs)
        boxes = scale_boxes(cxcywh_to_xyxy(selected.boxes.float()), image_sizes[:, None])
        found = {**kept, "boxes": boxes, "scores": selected.scores, "labels": selected.labels}
        return found if masks is None else {**found, "masks": probable_masks(masks, selected)}


def probable_masks(
    logits: Float[Tensor, "batch queries mask_height mask_width"], selected: Selection
) -> Float[Tensor, "batch detections mask_height mask_width"]:
    """Return the mask probabilities of the selected queries."""
    image = torch.arange(len(logits), device=logits.device)[:, None]
    return logits[image, selected.queries].float().sigmoid()
