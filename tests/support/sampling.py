"""Random input of the operator, and how far results are from those in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Levels of one pixel, one row, one column, and larger ones of odd sizes.
PYRAMIDS = {
    "one_level": [(5, 7)],
    "pixel_row_column": [(1, 1), (1, 6), (4, 1)],
    "four_levels": [(9, 11), (5, 6), (3, 3), (2, 1)],
}

# Largest error relative to the scale of the float64 result: four times the resolution of the stored dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 3.2e-2, torch.float16: 4e-3}


def random_inputs(
    rng: torch.Generator,
    shapes: Sequence[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 7,
    heads: int = 3,
    channels: int = 5,
    points: int = 3,
) -> list[Tensor]:
    """Draw value, locations and weights in float64; a third of the locations leaves the image."""
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(batch, pixels, heads, channels, generator=rng, dtype=torch.float64)
    locations = (
        torch.rand(batch, queries, heads, len(shapes), points, 2, generator=rng, dtype=torch.float64) * 1.5 - 0.25
    )
    weights = torch.randn(batch, queries, heads, len(shapes), points, generator=rng, dtype=torch.float64)
    return [value, locations, weights]


def away_from_pixel_borders(locations: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Move locations to where neither finite differences nor rounding cross a kink of the interpolation."""
    sizes = torch.tensor(shapes, dtype=locations.dtype).flip(-1)[:, None]
    position = locations * sizes - 0.5
    return (position.floor() + (position - position.floor()).clamp(0.1, 0.9) + 0.5) / sizes


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all inputs, on the inputs' device and in their dtypes."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out))]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with the float64 result, relative to its largest number."""
    assert actual.shape == expected.shape
    if not expected.numel():
        return
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((actual.double().cpu() - expected.double()).abs().max() / scale).item()
    assert error <= tolerance, f"off by {error:.3g} of the largest number"
