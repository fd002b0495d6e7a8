"""Where the levels of a pyramid lie in the flattened features, known to the host or only to the device."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

SpatialShapes: TypeAlias = Sequence[Sequence[int]] | Int[Tensor, "levels 2"]

# Kernels for GPUs unroll the points of a level; more than these are split into groups, which they do not unroll.
MOST_POINTS = 16


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


def split_by_home(spatial_shapes: SpatialShapes, repeats: Sequence[int]) -> Pyramid:
    """Sort the levels by who knows their sizes."""
    if isinstance(spatial_shapes, Tensor):
        return Pyramid(spatial_shapes, [], list(repeats))
    return Pyramid(None, [size for shape in spatial_shapes for size in shape], list(repeats))


def read_levels(pyramid: Pyramid, pixels: int) -> list[Level]:
    """Give the level of every group of points, as ints if the host knows them without waiting.

    Raises:
        ValueError: If known levels do not hold as many pixels as there are.
    """
    on_device, on_host, repeats = pyramid
    if on_device is None:
        sizes = list(zip(on_host[::2], on_host[1::2], strict=True))
    elif on_device.device.type == "cpu":
        sizes = [(height, width) for height, width in on_device.tolist()]
        check_pixels(sizes, pixels)
    else:
        return _repeat(_trace(on_device), repeats)
    return _repeat(_accumulate(sizes), repeats)


def trace_levels(pyramid: Pyramid, pixels: int) -> list[Level]:
    """Do the same without reading a tensor, on whatever device, so that it can be traced."""
    if pyramid.on_device is None:
        return read_levels(pyramid, pixels)
    return _repeat(_trace(pyramid.on_device), pyramid.repeats)


def _trace(spatial_shapes: Tensor) -> list[Level]:
    return _accumulate([(height, width) for height, width in (level.unbind() for level in spatial_shapes.unbind())])


def _repeat(levels: Sequence[Level], repeats: Sequence[int]) -> list[Level]:
    """Give every level once per group of points on it."""
    if not repeats:
        return list(levels)
    return [level for level, count in zip(levels, repeats, strict=True) for _ in range(count)]


def check_pixels(spatial_shapes: Sequence[Sequence[int]], pixels: int) -> None:
    """Refuse levels that do not hold as many pixels as there are.

    Raises:
        ValueError: If they do not.
    """
    held = sum(height * width for height, width in spatial_shapes)
    if held != pixels:
        raise ValueError(f"spatial_shapes {list(spatial_shapes)} hold {held} pixels, but value holds {pixels}")


def _accumulate(sizes: Sequence[tuple[int | Tensor, int | Tensor]]) -> list[Level]:
    levels: list[Level] = []
    start: int | Tensor = 0
    for height, width in sizes:
        levels.append(Level(height, width, start))
        start = start + height * width
    return levels


def level_sizes(spatial_shapes: SpatialShapes, like: Tensor) -> Tensor:
    """Give (width, height) of every level, (levels, 1, 2), to divide offsets of points by."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.flip(-1).to(like, non_blocking=True)[:, None]
    # Filled on the device, because copying a host list there would make the host wait.
    sizes = torch.stack([like.new_full((), size) for height, width in spatial_shapes for size in (width, height)])
    return sizes.view(-1, 1, 2)
