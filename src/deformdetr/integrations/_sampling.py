"""The operator under the signatures of other packages.

Most of them take `level_start_index`, which follows from the shapes and is only checked. All take `im2col_step`, the
number of images per launch of the compiled kernels, which is ignored.
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
    """Compute the operator, as the function of this name in compiled extensions."""
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
    """Return the gradients of value, locations and weights, as the function of this name in compiled extensions."""
    _check_level_starts(spatial_shapes, level_start_index)
    return ms_deform_attn_backward_without_starts(
        value, spatial_shapes, sampling_locations, attention_weights, grad_output, im2col_step
    )


def ms_deform_attn_forward_without_starts(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    im2col_step: int,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Compute the operator, as the first version of the extension, which TrackFormer and TransTrack vendor."""
    return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward_without_starts(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    grad_output: Float[Tensor, "batch queries heads*channels"],
    im2col_step: int,
) -> list[Tensor]:
    """Return the gradients of value, locations and weights, as the first version of the extension."""
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
    """Write the gradients into given tensors, as mmcv's extension."""
    grads = ms_deform_attn_backward(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output, im2col_step
    )
    for out, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        out.copy_(grad)


def dispatch_by_arity(*functions: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the one of `functions` that takes the given number of arguments."""
    name = functions[0].__name__
    by_arity = {len(inspect.signature(function).parameters): function for function in functions}

    @functools.wraps(functions[0])
    def call(*arguments: Any, **named: Any) -> Any:
        number = len(arguments) + len(named)
        if number not in by_arity:
            known = " or ".join(str(count) for count in sorted(by_arity))
            raise TypeError(f"{name} takes {known} arguments, got {number}")
        return by_arity[number](*arguments, **named)

    return call


EXTENSION: dict[str, Callable[..., Any]] = {
    "ms_deform_attn_forward": dispatch_by_arity(ms_deform_attn_forward, ms_deform_attn_forward_without_starts),
    "ms_deform_attn_backward": dispatch_by_arity(ms_deform_attn_backward, ms_deform_attn_backward_without_starts),
}
"""Functions of the compiled extension, of both versions."""
EXTENSION_OF_MMCV: dict[str, Callable[..., Any]] = {
    "ms_deform_attn_forward": ms_deform_attn_forward,
    "ms_deform_attn_backward": ms_deform_attn_backward_into,
}


class MultiScaleDeformableAttnFunction:
    """Replace the autograd function of mmcv and detrex, whose only method in use is `apply`.

    Examples:
        >>> value, shapes, starts = torch.ones(1, 6, 2, 4), torch.tensor([[2, 3]]), torch.tensor([0])
        >>> locations, weights = torch.full((1, 5, 2, 1, 1, 2), 0.5), torch.ones(1, 5, 2, 1, 1)
        >>> MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64).shape
        torch.Size([1, 5, 8])
    """

    @staticmethod
    def apply(
        value: Float[Tensor, "batch pixels heads channels"],
        value_spatial_shapes: Int[Tensor, "levels 2"],
        value_level_start_index: Int[Tensor, " levels"],
        sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
        attention_weights: Float[Tensor, "batch queries heads levels points"],
        im2col_step: Any,
    ) -> Float[Tensor, "batch queries heads*channels"]:
        """Compute multi-scale deformable attention: bilinear samples, weighted and summed. It is differentiable.

        Args:
            value: Features of all levels, flattened row by row and concatenated, split into heads.
            value_spatial_shapes: (height, width) of every level.
            value_level_start_index: Index of the first pixel of every level in `value`; checked if it is on the CPU.
            sampling_locations: (x, y) as fractions of each level's width and height.
            attention_weights: Usually a softmax over levels and points.
            im2col_step: Ignored.

        Raises:
            ValueError: If `value_level_start_index` does not match the shapes.
        """
        return ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step
        )


def multi_scale_deformable_attn_pytorch(
    value: Float[Tensor, "batch pixels heads channels"],
    value_spatial_shapes: Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Compute multi-scale deformable attention under the name that mmcv and detrex use without a GPU.

    Arguments are those of `MultiScaleDeformableAttnFunction.apply`.

    Examples:
        >>> value, shapes = torch.ones(1, 6, 2, 4), torch.tensor([[2, 3]])
        >>> locations, weights = torch.full((1, 5, 2, 1, 1, 2), 0.5), torch.ones(1, 5, 2, 1, 1)
        >>> multi_scale_deformable_attn_pytorch(value, shapes, locations, weights).shape
        torch.Size([1, 5, 8])
    """
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def _check_level_starts(spatial_shapes: Tensor, level_start_index: Tensor) -> None:
    """Raise if levels have gaps or another order; tensors on a GPU are not checked, which would synchronize."""
    if torch.compiler.is_compiling() or spatial_shapes.device.type != "cpu" or level_start_index.device.type != "cpu":
        return
    areas = spatial_shapes.prod(dim=1)
    expected = (areas.cumsum(0) - areas).tolist()
    if level_start_index.tolist() != expected:
        raise ValueError(
            f"level_start_index {level_start_index.tolist()} must be {expected} for levels "
            f"{spatial_shapes.tolist()} without gaps"
        )
