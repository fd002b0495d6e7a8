"""Inputs of the operator, and its expected results in float64."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.cases import Levels, OperatorCase
from deformdetr.kernels import ms_deform_attn

Leaf: TypeAlias = Literal["value", "sampling_locations", "attention_weights", "sampling_offsets", "attention_logits"]
Form: TypeAlias = tuple[Leaf, ...]

# The tensors that implementations take and compute gradients of.
SAMPLED: Form = ("value", "sampling_locations", "attention_weights")
LOGITS: Form = ("value", "sampling_locations", "attention_logits")
OFFSETS: Form = ("value", "sampling_offsets", "attention_logits")

_OFFSET_NOISE = 2.0
_NEAR_PIXEL_CENTER = 1e-3


@dataclass(frozen=True)
class Inputs:
    """The tensors of all forms; locations are (x, y) as fractions of a level, offsets are in pixels of the level."""

    spatial_shapes: Levels
    value: Float[Tensor, "batch pixels heads channels"]
    reference_points: Float[Tensor, "batch queries levels 2"]
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"]
    attention_logits: Float[Tensor, "batch queries heads levels points"]
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"]
    attention_weights: Float[Tensor, "batch queries heads levels points"]

    @cached_property
    def level_tensors(self) -> tuple[Tensor, Tensor]:
        """Return the spatial shapes and the index of each level's first pixel, as other packages take them."""
        shapes = torch.tensor(self.spatial_shapes, device=self.value.device)
        areas = shapes.prod(1)
        return shapes, areas.cumsum(0) - areas

    def leaves(self, form: Form) -> list[Tensor]:
        """Return the tensors that a form takes."""
        return [getattr(self, name) for name in form]

    def tracking(self, form: Form) -> "Inputs":
        """Return the same inputs with the form's tensors as leaves that require gradients."""
        return replace(self, **{name: getattr(self, name).detach().requires_grad_() for name in form})

    def double(self) -> "Inputs":
        """Return the same inputs in float64."""
        names = [each.name for each in fields(self) if each.name != "spatial_shapes"]
        return replace(self, **{name: getattr(self, name).double() for name in names})


def draw_inputs(case: OperatorCase, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Draw inputs like those of a layer in training.

    Reference points are the pixels' centers in encoders and uniform in decoders. Head `m` of `M` looks in the direction
    `2 pi m / M`: its point `p` lies `p + 1` pixels away, plus normal noise with a deviation of two pixels. Locations
    and reference points are float32; all other tensors have `dtype`.
    """
    rng = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, case.n_queries, case.heads, len(case.levels), case.points)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, device=device)

    if case.queries is None:
        axes = [[(torch.arange(size, device=device) + 0.5) / size for size in level] for level in case.levels]
        centers = torch.cat([torch.cartesian_prod(y, x).flip(-1) for y, x in axes])
        reference = centers.expand(case.batch, -1, -1)
    else:
        reference = torch.rand(case.batch, case.queries, 2, generator=rng, device=device)
    reference = reference.unsqueeze(2).expand(-1, -1, len(case.levels), -1).contiguous()
    angle = torch.arange(case.heads, device=device) * (2 * math.pi / case.heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None, None]
    distance = torch.arange(1, case.points + 1, device=device)[:, None]
    offsets = (direction * distance + _OFFSET_NOISE * normal(*shape, 2)).to(dtype)
    logits = normal(*shape).to(dtype)
    return Inputs(
        spatial_shapes=case.levels,
        value=normal(case.batch, case.pixels, case.heads, case.channels).to(dtype),
        reference_points=reference,
        sampling_offsets=offsets,
        attention_logits=logits,
        sampling_locations=locate(reference, offsets.float(), case.levels),
        attention_weights=weigh(logits.float()).to(dtype),
    )


def locate(
    reference_points: Float[Tensor, "batch queries levels 2"],
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"],
    levels: Levels,
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """Return the locations, as fractions of each level, of offsets in pixels."""
    return reference_points[:, :, None, :, None] + sampling_offsets / _sizes(levels, sampling_offsets)


def weigh(
    attention_logits: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads levels points"]:
    """Return the softmax over all levels and points."""
    return attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)


def expected(inputs: Inputs, form: Form, grad_output: Tensor | None) -> dict[str, Tensor]:
    """Compute the output and, given its gradient, the gradients of the form's tensors in float64, by the reference."""
    double = inputs.double().tracking(form if grad_output is not None else ())
    locations, weights = double.sampling_locations, double.attention_weights
    if "sampling_offsets" in form:
        locations = locate(double.reference_points, double.sampling_offsets, inputs.spatial_shapes)
    if "attention_logits" in form:
        weights = weigh(double.attention_logits)
    output = ms_deform_attn(double.value, inputs.spatial_shapes, locations, weights, backend="reference")
    return with_gradients(output, dict(zip(form, double.leaves(form), strict=True)), grad_output)


def with_gradients(output: Tensor, leaves: Mapping[str, Tensor], grad_output: Tensor | None) -> dict[str, Tensor]:
    """Return the output and, given its gradient, the gradients of the leaves."""
    if grad_output is None:
        return {"output": output.detach()}
    gradients = torch.autograd.grad(output, list(leaves.values()), grad_output.to(output.dtype))
    return {"output": output.detach()} | {f"grad_{name}": g for name, g in zip(leaves, gradients, strict=True)}


def comparable(results: dict[str, Tensor], inputs: Inputs, form: Form) -> dict[str, Tensor]:
    """Scale gradients of locations to pixels, and set them to 0 close to pixel centers, where they jump."""
    name = f"grad_{form[1]}"
    if name not in results:
        return results
    double = inputs.double()
    locations = double.sampling_locations
    if "sampling_offsets" in form:
        locations = locate(double.reference_points, double.sampling_offsets, inputs.spatial_shapes)
    sizes = _sizes(inputs.spatial_shapes, locations)
    position = locations * sizes - 0.5
    # Each axis on its own: at a jump along x, the derivative along y is continuous.
    jumps = (position - position.round()).abs() < _NEAR_PIXEL_CENTER
    gradient = results[name].double()
    if "sampling_locations" in form:
        gradient = gradient / sizes
    return results | {name: gradient.masked_fill(jumps, 0)}


def _sizes(levels: Levels, like: Tensor) -> Float[Tensor, "levels 1 2"]:
    return like.new_tensor([(width, height) for height, width in levels])[:, None]
