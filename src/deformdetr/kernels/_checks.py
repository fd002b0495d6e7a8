"""Checks of the operator's arguments, before a kernel gets their addresses.

Public functions and registered ops check their arguments, and so does every backward: tensors can be replaced or shrunk
after the forward.
"""

from typing import Any

import torch
from torch import Tensor

from deformdetr import _compat
from deformdetr._memory import check_storages
from deformdetr._tracing import compares_sizes, is_tracing
from deformdetr.kernels._levels import Pyramid, check_sizes, pairs

_FLOATING = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


@compares_sizes
def check_arguments(
    value: Any,
    pyramid: Pyramid,
    locations: Any,
    weights: Any,
    references: Any = None,
    padding_mask: Any = None,
    *,
    fused: bool = False,
) -> None:
    """Check the arguments of the operator, or of its fused form.

    Sizes of levels in a tensor are not read; kernels treat levels that do not fit as empty.

    Args:
        value: (batch, pixels, heads, channels).
        pyramid: Sizes of the levels.
        locations: (batch, queries, heads, levels, points, 2): sampling locations, or offsets if fused.
        weights: (batch, queries, heads, levels, points): attention weights, or logits if fused.
        references: Reference points, if fused.
        padding_mask: (batch, pixels), if fused.
        fused: Whether the operator computes locations and weights itself.

    Raises:
        TypeError: If a tensor is not one, is sparse, or has a dtype that kernels do not read.
        ValueError: If shapes or devices disagree, or sizes that the host knows do not hold the pixels of `value`.
    """
    locations_name = "sampling_offsets" if fused else "sampling_locations"
    weights_name = "attention_logits" if fused else "attention_weights"
    for name, tensor, ndim in (("value", value, 4), (locations_name, locations, 6), (weights_name, weights, 5)):
        check_floating(name, tensor)
        if tensor.ndim != ndim:
            raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(tensor.shape)}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, but value is on {value.device}")
    if locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"{locations_name} {tuple(locations.shape)} must be {weights_name} {tuple(weights.shape)} with a last axis "
            "of 2"
        )
    if value.shape[0] != weights.shape[0] or value.shape[2] != weights.shape[2]:
        raise ValueError(
            f"value {tuple(value.shape)} (batch, pixels, heads, channels) and {weights_name} {tuple(weights.shape)} "
            "(batch, queries, heads, levels, points) must agree in batch and heads"
        )
    _check_levels(pyramid, weights.shape[3], value)
    if pyramid.tensor is None:
        check_sizes(pyramid.sizes, value.shape[1])
    if fused:
        check_floating("reference_points", references)
        check_references(references, weights, weights.shape[3])
    if padding_mask is not None:
        _check_padding(padding_mask, value)
        if not fused:
            raise ValueError("padding_mask belongs to the fused operator, but there are no reference_points")


@compares_sizes
def check_offsets(references: Any, offsets: Any, pyramid: Pyramid) -> None:
    """Check offsets, and the reference points and levels that they belong to.

    Raises:
        TypeError: If one is not a floating-point tensor.
        ValueError: If shapes or devices disagree.
    """
    check_floating("sampling_offsets", offsets)
    check_floating("reference_points", references)
    if offsets.ndim != 6 or offsets.shape[-1] != 2:
        raise ValueError(
            f"sampling_offsets must have shape (batch, queries, heads, levels, points, 2), got {tuple(offsets.shape)}"
        )
    _check_levels(pyramid, offsets.shape[3], offsets)
    if pyramid.tensor is None:
        check_sizes(pyramid.sizes)
    check_references(references, offsets, offsets.shape[3])


def check_references(references: Tensor, offsets: Tensor, levels: int) -> None:
    """Check the shape of reference points of a number of levels against that of offsets or logits.

    Raises:
        ValueError: If shapes or devices disagree.
    """
    batch, queries = offsets.shape[:2]
    if references.device != offsets.device:
        raise ValueError(f"reference_points is on {references.device}, but sampling_offsets is on {offsets.device}")
    if references.ndim != 4 or references.shape[-1] not in (2, 4):
        raise ValueError(
            "reference_points must have shape (batch, queries, levels, 2) for (x, y) or (..., 4) for (cx, cy, w, h), "
            f"got {tuple(references.shape)}"
        )
    if (
        references.shape[0] not in (1, batch)
        or references.shape[1] != queries
        or references.shape[2] not in (1, levels)
    ):
        raise ValueError(
            f"reference_points {tuple(references.shape)} must be for {batch} images (or one for all), {queries} "
            f"queries and {levels} levels (or one for all)"
        )


@compares_sizes
def check_output(name: str, output: Any, value: Tensor, weights: Tensor) -> None:
    """Check the operator's output, or its gradient.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape or device disagrees with the inputs.
    """
    check_floating(name, output)
    if output.device != value.device:
        raise ValueError(f"{name} is on {output.device}, but value is on {value.device}")
    expected = (*weights.shape[:2], value.shape[2] * value.shape[3])
    if tuple(output.shape) != expected:
        raise ValueError(f"{name} {tuple(output.shape)} must be {expected} (batch, queries, heads * channels)")


def check_floating(name: str, tensor: Any) -> None:
    """Check that `tensor` is a dense tensor of a dtype that kernels read.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}")
    if tensor.dtype not in _FLOATING:
        raise TypeError(
            f"{name} must be floating-point, got {tensor.dtype}; kernels read float64, float32, bfloat16 and float16"
        )


def _check_levels(pyramid: Pyramid, levels: int, like: Tensor) -> None:
    """Check that `pyramid` has integer sizes for `levels` groups of points, on a device where kernels can read them."""
    sizes, repeats = pyramid.tensor, pyramid.repeats
    if not levels:
        raise ValueError("there must be at least one level to sample, got none")
    if repeats and (min(repeats) < 1 or sum(repeats) != levels):
        raise ValueError(f"repeats {repeats} must be positive numbers with a sum of {levels}, the groups of points")
    expected = len(repeats) or levels
    if sizes is None:
        if len(pyramid.sizes) != 2 * expected:
            got = pyramid.sizes if len(pyramid.sizes) % 2 else pairs(pyramid.sizes)
            raise ValueError(f"spatial_shapes must be {expected} pairs (height, width), got {got}")
        return
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise TypeError(f"spatial_shapes must hold integers, got {sizes.dtype}")
    if tuple(sizes.shape) != (expected, 2):
        raise ValueError(f"spatial_shapes must have shape {(expected, 2)}, got {tuple(sizes.shape)}")
    # The host reads sizes in a tensor on the CPU.
    if sizes.device.type != "cpu" and sizes.device != like.device:
        raise ValueError(f"spatial_shapes is on {sizes.device}, but value is on {like.device}")


def _check_padding(mask: Any, value: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"padding_mask must be a tensor, got {type(mask).__name__}")
    if mask.layout != torch.strided:
        raise TypeError(f"padding_mask must be dense, got {mask.layout}")
    if mask.dtype != torch.bool:
        raise TypeError(f"padding_mask must be bool, True at padded pixels, got {mask.dtype}")
    if mask.device != value.device:
        raise ValueError(f"padding_mask is on {mask.device}, but value is on {value.device}")
    if mask.shape != value.shape[:2]:
        raise ValueError(f"padding_mask {tuple(mask.shape)} must be {tuple(value.shape[:2])} (batch, pixels)")


def check_visible_storages(*tensors: Tensor) -> None:
    """Check storages before PyTorch's own operations read them, unless a compiler or transform hides the tensors.

    Raises:
        ValueError: If a storage does not hold its tensor.
    """
    if torch.compiler.is_compiling() or is_tracing():
        return
    if all(type(tensor) in (Tensor, torch.nn.Parameter) and _compat.has_storage(tensor) for tensor in tensors):
        check_storages(*tensors)
