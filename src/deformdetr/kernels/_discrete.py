"""Discrete sampling: one pixel per sample, from operations of PyTorch that autograd and exporters see."""

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding

from deformdetr._dtypes import at_least_float32
from deformdetr.kernels._levels import Level, level_columns
from deformdetr.kernels._reference import Locations, Output, Value, Weights


def forward(value: Value, levels: Sequence[Level], sampling_locations: Locations, attention_weights: Weights) -> Output:
    """Sum one pixel per sample, weighted by attention, over levels and points.

    A location `l` along an axis of `n` pixels reads pixel `floor(l n + 1/2)`, clamped to `0 ... n - 1`. NaN counts as
    0. Samples in empty levels are zero. Sums are formed in float32 at least. Locations have no gradient.
    """
    batch, pixels, heads, channels = value.shape
    if not value.numel():
        return value.new_zeros(batch, attention_weights.shape[1], heads * channels)
    height, width, start = level_columns(levels, value.device)
    size = torch.stack([width, height], dim=-1)
    position = (at_least_float32(sampling_locations.detach()) * size + 0.5).nan_to_num()
    # Clamped before the conversion, which is undefined beyond the range of integers.
    column, line = torch.minimum(position.clamp(min=0), size - 1).long().unbind(-1)
    image = torch.arange(batch, device=value.device)[:, None, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None, None]
    is_level = height * width > 0
    row = torch.where(is_level, (image * pixels + start + line * width + column) * heads + head, 0)
    # Not by `index_select`, whose gradient on GPUs has no fixed order.
    samples = at_least_float32(embedding(row, value.flatten(0, 2)))
    weights = torch.where(is_level, attention_weights, 0).to(samples.dtype)
    return (weights[..., None] * samples).sum((3, 4)).flatten(2).to(value.dtype)
