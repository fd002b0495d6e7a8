"""The operator under the signatures that other code calls it by.

Most of them are told where the levels start in `value`, which here follows from the shapes and is only checked. All are
told an `im2col_step`, how many images the compiled kernels take at once, which is not needed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformdetr import kernels
from deformdetr.kernels import ms_deform_attn


def ms_deform_attn_forward(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    level_start_index: Int[Tensor, " levels"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    im2col_step: int,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Compute what the function of this name of a compiled extension computes."""
    _check_level_starts(spatial_shapes, level_start_index)
    return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    level_start_index: Int[Tensor, " levels"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    grad_output: Float[Tensor, "batch queries heads*channels"],
    im2col_step: int,
) -> list[Tensor]:
    """Return the gradients by value, locations and weights, as the function of this name of a compiled extension."""
    _check_level_starts(spatial_shapes, level_start_index)
    grads = kernels.ms_deform_attn_backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights)
    return list(grads)


def ms_deform_attn_forward_without_starts(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    im2col_step: int,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Compute what `ms_deform_attn_forward` of the first extension computed, which TrackFormer and TransTrack carry."""
    return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward_without_starts(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    grad_output: Float[Tensor, "batch queries heads*channels"],
    im2col_step: int,
) -> list[Tensor]:
    """Return the gradients by value, locations and weights, as the first extension's function of this name did."""
    grads = kernels.ms_deform_attn_backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights)
    return list(grads)


def ms_deform_attn_backward_into(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    level_start_index: Int[Tensor, " levels"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    grad_output: Float[Tensor, "batch queries heads*channels"],
    grad_value: Float[Tensor, "batch pixels heads channels"],
    grad_sampling_loc: Float[Tensor, "batch queries heads levels points 2"],
    grad_attn_weight: Float[Tensor, "batch queries heads levels points"],
    im2col_step: int,
) -> None:
    """Write the gradients where the caller says, as mmcv's extension does."""
    grads = ms_deform_attn_backward(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output, im2col_step
    )
    for place, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        place.copy_(grad)


def by_number_of_arguments(*functions: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the one of several that takes as many arguments as it is given."""
    name = functions[0].__name__
    by_number = {len(inspect.signature(function).parameters): function for function in functions}

    @functools.wraps(functions[0])
    def call(*arguments: Any, **named: Any) -> Any:
        number = len(arguments) + len(named)
        if number not in by_number:
            known = " or ".join(str(count) for count in sorted(by_number))
            raise TypeError(f"{name} takes {known} arguments, got {number}")
        return by_number[number](*arguments, **named)

    return call


EXTENSION: dict[str, Callable[..., Any]] = {
    "ms_deform_attn_forward": by_number_of_arguments(ms_deform_attn_forward, ms_deform_attn_forward_without_starts),
    "ms_deform_attn_backward": by_number_of_arguments(ms_deform_attn_backward, ms_deform_attn_backward_without_starts),
}
"""What a compiled extension holds, of either generation."""
EXTENSION_OF_MMCV: dict[str, Callable[..., Any]] = {
    "ms_deform_attn_forward": ms_deform_attn_forward,
    "ms_deform_attn_backward": ms_deform_attn_backward_into,
}


class MultiScaleDeformableAttnFunction:
    """Stand in for the autograd function of mmcv and detrex, of which others only call `apply`."""

    @staticmethod
    def apply(
        value: Float[Tensor, "batch pixels heads channels"],
        value_spatial_shapes: Int[Tensor, "levels 2"],
        value_level_start_index: Int[Tensor, " levels"],
        sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
        attention_weights: Float[Tensor, "batch queries heads levels points"],
        im2col_step: Any,
    ) -> Float[Tensor, "batch queries heads*channels"]:
        """Sum bilinear samples weighted by attention; differentiable, on any device and in any precision.

        Args:
            value: Features of all levels, flattened row by row and concatenated, split into heads.
            value_spatial_shapes: (height, width) of every level.
            value_level_start_index: Where every level starts in `value`; checked on the CPU.
            sampling_locations: (x, y) as fractions of each level's width and height.
            attention_weights: Usually a softmax over levels and points.
            im2col_step: Not needed.

        Raises:
            ValueError: If the levels do not start where `value_level_start_index` says.
        """
        _check_level_starts(value_spatial_shapes, value_level_start_index)
        return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def multi_scale_deformable_attn_pytorch(
    value: Float[Tensor, "batch pixels heads channels"],
    value_spatial_shapes: Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Do the same for callers of the function that mmcv and detrex use without a GPU."""
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def _check_level_starts(spatial_shapes: Tensor, level_start_index: Tensor) -> None:
    """Refuse levels with gaps or in another order, as far as the host can know without waiting for a GPU."""
    if torch.compiler.is_compiling() or spatial_shapes.device.type != "cpu" or level_start_index.device.type != "cpu":
        return
    areas = spatial_shapes.prod(dim=1)
    expected = (areas.cumsum(0) - areas).tolist()
    if level_start_index.tolist() != expected:
        raise ValueError(
            f"level_start_index {level_start_index.tolist()} must be {expected}, because the levels "
            f"{spatial_shapes.tolist()} follow each other without gaps"
        )
