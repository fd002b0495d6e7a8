"""Inputs of the operator, and what it computes from them in float64."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.cases import Levels, OperatorCase
from deformdetr.kernels import ms_deform_attn

Leaf: TypeAlias = Literal["value", "sampling_locations", "attention_weights", "sampling_offsets", "attention_logits"]
Form: TypeAlias = tuple[Leaf, ...]

# What implementations take, and are differentiated by: places and weights, or what these are computed from.
SAMPLED: Form = ("value", "sampling_locations", "attention_weights")
LOGITS: Form = ("value", "sampling_locations", "attention_logits")
OFFSETS: Form = ("value", "sampling_offsets", "attention_logits")

_OFFSET_NOISE = 2.0
_POINTS_AT_ONCE = {"cpu": 2**18, "cuda": 2**21}
_NEAR_PIXEL_CENTRE = 1e-3


@dataclass(frozen=True)
class Inputs:
    """Everything that any form takes; locations are (x, y) as fractions of a level, offsets count its pixels."""

    spatial_shapes: Levels
    value: Float[Tensor, "batch pixels heads channels"]
    reference_points: Float[Tensor, "batch queries levels 2"]
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"]
    attention_logits: Float[Tensor, "batch queries heads levels points"]
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"]
    attention_weights: Float[Tensor, "batch queries heads levels points"]

    def leaves(self, form: Form) -> list[Tensor]:
        """Give the tensors that a form takes."""
        return [getattr(self, name) for name in form]

    def tracking(self, form: Form) -> "Inputs":
        """Give the same with the form's tensors as leaves that are differentiated by."""
        return replace(self, **{name: getattr(self, name).detach().requires_grad_() for name in form})

    def chunks(self, size: int) -> Iterator["Inputs"]:
        """Go through the queries, some at a time."""
        names = [each.name for each in fields(self) if each.name not in ("spatial_shapes", "value")]
        for start in range(0, self.reference_points.shape[1], size):
            yield replace(self, **{name: getattr(self, name)[:, start : start + size] for name in names})

    def double(self) -> "Inputs":
        """Give the same in float64."""
        names = [each.name for each in fields(self) if each.name != "spatial_shapes"]
        return replace(self, **{name: getattr(self, name).double() for name in names})


def draw_inputs(case: OperatorCase, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Draw inputs like those of a layer in training.

    References of encoders are the pixels' centres, those of decoders lie anywhere. Head `m` of `M` looks into the
    direction `2 pi m / M`, its point `p` from a distance of `p + 1` pixels, give or take a normal deviation of two.
    Locations and references are float32, all else has the dtype.
    """
    rng = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, case.n_queries, case.heads, len(case.levels), case.points)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, device=device)

    if case.queries is None:
        reference = pixel_centres(case.levels, device).expand(case.batch, -1, -1)
    else:
        reference = torch.rand(case.batch, case.queries, 2, generator=rng, device=device)
    reference = reference.unsqueeze(2).expand(-1, -1, len(case.levels), -1).contiguous()
    offsets = (directions(case.heads, case.points, device) + _OFFSET_NOISE * normal(*shape, 2)).to(dtype)
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


def pixel_centres(levels: Levels, device: str) -> Float[Tensor, "pixels 2"]:
    """Give the centres (x, y) of the pixels of all levels, as fractions of their level."""
    grids = []
    for height, width in levels:
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) / height,
            (torch.arange(width, device=device) + 0.5) / width,
            indexing="ij",
        )
        grids.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(grids)


def directions(heads: int, points: int, device: str) -> Float[Tensor, "heads 1 points 2"]:
    """Give the offsets (x, y), in pixels, that the heads' points begin training with."""
    angle = torch.arange(heads, device=device) * (2 * math.pi / heads)
    distance = torch.arange(1, points + 1, device=device)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None, None] * distance[:, None]


def locate(
    reference_points: Float[Tensor, "batch queries levels 2"],
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"],
    levels: Levels,
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """Turn offsets in pixels into locations as fractions of each level."""
    return reference_points[:, :, None, :, None] + sampling_offsets / _sizes(levels, sampling_offsets)


def weigh(
    attention_logits: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads levels points"]:
    """Give the softmax over all levels and points."""
    return attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)


def expected(inputs: Inputs, form: Form, grad_output: Tensor | None) -> dict[str, Tensor]:
    """Compute output and, for a gradient of it, those of the form's tensors, in float64, some queries at a time."""
    double = inputs.double()
    batch, _, heads, levels, points = inputs.attention_weights.shape
    size = max(1, _POINTS_AT_ONCE[inputs.value.device.type] // (batch * heads * levels * points))
    outputs = []
    gradients: list[Sequence[Tensor]] = []
    for index, chunk in enumerate(double.chunks(size)):
        if grad_output is None:
            with torch.no_grad():
                outputs.append(_sample(chunk, form))
            continue
        tracked = chunk.tracking(form)
        output = _sample(tracked, form)
        of_chunk = grad_output[:, index * size : (index + 1) * size].double()
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad(output, tracked.leaves(form), of_chunk))
    results = {"output": torch.cat(outputs, dim=1)}
    if gradients:
        by_value, *others = zip(*gradients, strict=True)
        results["grad_value"] = sum(by_value[1:], by_value[0])
        for name, of_chunks in zip(form[1:], others, strict=True):
            results[f"grad_{name}"] = torch.cat(of_chunks, dim=1)
    return results


def comparable(results: dict[str, Tensor], inputs: Inputs, form: Form) -> dict[str, Tensor]:
    """Express gradients of locations per pixel, and leave out places where they jump: pixel centres, nearly."""
    places = f"grad_{form[1]}"
    if places not in results:
        return results
    double = inputs.double()
    locations = double.sampling_locations
    if "sampling_offsets" in form:
        locations = locate(double.reference_points, double.sampling_offsets, inputs.spatial_shapes)
    sizes = _sizes(inputs.spatial_shapes, locations)
    position = locations * sizes - 0.5
    # At such a place along one axis, the derivative along the other one is continuous.
    jumps = (position - position.round()).abs() < _NEAR_PIXEL_CENTRE
    gradient = results[places].double()
    if "sampling_locations" in form:
        gradient = gradient / sizes
    return results | {places: gradient.masked_fill(jumps, 0)}


def _sample(inputs: Inputs, form: Form) -> Tensor:
    if "attention_logits" in form:
        inputs = replace(inputs, attention_weights=weigh(inputs.attention_logits))
    if "sampling_offsets" in form:
        locations = locate(inputs.reference_points, inputs.sampling_offsets, inputs.spatial_shapes)
        inputs = replace(inputs, sampling_locations=locations)
    return ms_deform_attn(
        inputs.value, inputs.spatial_shapes, inputs.sampling_locations, inputs.attention_weights, backend="reference"
    )


def _sizes(levels: Levels, like: Tensor) -> Float[Tensor, "levels 1 2"]:
    return like.new_tensor([(width, height) for height, width in levels])[:, None]
