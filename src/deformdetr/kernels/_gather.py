"""The operator on CPUs without Numba, from PyTorch's own operations.

For every head, a query is a bag of weighted pixels in the sense of `torch.nn.EmbeddingBag`, four pixels per sample.
Embedding bags sum them. Sampled products of sparse matrices are their inner products with a gradient. Embedding bags
over the same entries, sorted by pixel, sum gradients into pixels. Images are processed one by one, with as many heads
at once as `SAMPLES_AT_ONCE` allows, which bounds the memory. Sums have a fixed order.
"""

import functools
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int32
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from deformdetr.kernels._levels import Level
from deformdetr.kernels._reference import Locations, Output, Value, Weights

# With more samples, intermediate results would not fit the cache of a core.
SAMPLES_AT_ONCE = 2**17


class Samples(NamedTuple):
    """Sampled pixels: one bag for every query and head of a part.

    Along an axis of `n` pixels, a location `l` lies at `u = l n - 1/2`. A sample reads pixel `i`, which is `floor(u)`
    clamped to `0 ... n - 2`, and pixel `i + 1`. The share of pixel `j` is `max(0, 1 - |u - j|)`: the bilinear weight
    between two pixels and between the last pixel and the outside, and zero beyond. The four pixels of a sample are
    upper left, upper right, lower left and lower right.

    Attributes:
        row: The pixels as rows of (pixels * heads).
        near: Distance from pixel `i`, (x, y): `u - i`.
        far: Distance from pixel `i + 1`; minus infinity if there is none, on an axis of a single pixel.
        size: Width and height of the samples' levels.
    """

    row: Int32[Tensor, "bags 4 samples"]
    near: Float32[Tensor, "2 bags samples"]
    far: Float32[Tensor, "2 bags samples"]
    size: Float32[Tensor, "2 1 samples"]

    def shares(self) -> tuple[Float32[Tensor, "2 bags samples"], Float32[Tensor, "2 bags samples"]]:
        """Return the shares of near and of far pixels, (x, y)."""
        near, far = (distance.abs().neg_().add_(1).relu_() for distance in (self.near, self.far))
        return near, far

    def slopes(self) -> tuple[Float32[Tensor, "2 bags samples"], Float32[Tensor, "2 bags samples"]]:
        """Return the derivatives of touched pixels' shares by distance; at jumps, the derivatives from the right."""
        one = self.near.new_ones(())
        near, far = (torch.where(distance < 0, one, -one) for distance in (self.near, self.far))
        return near, far

    def touched(self) -> Bool[Tensor, "bags 4 samples"]:
        """Return which pixels have a share, or a share of zero that grows to the right or below."""
        (left, upper), (right, lower) = ((distance >= -1) & (distance < 1) for distance in (self.near, self.far))
        return torch.stack([y & x for y in (upper, lower) for x in (left, right)], 1)


def forward(value: Value, levels: Sequence[Level], sampling_locations: Locations, attention_weights: Weights) -> Output:
    """Compute what the reference computes, in float32."""
    batch, queries, heads = attention_weights.shape[:3]
    out = value.new_zeros(batch, queries, heads, value.shape[3])
    for part in _split(value, attention_weights):
        samples = _locate(levels, sampling_locations[part])
        weights = _weigh(*samples.shares(), _as_bags(attention_weights[part]))
        rows = _as_rows(value[part])
        sums = _sum_rows(rows, samples.row, weights)
        if not sums.sum().isfinite():
            # Weights of zero do not hide NaN and infinity: pixels that are not touched read zeros instead.
            row = torch.where(samples.touched(), samples.row, len(rows))
            sums = _sum_rows(pad(rows, (0, 0, 0, 1)), row, weights)
        out[part] = sums.view(queries, -1, value.shape[3])
    return out.flatten(2)


def backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Value,
    levels: Sequence[Level],
    sampling_locations: Locations,
    attention_weights: Weights,
    needs: tuple[bool, bool, bool],
) -> tuple[Value | None, Locations | None, Weights | None]:
    """Compute what the backward of the reference computes, in float32; None for a gradient that is not needed."""
    has_samples = bool(value.numel() and attention_weights.numel())
    make = torch.empty_like if has_samples else torch.zeros_like
    grad_value, grad_locations, grad_weights = (
        make(like, memory_format=torch.contiguous_format) if need else None
        for like, need in zip((value, sampling_locations, attention_weights), needs, strict=True)
    )
    grad_output = grad_output.view(*attention_weights.shape[:3], value.shape[3])
    for part in _split(value, attention_weights):
        samples = _locate(levels, sampling_locations[part])
        attention = _as_bags(attention_weights[part])
        grad, touched = _as_rows(grad_output[part]), samples.touched()
        near, far = samples.shares()
        if grad_value is not None:
            rows = value[part].shape[:2].numel()
            row = torch.where(touched, samples.row, rows)
            grad_value[part] = _sum_into_rows(grad, row, _weigh(near, far, attention), rows).view_as(value[part])
        if grad_locations is None and grad_weights is None:
            continue
        # Weights of zero do not hide NaN and infinity.
        dots = _dot_rows(grad, _as_rows(value[part]), samples.row).where(touched, 0)
        upper_left, upper_right, lower_left, lower_right = dots.movedim(1, 0).contiguous()
        left = _mix(upper_left, lower_left, near[1], far[1])
        right = _mix(upper_right, lower_right, near[1], far[1])
        if grad_weights is not None:
            grad_weights[part] = _mix(left, right, near[0], far[0]).view_as(grad_weights[part])
        if grad_locations is not None:
            upper = _mix(upper_left, upper_right, near[0], far[0])
            lower = _mix(lower_left, lower_right, near[0], far[0])
            near_slope, far_slope = samples.slopes()
            for axis, pair in enumerate(((left, right), (upper, lower))):
                slope = _mix(*pair, near_slope[axis], far_slope[axis]).mul_(attention).mul_(samples.size[axis])
                grad_locations[part][..., axis] = slope.view_as(attention_weights[part])
    return grad_value, grad_locations, grad_weights


def _split(value: Value, attention_weights: Weights) -> Iterator[tuple[int, slice, slice]]:
    """Yield images, with some heads of each, as indices into any of the operator's tensors."""
    if not value.numel() or not attention_weights.numel():
        return
    batch, _, heads = attention_weights.shape[:3]
    # Rows are numbered in int32.
    if value.shape[1] >= 2**31:
        raise ValueError(f"without Numba, there may be fewer than 2^31 pixels, but value holds {value.shape[1]}")
    at_once = max(1, min(SAMPLES_AT_ONCE // attention_weights[0, :, 0].numel(), (2**31 - 1) // value.shape[1]))
    for image, first in itertools.product(range(batch), range(0, heads, at_once)):
        yield image, slice(None), slice(first, first + at_once)


def _locate(levels: Sequence[Level], sampling_locations: Float[Tensor, "queries heads levels points 2"]) -> Samples:
    """Return the pixels of all samples."""
    queries, heads, _, points = sampling_locations.shape[:4]

    def spread(numbers: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
        """Repeat the numbers of every level, in one or more rows, for each of its points."""
        return torch.tensor(numbers, dtype=dtype, device=sampling_locations.device).repeat_interleave(points, 1)

    heights, widths, starts = zip(*levels, strict=True)
    sizes = (widths, heights)
    is_empty = spread([[not height * width for height, width, _ in levels]], torch.bool)
    # Samples of an empty level touch no pixel, but their rows must exist nevertheless.
    size = spread(sizes, torch.float32).masked_fill_(is_empty, torch.nan).unsqueeze(1)
    last = spread([[max(n - 2, 0) for n in axis] for axis in sizes], torch.float32)
    last = last.masked_fill_(is_empty, 0).unsqueeze(1)
    first = spread([[start * heads for start in starts]], torch.int32).masked_fill_(is_empty, 0)
    stride = spread([[heads] * len(levels), [width * heads for width in widths]], torch.int32).unsqueeze(1)
    gap = torch.full_like(size, torch.inf).masked_fill_(size > 1, 1)
    right, lower = torch.where(size > 1, stride, 0)
    head = torch.arange(heads, dtype=torch.int32, device=sampling_locations.device).repeat(queries).unsqueeze(1)

    planes = sampling_locations.flatten(2, 3).flatten(0, 1).movedim(-1, 0)
    # Into a new tensor of two planes: x and y would otherwise stay interleaved.
    position = torch.mul(planes, size, out=torch.empty(planes.shape, dtype=torch.float32, device=planes.device))
    position.sub_(0.5)
    # NaN lies outside, like infinity.
    position.nan_to_num_(nan=-2.0)
    pixel = position.clamp(torch.zeros_like(last), last).to(torch.int32)
    near = position.sub_(pixel)
    x, y = pixel.mul_(stride)
    row = x.add_(y).add_(first).add_(head)
    rows = torch.stack([row, row + right, row + lower, row + (lower + right)], 1)
    return Samples(rows, near, near - gap, size.nan_to_num_(0))


def _weigh(
    near: Float32[Tensor, "2 bags samples"],
    far: Float32[Tensor, "2 bags samples"],
    attention: Float32[Tensor, "bags samples"],
) -> Float32[Tensor, "bags 4 samples"]:
    """Return the weight of every pixel of every sample."""
    return torch.stack([y * x for y in (near[1] * attention, far[1] * attention) for x in (near[0], far[0])], 1)


def _mix(one: Tensor, other: Tensor, weight: Tensor, other_weight: Tensor) -> Tensor:
    return (one * weight).addcmul_(other, other_weight)


def _sum_rows(
    rows: Float32[Tensor, "rows channels"],
    row: Int32[Tensor, "bags 4 samples"],
    weights: Float32[Tensor, "bags 4 samples"],
) -> Float32[Tensor, "bags channels"]:
    """Sum the weighted rows of every bag."""
    return embedding_bag(row.flatten(1), rows, per_sample_weights=weights.flatten(1), mode="sum")


def _dot_rows(
    bags: Float32[Tensor, "bags channels"],
    rows: Float32[Tensor, "rows channels"],
    row: Int32[Tensor, "bags 4 samples"],
) -> Float32[Tensor, "bags 4 samples"]:
    """Compute the inner product of every bag's vector with each of its rows."""
    entries = row.shape[1:].numel()
    # PyTorch expects no more entries per row than columns, and drops others.
    rows = pad(rows, (0, 0, 0, max(0, entries - len(rows))))
    starts = torch.arange(0, row.numel() + 1, entries, dtype=torch.int32, device=row.device)
    # Zeros, because PyTorch adds `beta` times the given values.
    dots = torch.zeros_like(row, dtype=torch.float32)
    _silence_beta_warning()
    matrix = torch.sparse_csr_tensor(
        starts, row.flatten(), dots.view(-1), (len(bags), len(rows)), device=row.device, check_invariants=False
    )
    torch.sparse.sampled_addmm(matrix, bags, rows.t(), beta=0, out=matrix)
    return dots


@functools.cache
def _silence_beta_warning() -> None:
    """Suppress the warning that sparse CSR tensors are in beta, which PyTorch issues once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.float32, device="cpu", check_invariants=False)


def _sum_into_rows(
    bags: Float32[Tensor, "bags channels"],
    row: Int32[Tensor, "bags 4 samples"],
    weights: Float32[Tensor, "bags 4 samples"],
    rows: int,
) -> Float32[Tensor, "rows channels"]:
    """Sum the weighted vectors of all bags into each of their rows, in the order of the bags.

    Entries of row `rows` are left out.
    """
    row = row.flatten()
    starts = pad(torch.bincount(row, minlength=rows + 1)[:rows].cumsum(0, dtype=torch.int32), (1, 0))
    # Sorting half the bits takes half the time.
    order = (row.to(torch.int16) if rows < 2**15 else row).argsort(stable=True)
    order = order[: int(starts[-1])]
    bag = order.to(torch.int32).floor_divide_(weights.shape[1:].numel())
    weight = weights.flatten().index_select(0, order)
    return embedding_bag(bag, bags, starts, per_sample_weights=weight, mode="sum", include_last_offset=True)


def _as_rows(part: Float[Tensor, "along heads channels"]) -> Float32[Tensor, "rows channels"]:
    return part.float().reshape(-1, part.shape[2])


def _as_bags(attention: Float[Tensor, "queries heads levels points"]) -> Float32[Tensor, "bags samples"]:
    return attention.float().flatten(2).flatten(0, 1)
