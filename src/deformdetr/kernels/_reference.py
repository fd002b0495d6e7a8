"""The specification of multi-scale deformable attention in plain PyTorch: slow, obvious, and exact in float64."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformdetr._dtypes import at_least_float32
from deformdetr.kernels._levels import Level

# What every implementation of the operator takes and returns.
Value: TypeAlias = Float[Tensor, "batch pixels heads channels"]
Locations: TypeAlias = Float[Tensor, "batch queries heads levels points 2"]
Weights: TypeAlias = Float[Tensor, "batch queries heads levels points"]
Output: TypeAlias = Float[Tensor, "batch queries heads*channels"]


class Corner(NamedTuple):
    """One of the four pixels around every sampling point of one level."""

    level: int
    row: Int[Tensor, "batch queries heads points"]
    x_weight: Float[Tensor, "batch queries heads points"]
    y_weight: Float[Tensor, "batch queries heads points"]
    x_sign: int
    y_sign: int


def corners(
    levels: Sequence[Level],
    sampling_locations: Locations,
    pixels: int,
) -> Iterator[Corner]:
    """Iterate over the four corners of every level's sampling points.

    With pixel centers at half-integers, as in `grid_sample(align_corners=False)`: a location `l` in [0, 1] along an
    axis of `n` pixels lies at `u = l n - 1/2`; its neighbors `floor(u)` and `floor(u) + 1` weigh `1 - (u - floor(u))`
    and `u - floor(u)`.

    Args:
        levels: All levels, as ints or as scalar tensors on any device, which are not read on the host.
        sampling_locations: (x, y) as fractions of each level.
        pixels: Number of value positions over all levels.

    Yields:
        `Corner`s whose `row` indexes the result of `_rows`. Corners outside the level have its last row, of zeros.
    """
    batch, _, heads = sampling_locations.shape[:3]
    device = sampling_locations.device
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=device).view(-1, 1)
    for level, (height, width, start) in enumerate(levels):
        location = sampling_locations[:, :, :, level]
        x = location[..., 0] * width - 0.5
        y = location[..., 1] * height - 0.5
        # NaN and infinity are moved outside the level: a product with a weight of zero would not hide them.
        finite = x.isfinite() & y.isfinite()
        x, y = torch.where(finite, x, -2), torch.where(finite, y, -2)
        left, top = x.floor(), y.floor()
        for bottom in (0, 1):
            for right in (0, 1):
                column, line = left + right, top + bottom
                inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
                # Convert to integers before multiplying: float32 products cannot tell pixels beyond 2^24 apart.
                column, line = torch.where(inside, column, 0).long(), torch.where(inside, line, 0).long()
                pixel = start + line * width + column
                yield Corner(
                    level=level,
                    row=torch.where(inside, (image * pixels + pixel) * heads + head, batch * pixels * heads),
                    x_weight=x - left if right else 1 - (x - left),
                    y_weight=y - top if bottom else 1 - (y - top),
                    x_sign=1 if right else -1,
                    y_sign=1 if bottom else -1,
                )


def forward(value: Value, levels: Sequence[Level], sampling_locations: Locations, attention_weights: Weights) -> Output:
    """Sum bilinear samples of `value`, weighted by attention, over levels and points.

    `out[b, q, m] = sum_{l, p} A[b, q, m, l, p] * bilinear(value[b, level l, m], locations[b, q, m, l, p])`

    Sums are formed in float32 at least. Autograd differentiates this any number of times.
    """
    batch, pixels, heads, channels = value.shape
    rows = _rows(value)
    locations = sampling_locations.to(rows.dtype)
    weights = attention_weights.to(rows.dtype)
    out = rows.new_zeros(batch, sampling_locations.shape[1], heads, channels)
    for corner in corners(levels, locations, pixels):
        weight = weights[:, :, :, corner.level] * corner.x_weight * corner.y_weight
        out = out + (weight.unsqueeze(-1) * rows[corner.row]).sum(3)
    return out.flatten(2).to(value.dtype)


def backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Value,
    levels: Sequence[Level],
    sampling_locations: Locations,
    attention_weights: Weights,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Value | None, Locations | None, Weights | None]:
    """Return the gradients of `forward` with respect to value, locations and weights; None for those not needed.

    With `g` the gradient of one output, corner weights `w_x w_y` and `d = g . v` for the corner's pixel `v`:

    * value: `A w_x w_y g`, added to the corner's pixel
    * attention weight: `sum over corners of w_x w_y d`
    * location: `sum over corners of A (± w_y width, ± w_x height) d`, with + for the right and the lower corners

    At integer positions, where the derivative jumps, this is the derivative from the right.
    """
    pixels, channels = value.shape[1], value.shape[3]
    rows = _rows(value)
    locations = sampling_locations.to(rows.dtype)
    weights = attention_weights.to(rows.dtype)
    grad = grad_output.to(rows.dtype).reshape(*weights.shape[:3], 1, channels)

    grad_rows = torch.zeros_like(rows)
    grad_weights = [torch.zeros_like(weights[:, :, :, 0]) for _ in levels]
    grad_x = [torch.zeros_like(weight) for weight in grad_weights]
    grad_y = [torch.zeros_like(weight) for weight in grad_weights]
    for corner in corners(levels, locations, pixels):
        level = corner.level
        weight = weights[:, :, :, level]
        dot = (grad * rows[corner.row]).sum(-1)
        grad_weights[level] = grad_weights[level] + corner.x_weight * corner.y_weight * dot
        grad_x[level] = grad_x[level] + corner.x_sign * corner.y_weight * weight * dot
        grad_y[level] = grad_y[level] + corner.y_sign * corner.x_weight * weight * dot
        share = weight * corner.x_weight * corner.y_weight
        grad_rows.index_add_(0, corner.row.flatten(), (share.unsqueeze(-1) * grad).flatten(0, -2))

    grad_locations = torch.stack(
        [
            torch.stack([x * width, y * height], dim=-1)
            for x, y, (height, width, _) in zip(grad_x, grad_y, levels, strict=True)
        ],
        dim=3,
    )
    needs_value, needs_locations, needs_weights = needs
    return (
        grad_rows[:-1].view(value.shape).to(value.dtype) if needs_value else None,
        grad_locations.to(sampling_locations.dtype) if needs_locations else None,
        torch.stack(grad_weights, dim=3).to(attention_weights.dtype) if needs_weights else None,
    )


def _rows(value: Tensor) -> Float[Tensor, "rows channels"]:
    """Return a row for every pixel and head, and one of zeros for everything outside the levels."""
    rows = at_least_float32(value.flatten(0, 2))
    return torch.cat([rows, rows.new_zeros(1, value.shape[3])])
