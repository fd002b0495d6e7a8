"""Sampling locations and attention weights from what a layer predicts: offsets from reference points, and logits."""

import torch
from jaxtyping import Float
from torch import Tensor

from deformdetr._dtypes import at_least_float32
from deformdetr._tracing import fixed_size, is_tracing
from deformdetr.kernels._levels import Pyramid, level_sizes


def locate_samples(
    reference_points: Float[Tensor, "#batch queries #levels coordinates"],
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"],
    pyramid: Pyramid,
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """Return (x, y) of all samples as fractions of each level, in float32 or better."""
    levels, points = sampling_offsets.shape[3:5]

    def spread(coordinates: Tensor) -> Tensor:
        """Repeat (..., #levels, 1, 2) for all levels and points in one flat axis: broadcasting pairs is slow."""
        return coordinates.expand(*coordinates.shape[:-3], levels, points, 2).flatten(-3)

    references = at_least_float32(reference_points)[:, :, None, :, None]
    offsets = at_least_float32(sampling_offsets).flatten(3)
    if fixed_size(references.shape[-1]) == 2:
        sizes = spread(level_sizes(pyramid, offsets))
        centers = spread(references)
        # PyTorch's older ONNX exporter, which traces, has no `addcdiv`.
        locations = centers + offsets / sizes if is_tracing() else torch.addcdiv(centers, offsets, sizes)
    else:
        half_sizes = spread(references[..., 2:]) * (0.5 / max(fixed_size(points), 1))
        locations = torch.addcmul(spread(references[..., :2]), offsets, half_sizes)
    return locations.view(*sampling_offsets.shape[:3], levels, points, 2)


def normalize_attention(
    logits: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads levels points"]:
    """Return the softmax over levels and points together, in float32 or better."""
    flat = at_least_float32(logits.flatten(3))
    if flat.device.type == "cpu" and fixed_size(flat.shape[3]) < 16 and not torch.compiler.is_compiling():
        # For fewer than 16 entries PyTorch's softmax over the last axis is several times slower than over the first.
        return flat.movedim(3, 0).softmax(0).movedim(0, 3).reshape(logits.shape)
    return flat.softmax(3).view(logits.shape)


def mask_padding(
    value: Float[Tensor, "batch pixels heads channels"], padding_mask: Tensor | None
) -> Float[Tensor, "batch pixels heads channels"]:
    """Return the value with zeros at padded pixels, where the mask is True."""
    return value if padding_mask is None else value.masked_fill(padding_mask[:, :, None, None], 0)
