"""Where the levels of a pyramid lie in the flattened features, known to the host or only to the device."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from deformdetr._tracing import is_tracing

SpatialShapes: TypeAlias = Sequence[Sequence[int]] | Int[Tensor, "levels 2"]

# Kernels for GPUs unroll the points of a level; more than these are split into groups, which they do not unroll.
MOST_POINTS = 16
# Kernels compute positions in float32, which tells no more pixels along an axis apart.
MOST_PIXELS_IN_LINE = 2**24
_KEPT = (int, torch.SymInt)


class Level(NamedTuple):
    """One level: ints, or scalar tensors on any device, which are never read on the host."""

    height: int | Tensor
    width: int | Tensor
    start: int | Tensor
    """Its first pixel in the flattened features."""


class Pyramid(NamedTuple):
    """The levels as arguments of a custom op: either a tensor or flat ints, dynamic ones when compiling."""

    on_device: Tensor | None
    on_host: list[int]
    repeats: list[int]
    """How many groups of points lie on every level, one after the other; empty for one each."""


def split_by_home(spatial_shapes: Any, repeats: Sequence[int] = ()) -> Pyramid:
    """Pack spatial shapes for an op: a tensor stays a tensor, ints become a flat list.

    Raises:
        TypeError: If they are neither a tensor nor pairs of ints.
        ValueError: If one is not a pair.
    """
    if isinstance(spatial_shapes, Tensor):
        return Pyramid(spatial_shapes, [], list(repeats))
    sizes: list[Any]
    try:
        sizes = [size for height, width in spatial_shapes for size in (height, width)]
        # Sizes that are symbols, or tensors in a trace, stay that.
        if not torch.compiler.is_compiling() and not is_tracing():
            sizes = [size if isinstance(size, _KEPT) else operator.index(size) for size in sizes]
    except (TypeError, ValueError) as error:
        raise type(error)(f"spatial_shapes must be pairs of ints (height, width), got {spatial_shapes!r}") from error
    return Pyramid(None, sizes, list(repeats))


def sizes_of(on_host: Sequence[int]) -> list[tuple[int, int]]:
    """Return (height, width) of every level from a flat list of even length."""
    return list(zip(on_host[::2], on_host[1::2], strict=False))


def settle(pyramid: Pyramid, pixels: int) -> Pyramid:
    """Return the same levels, with sizes in a CPU tensor read and checked.

    Raises:
        ValueError: If they do not hold as many pixels as there are.
    """
    on_device, _, repeats = pyramid
    if on_device is None or on_device.device.type != "cpu":
        return pyramid
    on_host = on_device.flatten().tolist()
    check_sizes(on_host, pixels)
    return Pyramid(None, on_host, repeats)


def place_levels(pyramid: Pyramid, pixels: int) -> list[Level]:
    """Return the level of every group of points: ints, or scalars of a tensor that is not read."""
    on_device, on_host, repeats = pyramid
    levels: list[Level] = []
    if on_device is None:
        start = 0
        for height, width in sizes_of(on_host):
            levels.append(Level(height, width, start))
            # Not in place: sizes in a trace are tensors.
            start = start + height * width
    else:
        levels = [Level(*row.unbind()) for row in fit_levels(on_device, pixels).unbind()]
    if not repeats:
        return levels
    return [level for level, count in zip(levels, repeats, strict=True) for _ in range(count)]


def fit_levels(sizes: Int[Tensor, "levels 2"], pixels: int) -> Int[Tensor, "levels 3"]:
    """Return height, width and first pixel of every level, in int64; a level that does not fit is empty.

    This is the rule for sizes that only the device knows: a level does not fit if its height or width is negative or
    beyond what kernels can tell apart, or if it reaches beyond the last pixel.
    """
    sizes = sizes.long()
    is_level = ((sizes > 0) & (sizes <= MOST_PIXELS_IN_LINE)).all(1)
    areas = torch.where(is_level, sizes[:, 0] * sizes[:, 1], 0)
    starts = areas.cumsum(0) - areas
    fits = is_level & (starts <= pixels - areas)
    return torch.where(fits[:, None], torch.cat([sizes, starts[:, None]], dim=1), 0)


def check_sizes(on_host: Sequence[int], pixels: int) -> None:
    """Refuse levels, in a flat list, that cannot be, or that do not hold as many pixels as there are.

    Raises:
        ValueError: If a height or width is negative or beyond what kernels can tell apart, or the pixels differ.
    """
    check_range(on_host)
    held = sum(map(operator.mul, on_host[::2], on_host[1::2]))
    if held != pixels:
        raise ValueError(f"spatial_shapes {sizes_of(on_host)} hold {held} pixels, but value holds {pixels}")


def check_range(on_host: Sequence[int]) -> None:
    """Refuse heights and widths, in a flat list, that are negative or beyond what kernels can tell apart.

    Raises:
        ValueError: If there is such a one.
    """
    # One by one, because compilers take the least of several symbols for a reason to compile anew.
    if not all(0 <= size <= MOST_PIXELS_IN_LINE for size in on_host):
        raise ValueError(
            f"spatial_shapes must hold heights and widths from 0 to {MOST_PIXELS_IN_LINE}, got {sizes_of(on_host)}"
        )


def level_sizes(spatial_shapes: SpatialShapes, like: Tensor) -> Tensor:
    """Return (width, height) of every level, (levels, 1, 2), to divide offsets of points by; 1 where it is empty."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.flip(-1).clamp(min=1).to(like, non_blocking=True)[:, None]
    # Filled on the device, because copying a host list there would make the host wait.
    sizes = torch.stack([like.new_full((), size) for height, width in spatial_shapes for size in (width, height)])
    return sizes.view(-1, 1, 2).clamp(min=1)
