"""The operator in terms of PyTorch's own operators, for formats without custom operators."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from deformdetr._dtypes import at_least_float32
from deformdetr.kernels._levels import Level, level_columns, place_levels
from deformdetr.kernels._op import Inputs
from deformdetr.kernels._sampling import locate_samples, mask_padding

Sampling: TypeAlias = Literal["grid_sample", "gather"]

Sample: TypeAlias = Callable[[Tensor, list[Level], Tensor, Tensor], Tensor]


def decompositions(sampling: Sampling = "grid_sample") -> dict[Any, Callable[..., Tensor]]:
    """Return replacements of the operator, for `ExportedProgram.run_decompositions`.

    They compute in float32 or float64: samples outside the levels or at NaN or infinite locations are
    zero, and pixels that are not sampled have no influence.

    Args:
        sampling: `grid_sample` samples level by level, `gather` reads the four pixels around all samples. Only `gather`
            supports `spatial_shapes` in a tensor.

    Raises:
        ValueError: If `sampling` is another value; when used, if `grid_sample` gets shapes in a tensor.

    Examples:
        >>> [str(operator) for operator in decompositions("gather")]
        ['deformdetr.ms_deform_attn.default']
    """
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}; got {sampling!r}")
    return decompose_by(_sample_grids if sampling == "grid_sample" else _sample_rows)


def decompose_by(sample: Sample) -> dict[Any, Callable[..., Tensor]]:
    """Return the replacement of the operator by a function of value, levels, sampling locations and weights."""
    return {torch.ops.deformdetr.ms_deform_attn.default: partial(_run_operator, sample)}


def _run_operator(sample: Sample, *arguments: Any) -> Tensor:
    """Compute the operator from its arguments; with reference points, from offsets and logits."""
    inputs = Inputs(*arguments)
    pyramid, locations, weights = inputs.pyramid(), inputs.locations, inputs.weights
    if inputs.references is not None:
        locations = locate_samples(inputs.references, locations, pyramid)
        weights = at_least_float32(weights).flatten(3).softmax(-1).view(weights.shape)
    wide = at_least_float32(mask_padding(inputs.value, inputs.padding_mask))
    levels = place_levels(pyramid, wide.shape[1])
    return sample(wide, levels, locations.to(wide.dtype), weights.to(wide.dtype)).to(inputs.value.dtype)


def _sample_grids(value: Tensor, levels: list[Any], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample the map of every level by `grid_sample`, with the heads in the batch."""
    if any(isinstance(level.height, Tensor) for level in levels):
        raise ValueError("grid_sample needs spatial_shapes as ints, got a tensor, which gather supports")
    batch, _, heads, channels = value.shape
    pixels = value.permute(0, 2, 3, 1).flatten(0, 1)
    grids = 2 * locations - 1
    # NaN and locations too far for integers become 3, which is more than a pixel outside of any map.
    grids = torch.where(grids.isnan(), 3.0, grids).clamp(-3, 3).transpose(1, 2).flatten(0, 1)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    parts = []
    for index, (height, width, start) in enumerate(levels):
        feature_map = pixels[:, :, start : start + height * width].reshape(batch * heads, channels, height, width)
        samples = F.grid_sample(feature_map, grids[:, :, index], align_corners=False)
        parts.append((samples * weights[:, :, :, index]).sum(-1))
    out = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return out.reshape(batch, heads * channels, -1).transpose(1, 2)


def _sample_rows(value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor) -> Tensor:
    """Gather the four pixels around every sample, of all levels at once, from a table of rows."""
    batch, pixels, heads, channels = value.shape
    # Pixels outside are read from a last row of zeros.
    outside = batch * pixels * heads
    table = torch.cat([value.flatten(0, 2), value.new_zeros(1, channels)])
    height, width, start = level_columns(levels, value.device)
    size = torch.stack([width, height], dim=-1)
    position = locations * size - 0.5
    # NaN and positions too far for integers become positions outside.
    position = torch.minimum(torch.where(position.isnan(), -2.0, position).clamp(min=-2), size + 1.0)
    corner = position.floor()
    right, bottom = (position - corner).unbind(-1)
    left, top = corner.long().unbind(-1)
    image = torch.arange(batch, device=value.device)[:, None, None, None, None] * pixels
    head = torch.arange(heads, device=value.device)[:, None, None]

    parts = []
    for line, share_y in ((top, 1 - bottom), (top + 1, bottom)):
        for column, share_x in ((left, 1 - right), (left + 1, right)):
            inside = (line >= 0) & (line < height) & (column >= 0) & (column < width)
            row = (image + start + line * width + column) * heads + head
            rows = table[torch.where(inside, row, outside)]
            parts.append(((weights * share_y * share_x)[..., None] * rows).sum((3, 4)))
    return (parts[0] + parts[1] + parts[2] + parts[3]).flatten(2)
