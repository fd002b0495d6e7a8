"""What is refused before a kernel is handed an address: calls whose tensors do not fit each other.

Checked where a call comes in, by the public functions and by the registered ops, which anybody may call, and again in
every backward, because tensors can be replaced or shrunk after the forward.
"""

from typing import Any

import torch
from torch import Tensor

from deformdetr._tracing import compares_sizes
from deformdetr.kernels._ms_deform_attn._levels import Pyramid, check_range, check_sizes, sizes_of

_FLOATING = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


@compares_sizes
def check_samples(
    value: Any,
    locations: Any,
    weights: Any,
    *,
    names: tuple[str, str] = ("sampling_locations", "attention_weights"),
) -> None:
    """Check value, locations and weights, which may be offsets and logits by other names.

    Raises:
        TypeError: If one is no dense tensor of float64, float32, bfloat16 or float16.
        ValueError: If their shapes or devices disagree.
    """
    where, what = names
    for name, tensor, ndim in (("value", value, 4), (where, locations, 6), (what, weights, 5)):
        check_floating(name, tensor)
        if tensor.ndim != ndim:
            raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(tensor.shape)}")
        if tensor is not value:
            _check_device(name, tensor, value)
    if locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"{where} {tuple(locations.shape)} must be {what} {tuple(weights.shape)} with a last axis of 2"
        )
    if value.shape[0] != weights.shape[0] or value.shape[2] != weights.shape[2]:
        raise ValueError(
            f"value {tuple(value.shape)} (batch, pixels, heads, channels) and {what} {tuple(weights.shape)} "
            "(batch, queries, heads, levels, points) must agree in batch and heads"
        )


@compares_sizes
def check_levels(pyramid: Pyramid, value: Tensor, levels: int) -> None:
    """Check that there is a level for every one that is sampled, and that they hold the pixels of the value.

    Sizes in a tensor are not read here; kernels take levels that do not fit for empty.

    Raises:
        TypeError: If sizes in a tensor are not integers.
        ValueError: If there are none, more or fewer levels, or known sizes do not hold as many pixels as `value`.
    """
    on_host, repeats = pyramid.on_host, pyramid.repeats
    if not levels:
        raise ValueError("there must be at least one level to sample, got none")
    _check_shapes(pyramid, len(repeats) or levels, value)
    if repeats and (min(repeats) < 1 or sum(repeats) != levels):
        raise ValueError(f"{repeats} groups of points on the levels must be {levels} in all, at least one each")
    if pyramid.on_device is None:
        check_sizes(on_host, value.shape[1])


@compares_sizes
def check_offsets(references: Any, offsets: Any, pyramid: Pyramid) -> None:
    """Check offsets against the reference points and levels that they belong to.

    Raises:
        TypeError: If one is no floating-point tensor.
        ValueError: If shapes or devices disagree.
    """
    check_floating("sampling_offsets", offsets)
    if offsets.ndim != 6 or offsets.shape[-1] != 2:
        raise ValueError(
            f"sampling_offsets must have shape (batch, queries, heads, levels, points, 2), got {tuple(offsets.shape)}"
        )
    _check_shapes(pyramid, offsets.shape[3], offsets)
    if pyramid.on_device is None:
        check_range(pyramid.on_host)
    check_references(references, offsets)


@compares_sizes
def check_references(references: Any, offsets: Tensor) -> None:
    """Check reference points against the offsets from them, or their logits.

    Raises:
        TypeError: If they are no floating-point tensor.
        ValueError: If shapes or devices disagree.
    """
    batch, queries, _, levels = offsets.shape[:4]
    check_floating("reference_points", references)
    _check_device("reference_points", references, offsets)
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
def check_padding(mask: Any, value: Tensor) -> None:
    """Check a padding mask, if there is one.

    Raises:
        TypeError: If it is no boolean tensor.
        ValueError: If shapes or devices disagree.
    """
    if mask is None:
        return
    _check_tensor("padding_mask", mask)
    _check_device("padding_mask", mask, value)
    if mask.dtype != torch.bool:
        raise TypeError(f"padding_mask must be bool, True at padded pixels, got {mask.dtype}")
    if mask.shape != value.shape[:2]:
        raise ValueError(f"padding_mask {tuple(mask.shape)} must be {tuple(value.shape[:2])} (batch, pixels)")


@compares_sizes
def check_output(name: str, output: Any, value: Tensor, weights: Tensor) -> None:
    """Check an output, or its gradient.

    Raises:
        TypeError: If it is no floating-point tensor.
        ValueError: If shapes or devices disagree.
    """
    check_floating(name, output)
    _check_device(name, output, value)
    expected = (*weights.shape[:2], value.shape[2] * value.shape[3])
    if tuple(output.shape) != expected:
        raise ValueError(f"{name} {tuple(output.shape)} must be {expected} (batch, queries, heads * channels)")


def check_floating(name: str, tensor: Any) -> None:
    """Check that something is a tensor of a floating-point dtype that kernels read.

    Raises:
        TypeError: If it is not.
    """
    _check_tensor(name, tensor)
    if tensor.dtype not in _FLOATING:
        raise TypeError(
            f"{name} must be floating-point, got {tensor.dtype}; kernels read float64, float32, bfloat16 and float16"
        )


def _check_shapes(pyramid: Pyramid, levels: int, like: Tensor) -> None:
    """Check that there are as many sizes as levels, which are integers where a kernel reads them."""
    on_device, on_host, _ = pyramid
    if on_device is None:
        if len(on_host) != 2 * levels:
            got = on_host if len(on_host) % 2 else sizes_of(on_host)
            raise ValueError(f"spatial_shapes must be {levels} pairs (height, width), got {got}")
        return
    if on_device.is_floating_point() or on_device.is_complex() or on_device.dtype == torch.bool:
        raise TypeError(f"spatial_shapes must hold integers, got {on_device.dtype}")
    if tuple(on_device.shape) != (levels, 2):
        raise ValueError(f"spatial_shapes must have shape {(levels, 2)}, got {tuple(on_device.shape)}")
    # On the CPU it is read by the host.
    if on_device.device.type != "cpu":
        _check_device("spatial_shapes", on_device, like)


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}")


def _check_device(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.device != value.device:
        raise ValueError(f"{name} is on {tensor.device}, but value is on {value.device}")
