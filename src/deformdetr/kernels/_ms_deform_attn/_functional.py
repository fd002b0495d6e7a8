"""The public functions: arguments checked, then on to the kernels."""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deformdetr._dtypes import at_least_float32
from deformdetr._tracing import compares_sizes, fixed_size, is_tracing
from deformdetr.kernels._ms_deform_attn import _dispatch, _fused_op, _op, _reference
from deformdetr.kernels._ms_deform_attn._checks import (
    check_floating,
    check_levels,
    check_offsets,
    check_output,
    check_padding,
    check_references,
    check_samples,
)
from deformdetr.kernels._ms_deform_attn._levels import (
    MOST_POINTS,
    SpatialShapes,
    level_sizes,
    place_levels,
    split_by_home,
)

Backend: TypeAlias = Literal["auto", "reference"]


def ms_deform_attn(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads *levels_and_points 2"],
    attention_weights: Float[Tensor, "batch queries heads *levels_and_points"],
    backend: Backend = "auto",
    *,
    points_per_level: Sequence[int] | None = None,
    deterministic: bool | None = None,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Sum bilinear samples of multi-scale features, weighted by attention.

    Pixel centres lie at half-integers, and everything outside a level is zero, as in
    `grid_sample(align_corners=False, padding_mode="zeros")`. Samples at NaN or infinite locations are zero, and what is
    stored at pixels that are not sampled does not matter. Sums are formed in float32 for half precision; the result has
    the dtype of `value`, and the three floating inputs may differ in dtype (keep locations in float32: a bfloat16
    location is off by 0.65 pixels on a feature map 167 pixels wide).

    Args:
        value: Features of all levels, flattened row by row and concatenated, split into heads.
        spatial_shapes: (height, width) of every level, finest or coarsest first, in the order of `value`: Python ints,
            or an integer tensor, which is read on the device where it lies. Neither form makes the host wait for a GPU.
        sampling_locations: (x, y) as fractions of each level's width and height; [0, 1] is the inside. Shape (batch,
            queries, heads, levels, points, 2).
        attention_weights: Usually a softmax over levels and points; used as they are. Shape (batch, queries, heads,
            levels, points).
        backend: `auto` chooses by device and dtype; `reference` is the plain PyTorch specification, which autograd
            differentiates any number of times.
        points_per_level: Where levels differ in their number of points: the number for each. Locations and weights then
            have one axis of all points, level by level, in place of those of levels and points.
        deterministic: Whether gradients are bit-identical from run to run, which is slower on GPUs; None does as
            `torch.use_deterministic_algorithms` says. float64 on GPUs follows that alone.

    Raises:
        TypeError: If a tensor is not one, or not floating-point, or `spatial_shapes` holds anything but integers.
        ValueError: If shapes disagree, or the levels do not hold as many pixels as `value`. Sizes that only a GPU
            knows are not checked: a level counts as empty there if it does not fit into `value`.

    References:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, equation 3.
    """
    pyramid = split_by_home(spatial_shapes)
    if points_per_level is not None:
        sampling_locations, attention_weights, repeats = _group_points(
            sampling_locations, attention_weights, points_per_level
        )
        pyramid = pyramid._replace(repeats=repeats)
    check_samples(value, sampling_locations, attention_weights)
    check_levels(pyramid, value, attention_weights.shape[3])
    # A trace has to serve other sizes, which it does not keep as numbers.
    if _is_auto(backend) and not is_tracing():
        return _op.attend(
            value, pyramid, sampling_locations, attention_weights, deterministic=_is_deterministic(deterministic)
        )
    _op.check_memory(value, sampling_locations, attention_weights)
    return _reference.forward(value, place_levels(pyramid, value.shape[1]), sampling_locations, attention_weights)


def ms_deform_attn_backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    *,
    deterministic: bool | None = None,
) -> tuple[
    Float[Tensor, "batch pixels heads channels"],
    Float[Tensor, "batch queries heads levels points 2"],
    Float[Tensor, "batch queries heads levels points"],
]:
    """Give the gradients of `ms_deform_attn` by its value, locations and weights.

    For autograd functions of other code; `ms_deform_attn` itself is differentiable. Arguments and errors are those of
    `ms_deform_attn`; `grad_output` has the shape of what it returns.
    """
    pyramid = split_by_home(spatial_shapes)
    check_samples(value, sampling_locations, attention_weights)
    check_levels(pyramid, value, attention_weights.shape[3])
    check_output("grad_output", grad_output, value, attention_weights)
    return _op.differentiate(
        grad_output,
        value,
        pyramid,
        sampling_locations,
        attention_weights,
        deterministic=_is_deterministic(deterministic),
    )


def fused_ms_deform_attn(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    reference_points: Float[Tensor, "#batch queries #levels coordinates"],
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"],
    attention_logits: Float[Tensor, "batch queries heads levels points"],
    padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    *,
    backend: Backend = "auto",
    deterministic: bool | None = None,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Attend from what a layer predicts: offsets from reference points, and logits.

    The same as `ms_deform_attn` of `sampling_locations(reference_points, sampling_offsets, spatial_shapes)` and of the
    softmax of the logits over levels and points, with padded pixels set to zero. On GPUs one kernel does all of it, and
    neither locations, weights nor masked features are ever stored.

    Args:
        value: As in `ms_deform_attn`.
        spatial_shapes: As in `ms_deform_attn`.
        reference_points: Fractions of each level: centres (x, y), or boxes (cx, cy, w, h), which scale the offsets. One
            that holds for every image, or for every level, may have a single one there. Keep it in float32.
        sampling_offsets: (x, y) in pixels of each level from a centre, or in shares of half a box, divided by the
            number of points.
        attention_logits: Attention before its softmax.
        padding_mask: True at padded pixels, which count as zero.
        backend: As in `ms_deform_attn`.
        deterministic: As in `ms_deform_attn`.

    Raises:
        TypeError: If a tensor is of the wrong kind.
        ValueError: If shapes disagree.
    """
    pyramid = split_by_home(spatial_shapes)
    check_samples(value, sampling_offsets, attention_logits, names=_fused_op.NAMES)
    check_levels(pyramid, value, attention_logits.shape[3])
    check_references(reference_points, attention_logits)
    check_padding(padding_mask, value)
    deterministic = _is_deterministic(deterministic)
    tensors = (value, reference_points, sampling_offsets, attention_logits)
    # A fixed order of sums takes a sorted list of samples, which needs their locations; `vmap` needs rules.
    if (
        _is_auto(backend)
        and not deterministic
        and not is_tracing()
        and attention_logits.shape[4] <= MOST_POINTS
        and _dispatch.runs_triton(*tensors)
        and not _op.is_transformed()
    ):
        return _fused_op.attend(value, pyramid, *tensors[1:], padding_mask)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    locations = _locate(reference_points, sampling_offsets, spatial_shapes)
    weights = _softmax(attention_logits)
    return ms_deform_attn(value, spatial_shapes, locations, weights, backend, deterministic=deterministic)


def sampling_locations(
    reference_points: Float[Tensor, "#batch queries #levels coordinates"],
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"],
    spatial_shapes: SpatialShapes,
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """Return where each query samples, (x, y) as fractions of each level, in float32 or better.

    An offset counts pixels of its level from a center (x, y), and shares of half a box (cx, cy, w, h), divided by the
    number of points: eighths of the box for the usual four.

    Raises:
        TypeError: If a tensor is of the wrong kind.
        ValueError: If shapes disagree.
    """
    check_offsets(reference_points, sampling_offsets, split_by_home(spatial_shapes))
    return _locate(reference_points, sampling_offsets, spatial_shapes)


def _locate(reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: SpatialShapes) -> Tensor:
    levels, points = sampling_offsets.shape[3:5]

    def spread(coordinates: Tensor) -> Tensor:
        """Repeat (..., #levels, 1, 2) for all levels and points, beside each other: broadcasting twos is slow."""
        return coordinates.expand(*coordinates.shape[:-3], levels, points, 2).flatten(-3)

    references = at_least_float32(reference_points)[:, :, None, :, None]
    offsets = at_least_float32(sampling_offsets).flatten(3)
    if fixed_size(references.shape[-1]) == 2:
        sizes = spread(level_sizes(spatial_shapes, offsets))
        # PyTorch's older exporter, which traces, has no form for the faster one.
        shifts = spread(references)
        locations = shifts + offsets / sizes if is_tracing() else torch.addcdiv(shifts, offsets, sizes)
    else:
        half_sizes = spread(references[..., 2:]) * (0.5 / max(fixed_size(points), 1))
        locations = torch.addcmul(spread(references[..., :2]), offsets, half_sizes)
    return locations.view(*sampling_offsets.shape[:3], levels, points, 2)


def _softmax(logits: Float[Tensor, "batch queries heads levels points"]) -> Tensor:
    """Share attention among levels and points, in float32 or better."""
    flat = at_least_float32(logits).flatten(3)
    if logits.device.type == "cpu" and fixed_size(flat.shape[3]) < 16 and not torch.compiler.is_compiling():
        # PyTorch takes several times as long for so few numbers that lie beside each other; compilers do not.
        return flat.movedim(3, 0).softmax(0).movedim(0, 3).reshape(logits.shape)
    return flat.softmax(3).view(logits.shape)


def _is_auto(backend: str) -> bool:
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend must be 'auto' or 'reference', got {backend!r}")
    return backend == "auto"


def _is_deterministic(wanted: bool | None) -> bool:  # noqa: FBT001
    return torch.are_deterministic_algorithms_enabled() if wanted is None else wanted


@compares_sizes
def _group_points(
    locations: Tensor, weights: Tensor, points_per_level: Sequence[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Cut the points into groups of equal size, several of which may lie on one level."""
    if not points_per_level or min(points_per_level) < 1:
        raise ValueError(f"points_per_level must be positive numbers, one per level, got {list(points_per_level)}")
    check_floating("sampling_locations", locations)
    check_floating("attention_weights", weights)
    total = sum(points_per_level)
    if weights.ndim != 4 or weights.shape[-1] != total or locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"with points_per_level {list(points_per_level)}, attention_weights must have 4 dimensions, the last of "
            f"{total}, and sampling_locations one more of 2; got {tuple(weights.shape)} and {tuple(locations.shape)}"
        )
    size = math.gcd(*points_per_level)
    shape = (*weights.shape[:3], total // size, size)
    repeats = [count // size for count in points_per_level]
    if all(count == 1 for count in repeats):
        repeats = []
    return locations.reshape(*shape, 2), weights.reshape(shape), repeats
