"""Sizes of the levels of a feature pyramid, and where each level lies in the flattened features."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from deformdetr._tracing import is_tracing

SpatialShapes: TypeAlias = Sequence[Sequence[int]] | Int[Tensor, "levels 2"]

# The Triton kernels unroll the points of a level; more points than this are split into groups.
MOST_POINTS = 16
# Kernels compute positions in float32, which cannot tell more pixels along one axis apart.
MOST_PIXELS_IN_LINE = 2**24


class Level(NamedTuple):
    """One level. All numbers are ints, or all are scalar tensors, which are never read on the host."""

    height: int | Tensor
    width: int | Tensor
    start: int | Tensor
    """First pixel in the flattened features."""


class Pyramid(NamedTuple):
    """Sizes of all levels as an op takes them: in a tensor or as ints, which are symbols under a compiler."""

    tensor: Tensor | None
    """(levels, 2) of heights and widths, on any device; None if they are ints."""
    sizes: list[int]
    """Height and width of every level in a flat list; empty if they are in a tensor."""
    repeats: list[int]
    """Number of consecutive groups of points per level; empty for one each."""


def pack_shapes(spatial_shapes: Any, repeats: Sequence[int] = ()) -> Pyramid:
    """Pack spatial shapes for the op: a tensor stays a tensor, ints become a flat list.

    Raises:
        TypeError: If they are neither a tensor nor pairs of ints.
        ValueError: If an item is not a pair.
    """
    if isinstance(spatial_shapes, Tensor):
        return Pyramid(spatial_shapes, [], list(repeats))
    sizes: list[Any]
    try:
        sizes = [size for height, width in spatial_shapes for size in (height, width)]
        # Compilers trace sizes as symbols, `torch.jit.trace` as tensors.
        if not torch.compiler.is_compiling() and not is_tracing():
            sizes = [size if isinstance(size, int | torch.SymInt) else operator.index(size) for size in sizes]
    except (TypeError, ValueError) as error:
        raise type(error)(f"spatial_shapes must be pairs of ints (height, width), got {spatial_shapes!r}") from error
    return Pyramid(None, sizes, list(repeats))


def pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (height, width) of every level from a flat list of even length."""
    return list(zip(sizes[::2], sizes[1::2], strict=False))


def read_on_cpu(pyramid: Pyramid, pixels: int) -> Pyramid:
    """Return the pyramid with ints in place of a tensor on the CPU. Tensors on other devices are not read.

    Raises:
        ValueError: If a size is impossible, or the levels do not hold `pixels` pixels.
    """
    if pyramid.tensor is None or pyramid.tensor.device.type != "cpu":
        return pyramid
    sizes = pyramid.tensor.flatten().tolist()
    check_sizes(sizes, pixels)
    return Pyramid(None, sizes, pyramid.repeats)


def place_levels(pyramid: Pyramid, pixels: int) -> list[Level]:
    """Return the level of every group of points."""
    levels: list[Level] = []
    if pyramid.tensor is None:
        start = 0
        for height, width in zip(pyramid.sizes[::2], pyramid.sizes[1::2], strict=False):
            levels.append(Level(height, width, start))
            # Not in place: sizes are tensors while `torch.jit.trace` records.
            start = start + height * width
    else:
        levels = [Level(*row.unbind()) for row in fit_levels(pyramid.tensor, pixels).unbind()]
    if not pyramid.repeats:
        return levels
    return [level for level, count in zip(levels, pyramid.repeats, strict=True) for _ in range(count)]


def fit_levels(sizes: Int[Tensor, "levels 2"], pixels: int) -> Int[Tensor, "levels 3"]:
    """Return height, width and first pixel of every level in int64, without reading them on the host.

    Levels that do not fit become empty: those with a negative or too large height or width, and those that reach beyond
    the last pixel.
    """
    sizes = sizes.long()
    is_level = ((sizes > 0) & (sizes <= MOST_PIXELS_IN_LINE)).all(1)
    areas = torch.where(is_level, sizes[:, 0] * sizes[:, 1], 0)
    starts = areas.cumsum(0) - areas
    fits = is_level & (starts <= pixels - areas)
    return torch.where(fits[:, None], torch.cat([sizes, starts[:, None]], dim=1), 0)


def check_sizes(sizes: Sequence[int], pixels: int | None = None) -> None:
    """Check heights and widths in a flat list, and that the levels hold `pixels` pixels.

    Raises:
        ValueError: If a height or width is negative or too large, or the levels hold another number of pixels.
    """
    # One by one: `min` of several symbols makes compilers compile anew.
    for size in sizes:
        if not 0 <= size <= MOST_PIXELS_IN_LINE:
            raise ValueError(
                f"spatial_shapes must hold heights and widths from 0 to {MOST_PIXELS_IN_LINE}, got {pairs(sizes)}"
            )
    if pixels is None:
        return
    held = sum(map(operator.mul, sizes[::2], sizes[1::2]))
    if held != pixels:
        raise ValueError(f"spatial_shapes {pairs(sizes)} hold {held} pixels, but value holds {pixels}")


def level_sizes(pyramid: Pyramid, like: Tensor) -> Tensor:
    """Return (width, height) of every group of points, (groups, 1, 2), in the dtype and on the device of `like`.

    Empty levels have size 1, so that offsets can be divided by it.
    """
    if pyramid.tensor is not None:
        sizes = pyramid.tensor.flip(-1).to(like, non_blocking=True)
    else:
        # Filled on the device: copying a list there would make the host wait.
        sizes = torch.stack([like.new_full((), size) for pair in pairs(pyramid.sizes) for size in reversed(pair)])
    sizes = sizes.view(-1, 1, 2).clamp(min=1)
    if not pyramid.repeats:
        return sizes
    return torch.cat([size.expand(count, 1, 2) for size, count in zip(sizes.unbind(), pyramid.repeats, strict=True)])


def level_columns(levels: Sequence[Level], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return height, width and first pixel of all levels, each as integers of shape (levels, 1)."""
    height, width, start = (
        torch.stack(
            [
                number.to(torch.int64) if isinstance(number, Tensor) else torch.full((), number, device=device)
                for number in numbers
            ]
        )[:, None]
        for numbers in zip(*levels, strict=True)
    )
    return height, width, start
