"""Where samples lie in a block: the value of some images and heads, a matrix of (images * pixels * heads) rows."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from deformdetr.kernels._ms_deform_attn._levels import Level

CPU = torch.device("cpu")
# Samples for each pixel, below which a level has few of them.
FEW = 0.5
# Samples of one image, up to which constants are kept: a megabyte or two.
MOST_KEPT = 2**15


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
        self.images, self.queries, self.heads = images, queries, heads
        self.groups, self.points = len(levels), points
        self._split(levels, queries)
        axes = (heads, len(levels), points)
        queries = queries if math.prod(axes) < 128 else 1

        def spread(x: Sequence[int], y: Sequence[int], dtype: torch.dtype = torch.int32) -> Tensor:
            """Give (2, 1, queries, samples), x and y, from one number per level for each."""
            numbers = torch.tensor([x, y], dtype=dtype, device=CPU)[:, None, None, None, :, None]
            return numbers.expand(2, 1, queries, *axes).flatten(3)

        heights, widths, starts = zip(*levels, strict=True)
        first = torch.arange(images, dtype=torch.int32, device=CPU).view(-1, 1, 1, 1, 1) * pixels
        first = (first + torch.tensor(starts, dtype=torch.int32, device=CPU)[:, None]) * heads
        first = first + torch.arange(heads, dtype=torch.int32, device=CPU)[:, None, None]
        self._first = first.expand(images, queries, *axes).flatten(2)
        self._stride = spread([heads] * len(levels), [width * heads for width in widths])
        self._last = spread([max(w - 2, 0) for w in widths], [max(h - 2, 0) for h in heights])
        self._zero = torch.zeros((), dtype=torch.int32, device=CPU)
        self._half = torch.tensor(-0.5, dtype=torch.float32, device=CPU)
        self._size = spread(widths, heights, torch.float32)
        self._has_far = (self._size > 1).float()
        right, lower = torch.where(self._size > 1, self._stride, 0)[:, :, :1]
        self.corners = (torch.zeros_like(right), right, lower, right + lower)
        """How many rows the upper left, upper right, lower left and lower right pixels are behind the first."""
        self.steps = [corner.view(axes)[0, :, :1] for corner in self.corners]
        """The same for (groups, points)."""

    def _split(self, levels: Sequence[Level], queries: int) -> None:
        """Find how many groups of points and rows come before the first level with many samples for its size."""
        groups = Counter(levels)
        is_few = [groups[level] * self.points * queries < FEW * level.height * level.width for level in groups]
        few = len(list(itertools.takewhile(bool, is_few)))
        self.few = sum(itertools.islice(groups.values(), few))
        self._many = list(groups)[few:]
        self.few_rows = self.heads * (self._many[0].start if self._many else 0)

    def locate(
        self, locations: Float32[Tensor, "images queries samples 2"]
    ) -> tuple[Int32[Tensor, "images queries samples"], Float32[Tensor, "2 images queries samples"]]:
        """Find the rows of the upper left pixels, and the offsets of the samples from their centres in pixels.

        NaN and infinity have some row of their level, and an offset of NaN or infinity.
        """
        # Two planes, in which x and y would otherwise stay interleaved.
        position = locations.new_empty(2, *locations.shape[:-1])
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

    @functools.cached_property
    def bag(self) -> Int32[Tensor, " entries"]:
        """The bag of every entry: first four for every sample on levels with few of them, then one for every other."""
        of_bag = torch.arange(self.images * self.queries * self.heads, dtype=torch.int32, device=CPU)[:, None]
        counts = 4 * self.few * self.points, (self.groups - self.few) * self.points
        return torch.cat([of_bag.expand(-1, count).flatten() for count in counts])

    def move_down(self, starts: Int32[Tensor, " starts"]) -> Int32[Tensor, " starts"]:
        """Give where the samples of every row start once all have moved to the row one line below, on the other levels.

        No sample starts in the last line of a level, unless that is the only one; those have no share below.
        """
        lines = starts[:-1].view(-1, self.heads)
        parts = []
        for height, width, start in self._many:
            first = start - self._many[0].start
            parts += [
                lines[first : first + 1, :1].expand(int(width), self.heads),
                lines[first : first + (height - 1) * width],
            ]
        return torch.cat([torch.cat(parts).flatten(), starts[-1:]])


def make_block(levels: Sequence[Level], points: int, shape: Sequence[int], *, queries: int = 1) -> Block:
    """Give the block of these arguments, the same as the last time if it takes little memory."""
    make = _keep_block if queries * shape[2] * len(levels) * points <= MOST_KEPT else Block
    return make(tuple(levels), points, tuple(shape), queries=queries)


@functools.lru_cache(maxsize=16)
def _keep_block(levels: Sequence[Level], points: int, shape: Sequence[int], *, queries: int) -> Block:
    return Block(levels, points, shape, queries=queries)


def _equal(tensor: Tensor, number: int) -> Tensor:
    """Compare into ones and zeros of the tensor's own dtype."""
    return torch.eq(tensor, number, out=torch.empty_like(tensor))
