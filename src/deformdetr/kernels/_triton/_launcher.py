"""Forward and backward on GPUs: tensors in, kernels launched, tensors out.

Nothing here makes the host wait for the device. Inputs are made contiguous and aligned to 16 bytes, so that one variant
of each kernel serves all sizes of images, queries and batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from deformdetr.kernels._levels import MOST_POINTS, Pyramid, read_on_cpu
from deformdetr.kernels._triton import _backward, _forward, _launch_table
from deformdetr.kernels._triton._device_tables import WIDE_FROM, level_table, sort_by_cell, tile_order
from deformdetr.kernels._triton._launch_table import Direction, Launch, next_power_of_2

_P = ParamSpec("_P")
_R = TypeVar("_R")

# The largest count along the second and third axis of a GPU's grid.
_MOST_IMAGES = 65535


class Sampling(NamedTuple):
    """Where to sample, and with which weights; offsets and logits if there are reference points."""

    locations: Tensor
    """(batch, queries, heads, levels, points, 2): locations, or offsets."""
    weights: Tensor
    """(batch, queries, heads, levels, points): attention weights, or logits."""
    references: Tensor | None = None
    """(batch or 1, queries, levels or 1, 2 or 4)."""
    padding_mask: Tensor | None = None
    """(batch, pixels), True at pixels that count as zero."""


class Needs(NamedTuple):
    """Which gradients are needed."""

    value: bool
    locations: bool
    weights: bool
    references: bool = False


class Sums(NamedTuple):
    """How the gradient of the value is summed."""

    in_order: bool
    """In a fixed order, in float32. Not with reference points."""
    in_half: bool = False
    """A value in half precision in its own dtype, where the GPU adds vectors of it."""


def _on_device_of_value(run: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make the device of the tensors current for the launch."""

    @functools.wraps(run)
    def run_there(*args: _P.args, **options: _P.kwargs) -> _R:
        value = next(arg for arg in args if isinstance(arg, Tensor))
        with torch.cuda.device_of(value):  # type: ignore[no-untyped-call]
            return run(*args, **options)

    return run_there


@_on_device_of_value
def forward(value: Tensor, pyramid: Pyramid, sampling: Sampling) -> Tensor:
    """Return (batch, queries, heads * channels) in the dtype of the value."""
    batch, queries, heads = sampling.weights.shape[:3]
    out = value.new_empty(batch, queries, heads * value.shape[3])
    if _is_empty(value, sampling.weights):
        return out.zero_()
    arguments = _prepare_arguments(value, pyramid, sampling, "forward")
    for first_image, grid in arguments.grids():
        _forward.ms_deform_attn_forward[grid](
            *arguments.inputs,
            out,
            *arguments.sizes(first_image),
            **arguments.constants,
            num_warps=arguments.launch.warps,
            enable_fp_fusion=True,
        )
    return out


@_on_device_of_value
def backward(
    grad_output: Tensor,
    output: Tensor | None,
    value: Tensor,
    pyramid: Pyramid,
    sampling: Sampling,
    needs: Needs,
    sums: Sums,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of value, locations or offsets, weights or logits, and reference points.

    Args:
        grad_output: (batch, queries, heads * channels).
        output: Result of the forward; only read if there are reference points.
        value: As in the forward.
        pyramid: As in the forward.
        sampling: As in the forward.
        needs: Which gradients to compute; the others are None.
        sums: How to sum the gradient of the value.
    """
    locations, weights, references, _ = sampling
    if _is_empty(value, weights):
        return _zero_gradients((value, locations, weights, references), needs)
    arguments = _prepare_arguments(value, pyramid, sampling, "backward")
    unused = arguments.inputs[0]
    grad_output, output = _dense(grad_output.to(value.dtype)), unused if output is None else _dense(output)
    # In a fixed order, the gradient of the value has a kernel of its own.
    atomic = needs._replace(value=needs.value and not sums.in_order)
    paired = arguments.constants["PAIRED"]
    in_half = sums.in_half and paired and value.dtype in _launch_table.architecture_of(value.device).vector_sums
    grads = _allocate_gradients(value, sampling, atomic, unused, value.dtype if in_half else torch.float32)
    if any(atomic):
        for first_image, grid in arguments.grids():
            _backward.ms_deform_attn_backward[grid](
                grad_output,
                output,
                *arguments.inputs,
                *grads,
                *arguments.sizes(first_image),
                **arguments.constants,
                NEEDS_VALUE=atomic.value,
                NEEDS_REFERENCES=atomic.references,
                NEEDS_LOCATIONS=atomic.locations,
                NEEDS_WEIGHTS=atomic.weights,
                UNROLLED=arguments.launch.unrolled,
                num_warps=arguments.launch.warps,
                enable_fp_fusion=True,
            )
    summed, grad_references, grad_locations, grad_weights = grads
    grad_value: Tensor | None = None
    if atomic.value:
        grad_value = summed if in_half else _round(summed, value, paired=paired)
    elif needs.value:
        grad_value = _sum_value_gradient_in_order(grad_output, arguments)
    return (
        grad_value,
        grad_locations.view(locations.shape) if needs.locations else None,
        grad_weights.view(weights.shape) if needs.weights else None,
        _sum_references(grad_references, references) if references is not None and needs.references else None,
    )


def _zero_gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    grad_value, grad_locations, grad_weights, grad_references = (
        torch.zeros_like(tensor, memory_format=torch.contiguous_format) if tensor is not None and needed else None
        for tensor, needed in zip(inputs, needs, strict=True)
    )
    return grad_value, grad_locations, grad_weights, grad_references


def _allocate_gradients(
    value: Tensor, sampling: Sampling, needs: Needs, unused: Tensor, dtype_of_sums: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return memory for gradients in the order of the kernel; `unused` takes the place of those not needed."""
    locations, weights, references, _ = sampling
    grad_value = grad_references = grad_locations = grad_weights = unused
    if needs.value:
        grad_value = value.new_zeros(value.shape, dtype=dtype_of_sums)
    if needs.references and references is not None:
        grad_references = references.new_empty(*weights.shape[:4], references.shape[-1], dtype=torch.float32)
    if needs.locations:
        grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    if needs.weights:
        grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    return grad_value, grad_references, grad_locations, grad_weights


class _Arguments(NamedTuple):
    """Arguments that forward and backward kernels share."""

    inputs: tuple[Tensor, ...]
    value_shape: torch.Size
    queries: int
    reference_strides: tuple[int, int, int]
    constants: dict[str, Any]
    launch: Launch

    def sizes(self, first_image: int) -> tuple[int, ...]:
        """Return the arguments that change with images, queries and batches, in the order of the kernels."""
        return (self.queries, self.value_shape[1], first_image, *self.reference_strides)

    def grids(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Return the first image and the grid of every launch; one grid takes a limited number of images."""
        batch, heads = self.value_shape[0], self.value_shape[2]
        blocks = -(-self.queries // self.launch.rows)
        return [(first, (blocks, heads, min(batch - first, _MOST_IMAGES))) for first in range(0, batch, _MOST_IMAGES)]


def _prepare_arguments(value: Tensor, pyramid: Pyramid, sampling: Sampling, direction: Direction) -> _Arguments:
    """Return the arguments of the kernels, with all inputs dense."""
    pixels = value.shape[1]
    if pixels >= WIDE_FROM:
        raise ValueError(f"kernels for GPUs take fewer than 2^31 pixels, but value holds {pixels}")
    pyramid, sampling = _split_points(read_on_cpu(pyramid, pixels), sampling)
    locations, weights, references, padding = sampling
    queries = weights.shape[1]
    launch, constants = _specialize(value, weights, direction)
    order = tile_order(pyramid, value.device) if launch.tiled and queries == pixels else None
    value, strides = _dense(value), (0, 0, 0)
    if references is not None:
        references = references if references.stride(-1) == 1 else references.contiguous()
        strides = _strides_to_repeat(references)
    constants |= {
        "COORDINATES": 0 if references is None else references.shape[-1],
        "PADDED": padding is not None,
        "ORDERED": order is not None,
        "GROUPED": bool(pyramid.repeats),
        # The host has checked sizes that it knows, but a level without pixels needs care nevertheless.
        "CHECKED": pyramid.tensor is not None or 0 in pyramid.sizes,
    }
    inputs = (
        value,
        level_table(pyramid, pixels, value.device),
        value if references is None else references,
        _dense(locations),
        _dense(weights),
        value if padding is None else _dense(padding).view(torch.int8),
        value if order is None else order,
    )
    return _Arguments(inputs, value.shape, queries, strides, constants, launch)


def _specialize(value: Tensor, weights: Tensor, direction: Direction) -> tuple[Launch, dict[str, Any]]:
    """Return launch parameters, and the kernels' constants that follow from them and from the shapes."""
    batch, queries, heads, levels, points = weights.shape
    pixels, channels = value.shape[1], value.shape[3]
    # The forward widens float16 in one instruction. Atomic additions of the backward need pairs to become vectors.
    paired = channels % 2 == 0 and (
        value.dtype == torch.bfloat16 or (value.dtype == torch.float16 and direction == "backward")
    )
    words = channels // 2 if paired else channels
    architecture = _launch_table.architecture_of(value.device)
    launch = _launch_table.choose(
        direction,
        architecture,
        precision="float32" if value.element_size() == 4 else "half",
        row_words=words,
        word_size=4 if paired else value.element_size(),
        rows=batch * queries * heads,
    )
    largest = max(pixels * heads * channels, queries * heads * max(levels * points * 2, channels))
    return launch, {
        "M": heads,
        "D": channels,
        "L": levels,
        "P": points,
        "PAIRED": paired,
        "WIDE": largest >= WIDE_FROM,
        "PREDICATED": architecture.predicates_loads or launch.chunks * launch.width != words,
        "POINTS": next_power_of_2(levels * points),
        "ROWS": launch.rows,
        "CHUNKS": launch.chunks,
        "WIDTH": launch.width,
    }


def _strides_to_repeat(references: Tensor) -> tuple[int, int, int]:
    """Return strides along images, queries and levels; 0 along axes of size 1, which hold for every index."""
    image, query, level = (
        0 if size == 1 else stride for size, stride in zip(references.shape[:3], references.stride()[:3], strict=True)
    )
    return image, query, level


def _split_points(pyramid: Pyramid, sampling: Sampling) -> tuple[Pyramid, Sampling]:
    """Split the points of every level into equal groups that kernels can unroll."""
    levels, points = sampling.weights.shape[3:]
    if points <= MOST_POINTS:
        return pyramid, sampling
    size = max(size for size in range(1, MOST_POINTS + 1) if points % size == 0)
    shape = (*sampling.weights.shape[:3], levels * points // size, size)
    repeats = [count * points // size for count in pyramid.repeats or [1] * levels]
    return pyramid._replace(repeats=repeats), sampling._replace(
        locations=sampling.locations.reshape(*shape, 2), weights=sampling.weights.reshape(shape)
    )


def _is_empty(value: Tensor, weights: Tensor) -> bool:
    return not weights.numel() or not value.numel()


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous and aligned to 16 bytes, so that kernels need no variants."""
    tensor = tensor.contiguous().resolve_neg()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone(memory_format=torch.contiguous_format)


def _round(accumulated: Tensor, value: Tensor, *, paired: bool) -> Tensor:
    """Convert sums to the dtype of the value. If paired, even channels come before odd ones and are interleaved."""
    if not paired:
        return accumulated.to(value.dtype)
    grad_value = value.new_empty(value.shape)
    pairs = (*value.shape[:3], -1, 2)
    grad_value.view(pairs).copy_(accumulated.view(*value.shape[:3], 2, -1).transpose(-1, -2))
    return grad_value


def _sum_references(per_head: Tensor, references: Tensor) -> Tensor:
    """Sum (batch, queries, heads, levels, coordinates) over heads and expanded axes."""
    total = per_head.sum(2)
    for axis in (0, 2):
        if references.shape[axis] == 1:
            total = total.sum(axis, keepdim=True)
    return total.to(references.dtype)


def _sum_value_gradient_in_order(grad_output: Tensor, arguments: _Arguments) -> Tensor:
    value, table, _, locations, weights, *_ = arguments.inputs
    batch, pixels, heads, channels = value.shape
    order, first_of_cell = sort_by_cell(table, locations, pixels)
    grad_value = value.new_empty(value.shape)
    width = next_power_of_2(channels)
    for first_image in range(0, batch, _MOST_IMAGES):
        _backward.ms_deform_attn_backward_of_value[(pixels, heads, min(batch - first_image, _MOST_IMAGES))](
            grad_output,
            table,
            locations,
            weights,
            order,
            first_of_cell,
            grad_value,
            pixels,
            first_image,
            M=heads,
            D=channels,
            L=arguments.constants["L"],
            P=arguments.constants["P"],
            GROUPED=arguments.constants["GROUPED"],
            CHECKED=arguments.constants["CHECKED"],
            SAMPLES=max(1, 512 // width),
            WIDTH=width,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return grad_value
