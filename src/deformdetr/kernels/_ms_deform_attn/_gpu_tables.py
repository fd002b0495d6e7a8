"""What the kernels for GPUs look up: sizes of levels, orders of pixels and samples; made without waiting."""

import functools
import inspect
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from deformdetr.kernels._ms_deform_attn._levels import Pyramid

# Indices are computed in 32 bits below this many elements.
WIDE_FROM = 2**31


def level_table(pyramid: Pyramid, device: torch.device) -> Tensor:
    """Give (levels, 2) of heights and widths, or (groups, 3) with first pixels too where levels repeat."""
    on_device, on_host, repeats = pyramid
    if on_device is not None and on_device.device.type == "cpu":
        on_host = on_device.flatten().tolist()
    elif on_device is not None:
        if not repeats:
            return on_device.contiguous()
        areas = on_device.prod(1)
        starts = areas.cumsum(0) - areas
        rows = torch.cat([on_device, starts[:, None]], dim=1)
        return torch.stack([rows[level] for level, count in enumerate(repeats) for _ in range(count)])
    sizes = list(zip(on_host[::2], on_host[1::2], strict=True))
    if not repeats:
        return _remember(_fill, tuple(on_host), device).view(-1, 2)
    ends = itertools.accumulate(height * width for height, width in sizes)
    numbers = [
        (height, width, end - height * width)
        for (height, width), end, count in zip(sizes, ends, repeats, strict=True)
        for _ in range(count)
    ]
    return _remember(_fill, tuple(itertools.chain(*numbers)), device).view(-1, 3)


def tile_order(pyramid: Pyramid, device: torch.device) -> Tensor | None:
    """Give the pixels' numbers, tile by tile, if the host knows the levels."""
    if pyramid.on_device is not None:
        return None
    return _remember(_sort_into_tiles, tuple(pyramid.on_host), device)


def _remember(make: Callable[..., Tensor], numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Keep small tensors on the device, by the stream that fills them; none that a graph being captured would own."""
    if device.type != "cuda":
        return make(numbers, device, 0)
    stream = torch.cuda.current_stream(device).cuda_stream
    if torch.cuda.is_current_stream_capturing():
        tensor: Tensor = inspect.unwrap(make)(numbers, device, stream)
        return tensor
    return make(numbers, device, stream)


@functools.lru_cache(maxsize=1024)
def _fill(numbers: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    # Filled on the device, because copying a host list there would make the host wait.
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
    """Sort samples by the cell between four pixels in which they lie, without waiting for the device.

    A level of `h` by `w` pixels has `(h + 1) (w + 1)` cells, of which those at the rim reach outside; they are numbered
    row by row, from `4 (image heads + head) pixels + 4 start`, because there are at most four per pixel.

    Returns:
        The numbers of all samples, sorted by cell, in their own order within a cell; and where every cell begins.
    """
    batch, _, heads = locations.shape[:3]
    height, width = table[:, :1], table[:, 1:2]
    areas = height * width
    start = table[:, 2:] if table.shape[1] == 3 else areas.cumsum(0) - areas
    x, y = locations.float().unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    inside = (x >= -1) & (x < width) & (y >= -1) & (y < height)
    column, line = (torch.where(inside, position, 0).floor().long() + 1 for position in (x, y))
    plane = torch.arange(batch * heads, device=table.device).view(batch, 1, heads, 1, 1)
    cell = (plane * pixels + start) * 4 + line * (width + 1) + column
    cells = batch * heads * pixels * 4
    cell = torch.where(inside, cell, cells).flatten()
    # Half the width sorts in half the time.
    cell = cell.int() if cells < WIDE_FROM - 1 else cell
    cell, order = cell.sort(stable=True)
    return order, torch.searchsorted(cell, torch.arange(cells + 1, device=cell.device, dtype=cell.dtype))
