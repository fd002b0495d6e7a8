"""The operator on CPUs as compilers like it: they fuse the arithmetic of rows and weights around two opaque sums.

It takes all samples at once, which pays as long as they are few: as a decoder has.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor
from torch.nn.functional import embedding_bag

from deformdetr.kernels._ms_deform_attn._cpu import MOST_SAMPLES, are_finite
from deformdetr.kernels._ms_deform_attn._cpu_memory import empty_on_large_pages
from deformdetr.kernels._ms_deform_attn._cpu_samples import Block, make_block
from deformdetr.kernels._ms_deform_attn._cpu_sparse import add_up, dot_rows
from deformdetr.kernels._ms_deform_attn._levels import Level, Pyramid, read_levels, trace_levels


def serves(value: Tensor, pyramid: Pyramid, attention_weights: Tensor) -> bool:
    """Tell whether a compiler is at work to which this form is of use."""
    return (
        _is_compiling()
        and value.device.type == "cpu"
        and value.dtype == torch.float32
        and pyramid.on_device is None
        and min(pyramid.on_host) >= 1
        and value.numel() >= 1
        and 1 <= attention_weights.numel() <= MOST_SAMPLES
        # Rows are numbered in int32.
        and value.shape[0] * value.shape[1] * value.shape[2] < 2**31
    )


def _is_compiling() -> bool:
    """Tell so of this machine alone: exported programs, which may run on others, keep the whole operator."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def attend(
    value: Float32[Tensor, "batch pixels heads channels"],
    pyramid: Pyramid,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float32[Tensor, "batch queries heads*channels"]:
    """Compute what the operator computes."""
    heads, _, points = attention_weights.shape[2:]
    # Kernels that work out locations anew may round them otherwise, and then disagree on the pixel.
    locations = materialize_op(sampling_locations.float().flatten(2, 4).movedim(-1, 0))
    levels = trace_levels(pyramid, value.shape[1])
    columns = _spread_levels(levels, heads, points, value.device)
    first, weights = _weigh_pixels(locations, columns, attention_weights.float().flatten(2), value.shape)
    out: Tensor = sum_rows_op(value.contiguous(), first, weights, pyramid.on_host, pyramid.repeats)
    return out


def _spread_levels(
    levels: Sequence[Level], heads: int, points: int, device: torch.device
) -> Int32[Tensor, "7 samples"]:
    """Give for every sample's level its width and height, its last pixels that have a next one, if any, and its start.

    All axes are one, and every number is stored for every sample, so that a compiler goes through them in vectors.
    """
    rows: list[tuple[Any, ...]] = [
        # An axis of one pixel has no next one.
        (width, height, max(width - 2, 0), max(height - 2, 0), min(width - 1, 1), min(height - 1, 1), start)
        for height, width, start in levels
    ]
    # Filled one by one, since they may be the compiler's symbols.
    numbers = [torch.full((), each, dtype=torch.int32, device=device) for row in rows for each in row]
    spread: Tensor = materialize_op(
        torch.stack(numbers).view(len(levels), -1).t()[:, None, :, None].expand(-1, heads, -1, points)
    )
    return spread.flatten(1)


def _weigh_pixels(
    locations: Float32[Tensor, "2 batch queries samples"],
    columns: Int32[Tensor, "7 samples"],
    attention: Float32[Tensor, "batch queries samples"],
    shape: Sequence[int],
) -> tuple[Int32[Tensor, "batch queries samples"], Float32[Tensor, "4 batch queries samples"]]:
    """Give the row of the upper left pixel of every sample, and the weights of the four pixels.

    The pixels are those of `Block`: moved into the level, where those that a sample does not touch have no weight.
    """
    batch, pixels, heads, _ = shape
    width, height, last_x, last_y, has_right, has_lower, start = columns

    def along(axis: int, size: Tensor, last: Tensor, has_far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the first pixel along an axis, and the shares of that and of the next."""
        position = locations[axis] * size.float() - 0.5
        # NaN goes to zero.
        first = torch.where(position > 0, position, 0.0).minimum(last.float()).trunc().detach()
        near, far = _shares(position - first)
        return first.int(), near, far * has_far.float()

    x, left, right = along(0, width, last_x, has_right)
    y, upper, lower = along(1, height, last_y, has_lower)
    image = torch.arange(batch, dtype=torch.int32, device=locations.device)[:, None, None] * pixels
    head = torch.arange(heads, dtype=torch.int32, device=locations.device).repeat_interleave(width.shape[0] // heads)
    first = (image + start + y * width + x) * heads + head
    upper, lower = upper * attention, lower * attention
    return first, torch.stack([left * upper, right * upper, left * lower, right * lower])


def _shares(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Give the shares of a pixel and the next, written so that autograd differentiates them from the right."""
    between = (offset >= 0) & (offset < 1)
    before, behind = (offset >= -1) & (offset < 0), (offset >= 1) & (offset < 2)
    near = torch.where(between, 1 - offset, torch.where(before, 1 + offset, 0.0))
    far = torch.where(between, offset, torch.where(behind, 2 - offset, 0.0))
    return near, far


def _materialize(tensor: Tensor) -> Tensor:
    """Store a tensor, which a compiler would otherwise compute wherever it is used."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _sum_rows(value: Tensor, first: Tensor, weights: Tensor, spatial_shapes: list[int], repeats: list[int]) -> Tensor:
    """Sum the weighted rows of every query and head; what is stored in rows of weight zero does not matter.

    From (batch, queries, samples) rows of upper left pixels, counted through all images, and (4, batch, queries,
    samples) weights of the four pixels, to (batch, queries, heads * channels).
    """
    batch, queries, _ = first.shape
    rows = value.reshape(-1, value.shape[3])
    bags = batch * queries * value.shape[2]
    steps = _block_of(value, first, spatial_shapes, repeats).corners
    weights = weights.reshape(4, bags, -1)
    out = value.new_zeros(bags, value.shape[3])
    for step, shares in zip(steps, weights, strict=True):
        out += embedding_bag((first + step).view(bags, -1), rows, per_sample_weights=shares, mode="sum")
    if not are_finite(out):
        broken = ~out.isfinite().all(1)
        row = torch.stack([(first + step).view(bags, -1)[broken] for step in steps])
        some = weights[:, broken, :, None]
        out[broken] = torch.where(some == 0, 0, rows[row] * some).sum((0, 2))
    return out.view(batch, queries, -1)


def _differentiate_sum(
    grad_output: Tensor,
    value: Tensor,
    first: Tensor,
    weights: Tensor,
    spatial_shapes: list[int],
    repeats: list[int],
    needs_value: bool,  # noqa: FBT001  # Ops take arguments by position.
    needs_weights: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor]:
    """Give the gradients by value and weights, an empty one where it is not needed."""
    channels = value.shape[3]
    grad, rows = (tensor.reshape(-1, channels) for tensor in (grad_output, value))
    block = _block_of(value, first, spatial_shapes, repeats)
    by_value, by_weights = value.new_empty(0), weights.new_empty(0)
    if needs_weights:
        row = torch.stack([first + step for step in block.corners], -1).view(len(grad), -1)
        by_weights = dot_rows(grad, rows, row).view(-1, 4).t().contiguous().view(weights.shape)
        if not are_finite(by_weights):
            by_weights.masked_fill_((weights == 0) & ~by_weights.isfinite(), 0)
    if needs_value:
        by_value = empty_on_large_pages(value)
        sums = by_value.view(-1, channels)
        if are_finite(grad, weights):
            add_up(grad, first, list(weights), block, sums)
        else:
            sums.zero_()
            for step, shares in zip(block.corners, weights.view(4, len(grad), -1, 1), strict=True):
                parts = torch.where(shares == 0, 0, shares * grad[:, None])
                sums.index_add_(0, (first + step).flatten(), parts.view(-1, channels))
    return by_value, by_weights


def _block_of(value: Tensor, first: Tensor, spatial_shapes: list[int], repeats: list[int]) -> Block:
    """Give the constants that go with rows; the same as the last time, mostly."""
    levels = read_levels(Pyramid(None, spatial_shapes, repeats), value.shape[1])
    points = first.shape[2] // (value.shape[2] * len(levels))
    return make_block(levels, points, value.shape, queries=first.shape[1])


materialize_op = torch.library.custom_op("deformdetr::materialize", _materialize, mutates_args=())
sum_rows_op = torch.library.custom_op("deformdetr::sum_rows", _sum_rows, mutates_args=())
sum_rows_backward_op = torch.library.custom_op("deformdetr::sum_rows_backward", _differentiate_sum, mutates_args=())


@materialize_op.register_fake
def _(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@sum_rows_op.register_fake
def _(value: Tensor, first: Tensor, *_: Any) -> Tensor:
    return value.new_empty(first.shape[0], first.shape[1], value.shape[2] * value.shape[3])


@sum_rows_backward_op.register_fake
def _(grad_output: Tensor, value: Tensor, first: Tensor, weights: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _, _, needs_value, needs_weights = rest
    return value.new_empty(value.shape if needs_value else 0), weights.new_empty(weights.shape if needs_weights else 0)


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spatial_shapes, ctx.repeats = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_sum(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs_value, _, needs_weights, *_ = ctx.needs_input_grad
    by_value, by_weights = sum_rows_backward_op(
        grad_output, *ctx.saved_tensors, ctx.spatial_shapes, ctx.repeats, needs_value, needs_weights
    )
    return by_value if needs_value else None, None, by_weights if needs_weights else None, None, None


materialize_op.register_autograd(lambda ctx, grad: grad)
sum_rows_op.register_autograd(_backward_of_sum, setup_context=_save_sum)
