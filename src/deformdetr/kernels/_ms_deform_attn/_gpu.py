"""The operator on GPUs: tensors in, Triton kernels launched, tensors out.

Nothing here makes the host wait for the device, and nothing is compiled anew for another size of images, queries or
batches: inputs are contiguous and aligned to 16 bytes before they reach a kernel, so that there is one kind of each.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from deformdetr.kernels._ms_deform_attn import _launch, _triton
from deformdetr.kernels._ms_deform_attn._gpu_tables import WIDE_FROM, level_table, sort_by_cell, tile_order
from deformdetr.kernels._ms_deform_attn._levels import MOST_POINTS, Pyramid, settle

_P = ParamSpec("_P")
_R = TypeVar("_R")

# The largest count that a GPU's grid takes along its second and third axis.
_MOST_IMAGES = 65535


class Sampling(NamedTuple):
    """Where to sample, and with which weights: locations and attention, or what they are made of."""

    locations: Tensor
    """(batch, queries, heads, levels, points, 2): locations, or offsets if there are reference points."""
    weights: Tensor
    """(batch, queries, heads, levels, points): attention, or logits if there are reference points."""
    references: Tensor | None = None
    """(batch or 1, queries, levels or 1, 2 or 4)."""
    padding_mask: Tensor | None = None
    """(batch, pixels), True where features count as zero."""


class Needs(NamedTuple):
    """Which gradients are wanted."""

    value: bool
    locations: bool
    weights: bool
    references: bool = False


def _on_device_of_value(run: Callable[_P, _R]) -> Callable[_P, _R]:
    """Launch on the device of the tensors, whichever is current."""

    @functools.wraps(run)
    def run_there(*args: _P.args, **options: _P.kwargs) -> _R:
        value = next(arg for arg in args if isinstance(arg, Tensor))
        with torch.cuda.device_of(value):  # type: ignore[no-untyped-call]
            return run(*args, **options)

    return run_there


@_on_device_of_value
def forward(value: Tensor, pyramid: Pyramid, sampling: Sampling) -> Tensor:
    """Launch the forward kernel.

    Returns:
        (batch, queries, heads * channels) in the dtype of the value.
    """
    batch, queries, heads = sampling.weights.shape[:3]
    out = value.new_empty(batch, queries, heads * value.shape[3])
    if _is_empty(value, sampling.weights):
        return out.zero_()
    pyramid, sampling = _split_points(settle(pyramid, value.shape[1]), sampling)
    problem = _Problem.of(value, pyramid, sampling, "forward")
    for first_image, grid in problem.grids():
        _triton.ms_deform_attn_forward[grid](
            *problem.inputs,
            out,
            *problem.sizes(first_image),
            **problem.constants,
            num_warps=problem.launch.warps,
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
    *,
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Launch the backward kernel.

    Args:
        grad_output: (batch, queries, heads * channels).
        output: What the forward gave; only read if there are reference points.
        value: As in the forward.
        pyramid: As in the forward.
        sampling: As in the forward.
        needs: Which gradients to compute.
        deterministic: Sum the gradient of the value in a fixed order. Not for reference points.

    Returns:
        Gradients of value, locations or offsets, attention or logits, and reference points.
    """
    locations, weights, references, _ = sampling
    if _is_empty(value, weights):
        wanted = zip((value, locations, weights, references), needs, strict=True)
        return tuple(  # type: ignore[return-value]  # Four of them.
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) if tensor is not None and needed else None
            for tensor, needed in wanted
        )
    pyramid, sampling = _split_points(settle(pyramid, value.shape[1]), sampling)
    problem = _Problem.of(value, pyramid, sampling, "backward")
    grad_output = _dense(grad_output.to(value.dtype))
    spread = needs.value and not deterministic
    unused = problem.inputs[0]
    grad_value = value.new_zeros(value.shape, dtype=torch.float32) if spread else unused
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format) if needs.locations else unused
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format) if needs.weights else unused
    grad_references = unused
    if references is not None and needs.references:
        grad_references = references.new_empty(*weights.shape[:4], references.shape[-1], dtype=torch.float32)
    if spread or needs.locations or needs.weights or needs.references:
        for first_image, grid in problem.grids():
            _triton.ms_deform_attn_backward[grid](
                grad_output,
                unused if output is None else _dense(output),
                *problem.inputs,
                grad_value,
                grad_references,
                grad_locations,
                grad_weights,
                *problem.sizes(first_image),
                **problem.constants,
                NEEDS_VALUE=spread,
                NEEDS_REFERENCES=needs.references,
                NEEDS_LOCATIONS=needs.locations,
                NEEDS_WEIGHTS=needs.weights,
                num_warps=problem.launch.warps,
                enable_fp_fusion=True,
            )
    value_gradient: Tensor | None = None
    if spread:
        value_gradient = _round(grad_value, value, paired=problem.constants["PAIRED"])
    elif needs.value:
        value_gradient = _gather_value_gradient(grad_output, problem)
    return (
        value_gradient,
        grad_locations.view(locations.shape) if needs.locations else None,
        grad_weights.view(weights.shape) if needs.weights else None,
        _sum_references(grad_references, references) if references is not None and needs.references else None,
    )


class _Problem(NamedTuple):
    """Arguments that the kernels share."""

    inputs: tuple[Tensor, ...]
    value_shape: torch.Size
    queries: int
    reference_strides: tuple[int, int, int]
    constants: dict[str, Any]
    launch: _launch.Launch

    @classmethod
    def of(cls, value: Tensor, pyramid: Pyramid, sampling: Sampling, direction: _launch.Direction) -> "_Problem":
        batch, queries, heads, levels, points = sampling.weights.shape
        pixels, channels = value.shape[1], value.shape[3]
        if pixels >= WIDE_FROM:
            raise ValueError(f"kernels for GPUs take fewer than 2^31 pixels, but value holds {pixels}")
        # The forward widens float16 in one instruction; the additions of the backward need pairs to leave as vectors.
        paired = channels % 2 == 0 and (
            value.dtype == torch.bfloat16 or (value.dtype == torch.float16 and direction == "backward")
        )
        word = 4 if paired else value.element_size()
        words = channels // 2 if paired else channels
        architecture = _launch.architecture_of(value.device)
        launch = _launch.choose(
            direction,
            architecture,
            precision="float32" if value.element_size() == 4 else "half",
            row_words=words,
            word_size=word,
            rows=batch * queries * heads,
        )
        order = tile_order(pyramid, value.device) if launch.tiled and queries == pixels else None
        value, locations, weights = _dense(value), _dense(sampling.locations), _dense(sampling.weights)
        references, padding = sampling.references, sampling.padding_mask
        strides = (0, 0, 0)
        if references is not None:
            references = references if references.stride(-1) == 1 else references.contiguous()
            # Along an axis of size one every index reads the same.
            image, query, level = (
                0 if size == 1 else stride
                for size, stride in zip(references.shape[:3], references.stride()[:3], strict=True)
            )
            strides = (image, query, level)
        return cls(
            inputs=(
                value,
                level_table(pyramid, pixels, value.device),
                value if references is None else references,
                locations,
                weights,
                value if padding is None else _dense(padding).view(torch.int8),
                value if order is None else order,
            ),
            value_shape=value.shape,
            queries=queries,
            reference_strides=strides,
            constants={
                "M": heads,
                "D": channels,
                "L": levels,
                "P": points,
                "COORDINATES": 0 if references is None else references.shape[-1],
                "PADDED": padding is not None,
                "ORDERED": order is not None,
                "GROUPED": bool(pyramid.repeats),
                # The host has checked what it knows; a level without pixels needs care nevertheless.
                "CHECKED": pyramid.on_device is not None or 0 in pyramid.on_host,
                "PAIRED": paired,
                "WIDE": max(pixels * heads * channels, queries * heads * max(levels * points * 2, channels))
                >= WIDE_FROM,
                "PREDICATED": architecture.predicates_loads or launch.chunks * launch.width != words,
                "POINTS": _launch.next_power_of_2(levels * points),
                "ROWS": launch.rows,
                "CHUNKS": launch.chunks,
                "WIDTH": launch.width,
            },
            launch=launch,
        )

    def sizes(self, first_image: int) -> tuple[int, ...]:
        """Give the arguments that change with images, queries and batches, in the order of the kernels."""
        return (self.queries, self.value_shape[1], first_image, *self.reference_strides)

    def grids(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Give launches of as many images as a grid takes, with the first image of each."""
        batch, heads = self.value_shape[0], self.value_shape[2]
        blocks = -(-self.queries // self.launch.rows)
        return [(first, (blocks, heads, min(batch - first, _MOST_IMAGES))) for first in range(0, batch, _MOST_IMAGES)]


def _split_points(pyramid: Pyramid, sampling: Sampling) -> tuple[Pyramid, Sampling]:
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
    """Copy what is not contiguous or not aligned, so that kernels need no variants."""
    tensor = tensor.contiguous().resolve_neg()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone(memory_format=torch.contiguous_format)


def _round(accumulated: Tensor, value: Tensor, *, paired: bool) -> Tensor:
    """Give sums in float32 the dtype of the value, and channels their order: pairs were summed up apart."""
    if not paired:
        return accumulated.to(value.dtype)
    grad_value = value.new_empty(value.shape)
    pairs = (*value.shape[:3], -1, 2)
    grad_value.view(pairs).copy_(accumulated.view(*value.shape[:3], 2, -1).transpose(-1, -2))
    return grad_value


def _sum_references(per_head: Tensor, references: Tensor) -> Tensor:
    """Sum (batch, queries, heads, levels, coordinates) up to the shape of the reference points."""
    total = per_head.sum(2)
    for axis in (0, 2):
        if references.shape[axis] == 1:
            total = total.sum(axis, keepdim=True)
    return total.to(references.dtype)


def _gather_value_gradient(grad_output: Tensor, problem: _Problem) -> Tensor:
    value, table, _, locations, weights, *_ = problem.inputs
    batch, pixels, heads, channels = value.shape
    order, first_of_cell = sort_by_cell(table, locations, pixels)
    grad_value = value.new_empty(value.shape)
    width = _launch.next_power_of_2(channels)
    for first_image in range(0, batch, _MOST_IMAGES):
        _triton.ms_deform_attn_backward_of_value[(pixels, heads, min(batch - first_image, _MOST_IMAGES))](
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
            L=problem.constants["L"],
            P=problem.constants["P"],
            GROUPED=problem.constants["GROUPED"],
            CHECKED=problem.constants["CHECKED"],
            SAMPLES=max(1, 512 // width),
            WIDTH=width,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return grad_value
