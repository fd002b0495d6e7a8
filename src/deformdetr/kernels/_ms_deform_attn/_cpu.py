"""The operator on CPUs, as sums over rows of a table: every output is a bag of weighted rows of `value`.

PyTorch's embedding bag reads each row where it lies, adds it up in registers and runs on all cores, where `grid_sample`
gathers along strided channels and writes every sample to memory. The backward is two products with the sparse matrix of
bags by rows: one of its entries, one with its transpose. What else was tried is in `docs/cpu.md`.

A sample near a border reads a pixel more than it lies between, with weight zero. It matters where NaN or infinity is
stored in that pixel; so what does not come out finite is computed again, by the reference.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import BFloat16, Float, Float32, Int32
from torch import Tensor
from torch.nn.functional import embedding_bag

from deformdetr.kernels._ms_deform_attn import _reference
from deformdetr.kernels._ms_deform_attn._cpu_memory import empty_on_large_pages
from deformdetr.kernels._ms_deform_attn._cpu_samples import Block, make_block
from deformdetr.kernels._ms_deform_attn._cpu_sparse import add_up, dot_rows
from deformdetr.kernels._ms_deform_attn._levels import Level

# Samples worked on at a time: enough to occupy the cores, few enough to stay in their caches.
FEWEST_SAMPLES, MOST_SAMPLES = 2**14, 2**17
# Numbers copied at a time from a value that is not read in place: 6 MiB of them.
MOST_COPIED = 3 * 2**19
# Numbers of a bfloat16 value for each sample, beyond which reading rows twice costs less than converting all.
MANY = 64


def forward(
    value: Float[Tensor, "batch pixels heads channels"],
    levels: Sequence[Level],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Compute what the reference computes, in float32."""
    batch, queries, heads, n_levels, points = attention_weights.shape
    out = value.new_zeros(batch, queries, heads, value.shape[3], dtype=torch.float32)
    if not value.numel() or not attention_weights.numel():
        return out.flatten(2).to(value.dtype)
    if _have_no_pixels(levels):
        return _reference.forward(value, levels, sampling_locations, attention_weights)
    # No more than half of the samples and a sixth of the value, for less than a third of the reference's memory.
    samples = min(MOST_SAMPLES, max(FEWEST_SAMPLES, attention_weights.numel() // 2))
    copied = max(min(MOST_COPIED, value.numel() // 6), 4 * attention_weights[0].numel())
    dtypes = (torch.float32, torch.bfloat16) if value.numel() > MANY * attention_weights.numel() else (torch.float32,)
    in_place = value.dtype in dtypes and value.is_contiguous()
    per_head = n_levels * points
    pairs = max(heads, samples // (queries * per_head))
    for images, some_heads in _split_value(value, pairs, value.numel() if in_place else copied):
        part = value[images, :, some_heads]
        rows = part.view(-1, part.shape[3]) if in_place else _rows(part)
        block = make_block(levels, points, part.shape)
        for some_queries in _split(queries, samples // (part.shape[0] * part.shape[2] * per_head)):
            at = images, some_queries, some_heads
            locations, attention = sampling_locations[at], attention_weights[at]
            if not _sum_bags(rows, locations, attention, block, out[at]):
                _repair(out[at], part, levels, locations, attention)
    return out.flatten(2).to(value.dtype)


def backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Float[Tensor, "batch pixels heads channels"],
    levels: Sequence[Level],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    needs: tuple[bool, bool, bool],
) -> tuple[
    Float[Tensor, "batch pixels heads channels"] | None,
    Float[Tensor, "batch queries heads levels points 2"] | None,
    Float[Tensor, "batch queries heads levels points"] | None,
]:
    """Compute what the backward of the reference computes, in float32; None for a gradient that is not needed."""
    if _have_no_pixels(levels):
        exact = _reference.backward(grad_output, value, levels, sampling_locations, attention_weights)
        by_value, by_locations, by_weights = (grad if need else None for grad, need in zip(exact, needs, strict=True))
        return by_value, by_locations, by_weights
    is_empty = not value.numel() or not attention_weights.numel()
    make = torch.zeros_like if is_empty else empty_on_large_pages
    by_value, by_locations, by_weights = (
        make(like) if need else None
        for like, need in zip((value, sampling_locations, attention_weights), needs, strict=True)
    )
    if is_empty:
        return by_value, by_locations, by_weights
    queries, points = attention_weights.shape[1], attention_weights.shape[4]
    grad_output = grad_output.reshape(*attention_weights.shape[:3], -1)
    copied = value.numel() if value.dtype == torch.float32 and value.is_contiguous() else MOST_COPIED
    for images, heads in _split_value(value, MOST_SAMPLES // attention_weights[0, :, 0].numel(), copied):
        at = images, slice(None), heads
        inputs = value[at], sampling_locations[at], attention_weights[at]
        out = tuple(None if grad is None else grad[at] for grad in (by_value, by_locations, by_weights))
        block = make_block(levels, points, inputs[0].shape, queries=queries)
        if not _differentiate(grad_output[at], *inputs, block, out):
            exact = _reference.backward(grad_output[at].flatten(2), inputs[0], levels, *inputs[1:])
            for tensor, grad in zip(out, exact, strict=True):
                if tensor is not None:
                    tensor.copy_(grad)
    return by_value, by_locations, by_weights


def _sum_bags(
    rows: Float[Tensor, "rows channels"],
    locations: Float[Tensor, "images queries heads levels points 2"],
    attention: Float[Tensor, "images queries heads levels points"],
    block: Block,
    out: Float32[Tensor, "images queries heads channels"],
) -> bool:
    """Add the weighted rows of every bag to its zeros in `out`, and tell whether all sums are finite."""
    size = attention.shape[3:].numel()
    first, offset = block.locate(locations.float().flatten(2, 4))
    near, far = block.shares(offset)
    # A fifth of the memory in use.
    del offset
    row = ((first + step).view(-1, size) for step in block.corners)
    weight = (corner.view(-1, size) for corner in _corner_weights(near, far, attention.float().flatten(2)))
    if rows.dtype == torch.float32:
        for entries, shares in zip(row, weight, strict=True):
            out += embedding_bag(entries, rows, per_sample_weights=shares, mode="sum").view(out.shape)
    else:
        out += _sum_bfloat16(rows, torch.cat(list(row), 1), torch.cat(list(weight), 1)).view(out.shape)
    return are_finite(out)


def _repair(
    out: Float32[Tensor, "images queries heads channels"],
    value: Float[Tensor, "images pixels heads channels"],
    levels: Sequence[Level],
    locations: Float[Tensor, "images queries heads levels points 2"],
    attention: Float[Tensor, "images queries heads levels points"],
) -> None:
    """Compute the queries that are not finite again, by the reference; no query depends on what others sample."""
    for image, sums in enumerate(out):
        broken = ~sums.isfinite().flatten(1).all(1)
        some = slice(image, image + 1), broken
        exact = _reference.forward(value[image : image + 1], levels, locations[some], attention[some])
        sums[broken] = exact.view(-1, *sums.shape[1:]).float()


def _sum_bfloat16(
    rows: BFloat16[Tensor, "rows channels"], row: Int32[Tensor, "bags entries"], weight: Float32[Tensor, "bags entries"]
) -> BFloat16[Tensor, "bags channels"]:
    """Give the weighted sum of every bag's rows, formed in float32 and rounded once.

    Weights have to be bfloat16 like the rows; each is the sum of two of them, which keeps 16 of its 24 bits.
    """
    coarse = weight.bfloat16()
    weight = torch.cat([coarse, (weight - coarse).bfloat16()], 1)
    return embedding_bag(torch.cat([row, row], 1), rows, per_sample_weights=weight, mode="sum")


def _differentiate(
    grad_output: Float[Tensor, "images queries heads channels"],
    value: Float[Tensor, "images pixels heads channels"],
    locations: Float[Tensor, "images queries heads levels points 2"],
    attention: Float[Tensor, "images queries heads levels points"],
    block: Block,
    out: tuple[Tensor | None, ...],
) -> bool:
    """Fill the gradients by value, locations and weights, and tell whether all that they consist of is finite."""
    by_value, by_locations, by_weights = out
    grad = _rows(grad_output)
    weights = attention.float().flatten(2)
    first, offset = block.locate(locations.float().flatten(2, 4))
    near, far = block.shares(offset)
    if not are_finite(grad, weights, near):
        return False
    if by_locations is not None or by_weights is not None:
        columns, lines = _weigh_dots(grad, _rows(value), first, near, far, block)
        if not are_finite(columns, lines):
            return False
        if by_weights is not None:
            by_weights.copy_((columns[0] * near[0]).addcmul_(columns[1], far[0]).view(attention.shape))
        if by_locations is not None:
            near_slope, far_slope = block.slopes(offset)
            for axis, (from_near, from_far) in enumerate((columns, lines)):
                slope = (near_slope[axis] * from_near).addcmul_(far_slope[axis], from_far).mul_(weights)
                by_locations[..., axis] = slope.view(attention.shape)
        # The memory of what follows.
        del columns, lines
    if by_value is not None:
        in_place = by_value.is_contiguous() and by_value.dtype == torch.float32
        sums = (
            by_value
            if in_place
            else torch.empty_like(by_value, dtype=torch.float32, memory_format=torch.contiguous_format)
        )
        corners = list(_corner_weights(near, far, weights))
        add_up(grad, first, corners, block, sums.view(-1, grad.shape[1]))
        by_value.copy_(sums)
    return True


def _weigh_dots(
    grad: Float32[Tensor, "bags channels"],
    rows: Float32[Tensor, "rows channels"],
    first: Int32[Tensor, "images queries samples"],
    near: Float32[Tensor, "2 images queries samples"],
    far: Float32[Tensor, "2 images queries samples"],
    block: Block,
) -> tuple[Float32[Tensor, "2 images queries samples"], Float32[Tensor, "2 images queries samples"]]:
    """Give what the derivatives of a sample's weight and location are made of.

    With `d` the inner products of a sample's four pixels with the gradient of its bag, its weight has the derivative
    `near_x (near_y d00 + far_y d10) + far_x (near_y d01 + far_y d11)`, the sum over columns, or over lines likewise;
    its location the same with the slopes of `near` and `far` along one axis in place of their values, times its weight.

    Returns:
        The terms in parentheses: of the left and the right column, and of the upper and the lower line.
    """
    # The pixels of a sample next to each other, so that a page of memory is looked up once for two of them.
    row = torch.stack([first + step for step in block.corners], -1).view(len(grad), -1)
    dots = dot_rows(grad, rows, row).view(-1, 4).t().reshape(2, 2, *first.shape)
    columns = (dots[0] * near[1]).addcmul_(dots[1], far[1])
    lines = (dots[:, 0] * near[0]).addcmul_(dots[:, 1], far[0])
    return columns, lines


def _corner_weights(near: Tensor, far: Tensor, attention: Tensor) -> Iterator[Tensor]:
    """Give the weights of the upper left, upper right, lower left and lower right pixels; uses up the shares."""
    for y in (near[1].mul_(attention), far[1].mul_(attention)):
        for x in (near[0], far[0]):
            yield y * x


def _have_no_pixels(levels: Sequence[Level]) -> bool:
    """Tell whether some level has none, where there is nothing to read with weight zero."""
    return any(level.height < 1 or level.width < 1 for level in levels)


def _split_value(value: Tensor, pairs: int, copied: int) -> Iterator[tuple[slice, slice]]:
    """Split images and heads into so many pairs at a time, and into fewer if those have more numbers to be copied."""
    batch, pixels, heads, channels = value.shape
    # Rows are numbered in int32.
    pairs = min(pairs, (2**31 - 1) // pixels, copied // (pixels * channels))
    for images in _split(batch, pairs // heads):
        for some_heads in _split(heads, pairs):
            yield images, some_heads


def _split(length: int, size: int) -> Iterator[slice]:
    """Cut into equal parts of that size at most, but of one at least; the last may be shorter."""
    parts = math.ceil(length / max(1, size))
    size = math.ceil(length / parts)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _rows(part: Float[Tensor, "images along heads channels"]) -> Float32[Tensor, "rows channels"]:
    """Give images, pixels or queries, and heads as float32 rows: themselves, if that is what they are."""
    return part.contiguous().float().view(-1, part.shape[3])


def are_finite(*tensors: Tensor) -> bool:
    """Tell whether all numbers are; huge ones may count as infinite."""
    return all(math.isfinite(tensor.sum().item()) for tensor in tensors)
