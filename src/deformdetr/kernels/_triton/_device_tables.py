"""Tables that the kernels look up on the device: sizes of levels, orders of pixels and samples.

None of them makes the host wait.
"""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from deformdetr.kernels._levels import Pyramid, fit_levels, place_levels

# Indices are computed in 32 bits below this many elements.
WIDE_FROM = 2**31


def level_table(pyramid: Pyramid, pixels: int, device: torch.device) -> Tensor:
    """Return (levels, 2) of heights and widths. If levels repeat, (groups, 3) has their first pixels as well."""
    tensor, sizes, repeats = pyramid
    if tensor is not None:
        if not repeats:
            return tensor.contiguous()
        rows = fit_levels(tensor, pixels)
        return torch.stack([rows[level] for level, count in enumerate(repeats) for _ in range(count)])
    if not repeats:
        return _cached(_fill, tuple(sizes), device).view(-1, 2)
    numbers = tuple(int(number) for level in place_levels(pyramid, pixels) for number in level)
    return _cached(_fill, numbers, device).view(-1, 3)


def tile_order(pyramid: Pyramid, device: torch.device) -> Tensor | None:
    """Return the indices of all pixels, tile by tile, or None if the host does not know the sizes of the levels."""
    if pyramid.tensor is not None:
        return None
    return _cached(_sort_into_tiles, tuple(pyramid.sizes), device)


def _cached(make: Callable[..., Tensor], numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Cache a small tensor by device and stream, unless a graph is being captured, which would own its memory."""
    if device.type != "cuda":
        return make(numbers, device, 0)
    stream = torch.cuda.current_stream(device).cuda_stream
    if torch.cuda.is_current_stream_capturing():
        tensor: Tensor = inspect.unwrap(make)(numbers, device, stream)
        return tensor
    return make(numbers, device, stream)


@functools.lru_cache(maxsize=1024)
def _fill(numbers: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    # Filled on the device: copying a list there would make the host wait.
    return torch.stack([torch.full((), number, dtype=torch.int64, device=device) for number in numbers])


@functools.lru_cache(maxsize=64)
def _sort_into_tiles(sizes: tuple[int, ...], device: torch.device, stream: int, *, tile: int = 8) -> Tensor:
    orders, start = [], 0
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        pixel = torch.arange(height * width, device=device)
        line, column = pixel // width, pixel % width
        tile_number = line // tile * -(-width // tile) + column // tile
        orders.append(start + (tile_number * (tile * tile) + line % tile * tile + column % tile).argsort())
        start += height * width
    return torch.cat(orders).int()


def sort_by_cell(table: Tensor, locations: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Sort samples by cell, the square between four pixels.

    A level of `h` by `w` pixels has `(h + 1) (w + 1)` cells; those at the border reach outside. They are numbered row
    by row from `4 (image heads + head) pixels + 4 start`, since there are at most four cells per pixel.

    Returns:
        The indices of all samples, stably sorted by cell, and the position in them at which every cell begins.
    """
    batch, _, heads = locations.shape[:3]
    levels = table if table.shape[1] == 3 else fit_levels(table, pixels)
    height, width, start = levels[:, :1], levels[:, 1:2], levels[:, 2:]
    x, y = locations.float().unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    # Without the last condition, samples in the middle of an empty level would be inside.
    inside = (x >= -1) & (x < width) & (y >= -1) & (y < height) & (height * width > 0)
    column, line = (torch.where(inside, position, 0).floor().long() + 1 for position in (x, y))
    plane = torch.arange(batch * heads, device=table.device).view(batch, 1, heads, 1, 1)
    cell = (plane * pixels + start) * 4 + line * (width + 1) + column
    cells = batch * heads * pixels * 4
    cell = torch.where(inside, cell, cells).flatten()
    # Sorting half the bits takes half the time.
    cell = cell.int() if cells < WIDE_FROM - 1 else cell
    cell, order = cell.sort(stable=True)
    return order, torch.searchsorted(cell, torch.arange(cells + 1, device=cell.device, dtype=cell.dtype))
