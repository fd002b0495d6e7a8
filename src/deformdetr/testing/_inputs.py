"""Random inputs of the operator, and calls of it whose exact result is known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

PYRAMIDS: Mapping[str, list[tuple[int, int]]] = {
    "one_level": [(5, 7)],
    "pixel_row_column": [(1, 1), (1, 6), (4, 1)],
    "four_levels": [(9, 11), (5, 6), (3, 3), (2, 1)],
}
"""(height, width) of levels: odd sizes, and levels of one pixel, one row and one column."""

Layout: TypeAlias = Literal["contiguous", "reversed", "strided", "unaligned"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""How a tensor may lie in memory: see `lay_out`."""

_NOWHERE = -10.0


@dataclass(frozen=True, eq=False)
class Problem:
    """One call of the operator in float64, rounded to the dtypes in which the implementation gets it.

    Attributes:
        spatial_shapes: (height, width) of every level.
        value: (batch, pixels, heads, channels).
        sampling_locations: (batch, queries, heads, levels, points, 2) as (x, y); with `points_per_level`, (batch,
            queries, heads, all points, 2).
        attention_weights: As `sampling_locations`, without the last axis.
        grad_output: (batch, queries, heads * channels), with respect to which gradients are taken.
        dtypes: Dtypes of value, locations and weights. Output and `grad_output` have that of the value.
        label: What distinguishes this problem from the others of a case.
        exact_value: Value that the reference gets, if it differs.
        points_per_level: Numbers of points, if levels differ.
        layout: How value, locations and weights lie in memory.
        needs: Whether value, locations and weights need gradients.
    """

    spatial_shapes: Sequence[tuple[int, int]]
    value: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor
    grad_output: Tensor
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    label: str = ""
    exact_value: Tensor | None = None
    points_per_level: tuple[int, ...] | None = None
    layout: Layout = "contiguous"
    needs: tuple[bool, bool, bool] = (True, True, True)

    @property
    def exact_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, locations and weights for the reference: locations that are not finite lie far outside instead."""
        locations = self.sampling_locations
        finite = locations.isfinite().all(-1, keepdim=True)
        value = self.value if self.exact_value is None else self.exact_value
        return value, torch.where(finite, locations, _NOWHERE), self.attention_weights

    def inputs(self, device: torch.device | str) -> list[Tensor]:
        """Return value, locations and weights as leaves for the implementation, in their dtypes and memory layout."""
        tensors = (self.value, self.sampling_locations, self.attention_weights)
        return [
            lay_out(tensor.to(device, dtype), self.layout).requires_grad_(need)
            for tensor, dtype, need in zip(tensors, self.dtypes, self.needs, strict=True)
        ]


def make_problem(
    inputs: Sequence[Tensor],
    spatial_shapes: Sequence[tuple[int, int]],
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    locations_dtype: torch.dtype | None = None,
    weights_dtype: torch.dtype | None = None,
    label: str = "",
) -> Problem:
    """Return a problem from value, locations and weights, with a random gradient of the output.

    Args:
        inputs: Value, sampling locations and attention weights.
        spatial_shapes: (height, width) of every level.
        generator: Generator of the gradient, on the CPU.
        dtype: Dtype of the value.
        locations_dtype: Dtype of the locations; without it, that of the value, but at least float32.
        weights_dtype: Dtype of the weights; without it, that of the value.
        label: What distinguishes this problem from others.

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> inputs = random_inputs(generator, [(5, 7)])
        >>> make_problem(inputs, [(5, 7)], generator, torch.bfloat16).dtypes
        (torch.bfloat16, torch.float32, torch.bfloat16)
    """
    dtypes = (dtype, locations_dtype or torch.promote_types(dtype, torch.float32), weights_dtype or dtype)
    value, locations, weights = (tensor.to(kind).double() for tensor, kind in zip(inputs, dtypes, strict=True))
    batch, queries, heads = weights.shape[:3]
    grad = torch.randn(batch, queries, heads * value.shape[3], generator=generator).to(dtype).double()
    return Problem(spatial_shapes, value, locations, weights, grad, dtypes, label)


def random_inputs(
    generator: torch.Generator,
    spatial_shapes: Sequence[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 7,
    heads: int = 3,
    channels: int = 5,
    points: int = 3,
) -> list[Tensor]:
    """Draw value, sampling locations and attention weights in float64; over half of the samples leave the level.

    Locations lie in [-0.25, 1.25], and weights are normally distributed: nothing sums to one.

    Examples:
        >>> import torch
        >>> value, locations, weights = random_inputs(torch.Generator().manual_seed(0), [(5, 7), (2, 3)])
        >>> value.shape, locations.shape, weights.shape
        (torch.Size([2, 41, 3, 5]), torch.Size([2, 7, 3, 2, 3, 2]), torch.Size([2, 7, 3, 2, 3]))
    """
    pixels = sum(height * width for height, width in spatial_shapes)
    sizes = (batch, queries, heads, len(spatial_shapes), points)
    value = torch.randn(batch, pixels, heads, channels, generator=generator, dtype=torch.float64)
    locations = torch.rand(*sizes, 2, generator=generator, dtype=torch.float64) * 1.5 - 0.25
    return [value, locations, torch.randn(sizes, generator=generator, dtype=torch.float64)]


def away_from_pixel_borders(
    locations: Float[Tensor, "*batch levels points 2"], spatial_shapes: Sequence[tuple[int, int]]
) -> Float[Tensor, "*batch levels points 2"]:
    """Move locations to where neither rounding nor finite differences cross a kink of the interpolation.

    Each keeps at least a tenth of a pixel from the lines through pixel centers, where derivatives jump.

    Examples:
        >>> import torch
        >>> at_a_pixel = torch.full((1, 1, 2), 0.5)
        >>> away_from_pixel_borders(at_a_pixel, [(1, 1)])
        tensor([[[0.6000, 0.6000]]])
    """
    sizes = torch.tensor(spatial_shapes, dtype=locations.dtype).clamp(min=1).flip(-1)[:, None]
    position = locations * sizes - 0.5
    return (position.floor() + (position - position.floor()).clamp(0.1, 0.9) + 0.5) / sizes


def lay_out(tensor: Float[Tensor, "*shape"], layout: Layout) -> Float[Tensor, "*shape"]:
    """Return a copy of a tensor that lies otherwise in memory, which is NaN everywhere else.

    Args:
        tensor: The numbers.
        layout: `contiguous`; `reversed`, with the first axis innermost; `strided`, with every third number;
            `unaligned`, at an odd offset.

    Examples:
        >>> import torch
        >>> lay_out(torch.zeros(2, 3, 4), "reversed").stride()
        (1, 2, 6)
    """
    axes = tuple(reversed(range(tensor.ndim)))
    if layout == "reversed":
        return tensor.permute(axes).clone(memory_format=torch.contiguous_format).permute(axes)
    if layout == "strided":
        memory = tensor.new_full((*tensor.shape, 3), torch.nan)
        return memory[..., 1].copy_(tensor)
    if layout == "unaligned":
        memory = tensor.new_full((tensor.numel() + 14,), torch.nan)
        return memory[7 : 7 + tensor.numel()].view(tensor.shape).copy_(tensor)
    return tensor.clone(memory_format=torch.contiguous_format)


def with_layout(problem: Problem, layout: Layout) -> Problem:
    """Return a problem whose tensors lie otherwise in memory."""
    return replace(problem, layout=layout, label=layout)


def output_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> list[Tensor]:
    """Return the output of a function and the gradients of all its inputs, in their dtypes and on their device.

    Examples:
        >>> import torch
        >>> output_and_gradients(torch.mul, [torch.tensor(2.0), torch.tensor(3.0)], torch.tensor(1.0))
        [tensor(6., grad_fn=<MulBackward0>), tensor(3.), tensor(2.)]
    """
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_output.to(out))]
