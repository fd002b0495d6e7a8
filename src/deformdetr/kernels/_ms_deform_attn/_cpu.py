"""The operator on CPUs, as sums over rows of a table: every output is a bag of weighted rows of `value`.

PyTorch's embedding bag reads each row where it lies, adds it up in registers and runs on all cores, where `grid_sample`
gathers along strided channels and writes every sample to memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deformdetr.kernels._ms_deform_attn._levels import Level


class _Bags(NamedTuple):
    """Which rows of `value` the (batch, query, head) bags sum up, and where samples lie between their four pixels."""

    row: Tensor
    """(batch, queries, heads, 4, levels, points), corners from left to right and top to bottom; those outside their
    level point to a row of zeros behind the table."""
    right: Tensor
    """(batch, queries, heads, levels, points), the share of the right pixels; the left ones have the rest."""
    bottom: Tensor
    """The same for the lower pixels."""
    sizes: Tensor
    """(levels, 1, 2), width and height."""


def forward(value: Tensor, levels: Sequence[Level], sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Compute what the reference computes, in float32."""
    batch, queries, heads = attention_weights.shape[:3]
    if not attention_weights.numel() or not value.numel():
        return value.new_zeros(batch, queries, heads * value.shape[3])
    bags = _fill_bags(value, levels, sampling_locations)
    out = _sum_bags(_table(value), bags.row, _corner_weights(bags, attention_weights))
    return out.view(batch, queries, -1).to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    levels: Sequence[Level],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what the backward of the reference computes, in float32."""
    if not attention_weights.numel() or not value.numel():
        return torch.zeros_like(value), torch.zeros_like(sampling_locations), torch.zeros_like(attention_weights)
    bags = _fill_bags(value, levels, sampling_locations)
    grad = grad_output.float().reshape(-1, value.shape[3])
    top_left, top_right, bottom_left, bottom_right = _dot_bags(_table(value), grad, bags.row).unbind(3)

    top = torch.lerp(top_left, top_right, bags.right)
    bottom = torch.lerp(bottom_left, bottom_right, bags.right)
    grad_weights = torch.lerp(top, bottom, bags.bottom)
    by_x = torch.lerp(top_right - top_left, bottom_right - bottom_left, bags.bottom)
    grad_locations = torch.stack([by_x, bottom - top], dim=-1) * bags.sizes * attention_weights.float().unsqueeze(-1)
    weights = _corner_weights(bags, attention_weights)
    grad_value = _spread_bags(grad, bags.row, weights, rows=value.numel() // value.shape[3])
    return (
        grad_value.view(value.shape).to(value.dtype),
        grad_locations.to(sampling_locations.dtype),
        grad_weights.to(attention_weights.dtype),
    )


def _fill_bags(value: Tensor, levels: Sequence[Level], sampling_locations: Tensor) -> _Bags:
    batch, pixels, heads, _ = value.shape
    zeros = batch * pixels * heads
    # Two row numbers are added below; the sum must not pass the integer's range.
    integer = torch.int32 if zeros < 2**30 else torch.int64
    sizes = torch.tensor([(width, height) for height, width, _ in levels], dtype=torch.float32).unsqueeze(1)
    position = sampling_locations.float() * sizes - 0.5
    # Two pixels outside counts like any place outside: it stands for NaN and infinity, and keeps integers in range.
    position = position.nan_to_num_(-2, -2, -2).clamp_(torch.tensor(-2.0), sizes + 1)
    corner = position.floor()
    right, bottom = (position - corner).unbind(-1)

    left, top = corner.to(integer).unbind(-1)
    width, height = sizes.to(integer).unbind(-1)
    level_start = torch.tensor([start for _, _, start in levels], dtype=integer).unsqueeze(1) * heads
    first = torch.arange(batch, dtype=integer).view(-1, 1, 1) * (pixels * heads) + torch.arange(heads, dtype=integer)
    first = first[..., None, None] + level_start

    # A line or a column outside is so far behind the table that the sum is, too, and is cut to the row of zeros.
    lines = [_inside(top + step, height, zeros, (top + step) * (width * heads) + first) for step in (0, 1)]
    columns = [_inside(left + step, width, zeros, (left + step) * heads) for step in (0, 1)]
    row = torch.empty(*left.shape[:3], 4, *left.shape[3:], dtype=integer)
    for index, (line, column) in enumerate((line, column) for line in lines for column in columns):
        torch.add(line, column, out=row[:, :, :, index])
    return _Bags(row.clamp_(max=zeros), right, bottom, sizes)


def _inside(position: Tensor, size: Tensor, outside: int, number: Tensor) -> Tensor:
    return torch.where((position >= 0) & (position < size), number, outside)


def _corner_weights(bags: _Bags, attention_weights: Tensor) -> Tensor:
    attention = attention_weights.float()
    lower = bags.bottom * attention
    weights = torch.empty(bags.row.shape)
    for index, share in ((0, attention - lower), (2, lower)):
        torch.mul(share, bags.right, out=weights[:, :, :, index + 1])
        torch.sub(share, weights[:, :, :, index + 1], out=weights[:, :, :, index])
    return weights


def _table(value: Tensor) -> Tensor:
    """Give all rows and one of zeros, so that what lies outside is read from there, whatever `value` holds."""
    rows = value.reshape(-1, value.shape[3]).float()
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _sum_bags(table: Tensor, row: Tensor, weights: Tensor) -> Tensor:
    """Give (bags, channels), the weighted sum of every bag's rows."""
    size = row.shape[3:].numel()
    return torch.nn.functional.embedding_bag(
        row.view(-1, size), table, per_sample_weights=weights.view(-1, size), mode="sum"
    )


def _dot_bags(table: Tensor, grad: Tensor, row: Tensor) -> Tensor:
    """Give the inner product of every row in a bag with the gradient of the bag."""
    size = row.shape[3:].numel()
    bag = torch.arange(len(grad), dtype=row.dtype).repeat_interleave(size)
    offsets = torch.arange(0, row.numel(), size, dtype=row.dtype)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, row.flatten(), offsets, bag, 0
    )
    return dots.view(row.shape)


def _spread_bags(grad: Tensor, row: Tensor, weights: Tensor, rows: int) -> Tensor:
    """Add every bag's weighted gradient to its rows: once the entries are sorted by row, a sum of bags again."""
    size = row.shape[3:].numel()
    sorted_row, order = row.flatten().sort(stable=True)
    # The last bag collects what fell outside.
    offsets = torch.searchsorted(sorted_row, torch.arange(rows + 1, dtype=row.dtype))
    weights = weights.flatten()[order]
    spread = torch.nn.functional.embedding_bag(order // size, grad, offsets, per_sample_weights=weights, mode="sum")
    return spread[:rows]
