"""The public function of the operator, and its registration with `torch.library`.

Two custom ops, forward and backward, carry fake kernels and autograd formulas, so that compilation and export see them
as single nodes. Their bodies run the CPU kernel or the reference; another device's kernel is registered on the ops for
its device type.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformdetr.kernels._ms_deform_attn import _cpu, _reference

SpatialShapes: TypeAlias = Sequence[Sequence[int]] | Int[Tensor, "levels 2"]
Backend: TypeAlias = Literal["auto", "reference"]


def ms_deform_attn(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    backend: Backend = "auto",
) -> Float[Tensor, "batch queries heads*channels"]:
    """Sum bilinear samples of multi-scale features, weighted by attention.

    Pixel centres lie at half-integers, and everything outside a level is zero, as in
    `grid_sample(align_corners=False, padding_mode="zeros")`. Samples at NaN or infinite locations are zero. Sums are
    formed in float32 for half precision; the result has the dtype of `value`, and the three floating inputs may differ
    in dtype (keep locations in float32: a bfloat16 location is off by 0.65 pixels on a feature map 167 pixels wide).

    Args:
        value: Features of all levels, flattened row by row and concatenated, split into heads.
        spatial_shapes: (height, width) of every level, finest or coarsest first, in the order of `value`: Python ints,
            or an integer tensor, which is read on the device where it lies. Neither form makes the host wait for a GPU.
        sampling_locations: (x, y) as fractions of each level's width and height; [0, 1] is the inside.
        attention_weights: Usually a softmax over levels and points; used as they are.
        backend: `auto` chooses by device and dtype; `reference` is the plain PyTorch specification, which autograd
            differentiates any number of times.

    Raises:
        TypeError: If a tensor is not floating-point, or `spatial_shapes` is a tensor of another kind than integers.
        ValueError: If shapes disagree, or the levels do not hold as many pixels as `value` (checked where
            `spatial_shapes` is known to the host).

    References:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, equation 3.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if backend == "reference":
        shapes = _levels(spatial_shapes) if isinstance(spatial_shapes, Tensor) else [(h, w) for h, w in spatial_shapes]
        return _reference.forward(value, shapes, sampling_locations, attention_weights)
    if backend != "auto":
        raise ValueError(f"backend must be 'auto' or 'reference', got {backend!r}")
    on_device, on_host = _split_by_home(spatial_shapes)
    out: Tensor = _forward_op(value, on_device, on_host, sampling_locations, attention_weights)
    return out


def _check(value: Tensor, spatial_shapes: Any, locations: Tensor, weights: Tensor) -> None:
    for name, tensor, ndim in (
        ("value", value, 4),
        ("sampling_locations", locations, 6),
        ("attention_weights", weights, 5),
    ):
        if tensor.ndim != ndim:
            raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")
    if locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} must be attention_weights {tuple(weights.shape)} "
            "with a last axis of 2"
        )
    if value.shape[0] != weights.shape[0] or value.shape[2] != weights.shape[2]:
        raise ValueError(
            f"value {tuple(value.shape)} (batch, pixels, heads, channels) and attention_weights {tuple(weights.shape)} "
            "(batch, queries, heads, levels, points) must agree in batch and heads"
        )
    levels = weights.shape[3]
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.is_floating_point() or spatial_shapes.is_complex() or spatial_shapes.dtype == torch.bool:
            raise TypeError(f"spatial_shapes must hold integers, got {spatial_shapes.dtype}")
        if tuple(spatial_shapes.shape) != (levels, 2):
            raise ValueError(f"spatial_shapes must have shape ({levels}, 2), got {tuple(spatial_shapes.shape)}")
        return
    if len(spatial_shapes) != levels or any(len(shape) != 2 for shape in spatial_shapes):
        raise ValueError(f"spatial_shapes must be {levels} pairs (height, width), got {list(spatial_shapes)}")
    _check_pixels(spatial_shapes, value)


def _check_pixels(spatial_shapes: Sequence[Sequence[int]], value: Tensor) -> None:
    pixels = sum(height * width for height, width in spatial_shapes)
    if pixels != value.shape[1]:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} hold {pixels} pixels, but value holds {value.shape[1]}"
        )


def _split_by_home(spatial_shapes: SpatialShapes) -> tuple[Tensor | None, list[int]]:
    """Give the two arguments of the ops, one of them empty: a tensor, or flat ints (dynamic ones when compiling)."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes, []
    return None, [size for shape in spatial_shapes for size in shape]


def _levels(spatial_shapes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Give heights and widths as scalar tensors, which need not be known to the host."""
    return [(height, width) for height, width in (level.unbind() for level in spatial_shapes.unbind())]


def _join_homes(value: Tensor, on_device: Tensor | None, on_host: list[int]) -> Sequence[tuple[Any, Any]]:
    if on_device is None:
        return list(zip(on_host[::2], on_host[1::2], strict=True))
    if on_device.device.type == "cpu":
        shapes = [(height, width) for height, width in on_device.tolist()]
        _check_pixels(shapes, value)
        return shapes
    return _levels(on_device)


def _fits_cpu_kernel(*tensors: Tensor) -> bool:
    """Tell whether all lie on the CPU in no more precision than its kernel computes in, which is float32."""
    return all(tensor.device.type == "cpu" and tensor.dtype != torch.float64 for tensor in tensors)


@torch.library.custom_op("deformdetr::ms_deform_attn", mutates_args=())
def _forward_op(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    shapes = _join_homes(value, spatial_shapes, spatial_shapes_on_host)
    if _fits_cpu_kernel(value, sampling_locations, attention_weights):
        return _cpu.forward(value, shapes, sampling_locations, attention_weights)
    return _reference.forward(value, shapes, sampling_locations, attention_weights)


@torch.library.custom_op("deformdetr::ms_deform_attn_backward", mutates_args=())
def _backward_op(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = _join_homes(value, spatial_shapes, spatial_shapes_on_host)
    if _fits_cpu_kernel(value, sampling_locations, attention_weights):
        return _cpu.backward(grad_output, value, shapes, sampling_locations, attention_weights)
    return _reference.backward(grad_output, value, shapes, sampling_locations, attention_weights)


@_forward_op.register_fake
def _(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    batch, queries = sampling_locations.shape[:2]
    return value.new_empty(batch, queries, value.shape[2] * value.shape[3])


@_backward_op.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *before, spatial_shapes, on_host, locations, weights = inputs
    ctx.save_for_backward(*before, spatial_shapes, locations, weights)
    ctx.on_host = on_host


def _differentiate_forward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, spatial_shapes, locations, weights = ctx.saved_tensors
    grads = _backward_op(grad_output, value, spatial_shapes, ctx.on_host, locations, weights)
    return grads[0], None, None, grads[1], grads[2]


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate twice, slowly: autograd goes through the reference of the first derivative."""
    grad_output, value, spatial_shapes, locations, weights = ctx.saved_tensors
    # Scalar tensors, which can be traced, even where the host could know the numbers.
    shapes = _join_homes(value, None, ctx.on_host) if spatial_shapes is None else _levels(spatial_shapes)
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (grad_output, value, locations, weights)]
        outputs = _reference.backward(inputs[0], inputs[1], shapes, inputs[2], inputs[3])
        by_output, by_value, by_locations, by_weights = torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
    return by_output, by_value, None, None, by_locations, by_weights


_forward_op.register_autograd(_differentiate_forward, setup_context=_save_inputs)
_backward_op.register_autograd(_differentiate_backward, setup_context=_save_inputs)
