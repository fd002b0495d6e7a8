"""Where samples lie in a block: the value of some images and heads, a matrix of (images * pixels * heads) rows."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from deformdetr.kernels._ms_deform_attn._levels import Level


class Block:
    """Constants of a block, the same for every query. The axis of samples goes through heads, levels and points.

    Along an axis of `n` pixels, a location `l` is `u = l n - 1/2`. A sample takes from the pixel `i`, which is
    `floor(u)` moved into `0 ... n - 2`, and from `i + 1`: of pixel `j` the share `max(0, 1 - |u - j|)`. That is the
    bilinear weight between two pixels as well as between the last one and the outside, and zero beyond. An axis of one
    pixel has no `i + 1`.
    """

    def __init__(self, levels: Sequence[Level], points: int, shape: Sequence[int], *, queries: int = 1) -> None:
        """Prepare for a value of `shape` (images, pixels, heads, channels).

        Constants are repeated for `queries` where samples are so few that broadcasting in the inner loop costs time.
        """
        images, pixels, heads, _ = shape
        self.rows, self.heads, self._pixels = images * pixels * heads, heads, pixels
        self._levels = sorted({(int(start), int(height), int(width)) for height, width, start in levels})
        axes = (heads, len(levels), points)
        queries = queries if math.prod(axes) < 128 else 1

        def spread(x: Sequence[int], y: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
            """Give (2, 1, queries, samples), x and y, from one number per level for each."""
            numbers = torch.tensor([x, y], dtype=dtype)[:, None, None, None, :, None]
            return numbers.expand(2, 1, queries, *axes).flatten(3)

        heights, widths, starts = zip(*levels, strict=True)
        first = torch.arange(images, dtype=torch.int32).view(-1, 1, 1, 1, 1) * pixels
        first = (first + torch.tensor(starts, dtype=torch.int32)[:, None]) * heads
        first = first + torch.arange(heads, dtype=torch.int32)[:, None, None]
        self._first = first.expand(images, queries, *axes).flatten(2)
        self._stride = spread([heads] * len(levels), [width * heads for width in widths])
        self._last = spread([max(w - 2, 0) for w in widths], [max(h - 2, 0) for h in heights])
        self._zero = torch.zeros((), dtype=torch.int32)
        self._half = torch.tensor(-0.5)
        self._size = spread(widths, heights, torch.float32)
        self._has_far = (self._size > 1).float()
        right, lower = torch.where(self._size > 1, self._stride, 0)[:, :, :1]
        self.corners = (torch.zeros_like(right), right, lower, right + lower)
        """How many rows the upper left, upper right, lower left and lower right pixels are behind the first."""

    def locate(
        self, locations: Float32[Tensor, "images queries samples 2"]
    ) -> tuple[Int32[Tensor, "images queries samples"], Float32[Tensor, "2 images queries samples"]]:
        """Find the rows of the upper left pixels, and the offsets of the samples from their centres in pixels.

        NaN and infinity have some row of their level, and an offset of NaN or infinity.
        """
        # Two planes, in which x and y would otherwise stay interleaved.
        position = torch.empty(2, *locations.shape[:-1])
        torch.addcmul(self._half, locations.movedim(-1, 0), self._size, out=position)
        # Cutting off the fraction differs from `floor` only below zero, from where pixels are moved to zero.
        pixel = position.to(torch.int32)
        torch.clamp(pixel, self._zero, self._last, out=pixel)
        position -= pixel
        x, y = pixel.mul_(self._stride)
        return x.add_(y).add_(self._first), position

    def shares(
        self, offset: Float32[Tensor, "2 images queries samples"]
    ) -> tuple[Float32[Tensor, "2 images queries samples"], Float32[Tensor, "2 images queries samples"]]:
        """Give the shares of the near pixels, left and upper, and of the far ones, right and lower."""
        near = offset.abs().neg_().add_(1).relu_()
        far = (offset - 1).abs_()
        return near, torch.sub(self._has_far, far, out=far).relu_()

    def slopes(
        self, offset: Float32[Tensor, "2 images queries samples"]
    ) -> tuple[Float32[Tensor, "2 images queries samples"], Float32[Tensor, "2 images queries samples"]]:
        """Differentiate the shares by the locations, from the right where they have a kink."""
        cell = offset.floor()
        inside = _equal(cell, 0)
        near = _equal(cell, -1).sub_(inside).mul_(self._size)
        far = inside.sub_(cell.eq_(1)).mul_(self._has_far).mul_(self._size)
        return near, far

    def move_down(self, starts: Int32[Tensor, " starts"]) -> Int32[Tensor, " starts"]:
        """Give where the samples of every row start once all have moved to the row one line below.

        No sample starts in the last line of a level, unless that is the only one; those have no share below.
        """
        lines = starts[:-1].view(-1, self._pixels, self.heads)
        parts = []
        for start, height, width in self._levels:
            first = lines[:, start : start + 1, :1].expand(-1, width, self.heads)
            parts += [first, lines[:, start : start + (height - 1) * width]]
        return torch.cat([torch.cat(parts, 1).flatten(), starts[-1:]])


def _equal(tensor: Tensor, number: int) -> Tensor:
    """Compare into ones and zeros of the tensor's own dtype."""
    return torch.eq(tensor, number, out=torch.empty_like(tensor))
