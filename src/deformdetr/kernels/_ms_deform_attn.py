"""Public functions: they check their arguments and run the operator."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deformdetr.kernels import _op
from deformdetr.kernels._checks import check_arguments, check_offsets, check_output
from deformdetr.kernels._levels import SpatialShapes, pack_shapes
from deformdetr.kernels._points import count_groups, group_points, group_references
from deformdetr.kernels._sampling import locate_samples, mask_padding, normalize_attention

Backend: TypeAlias = Literal["auto", "reference"]
Method: TypeAlias = Literal["bilinear", "discrete"]


def ms_deform_attn(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads *levels_and_points 2"],
    attention_weights: Float[Tensor, "batch queries heads *levels_and_points"],
    backend: Backend = "auto",
    *,
    method: Method = "bilinear",
    points_per_level: Sequence[int] | None = None,
    deterministic: bool | None = None,
    grad_value_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Return the attention-weighted sum of bilinear samples of multi-scale features.

    Pixel centers lie at half-integers, and everything outside a level is zero, as in
    `grid_sample(align_corners=False, padding_mode="zeros")`. Samples at NaN or infinite locations are zero. Pixels that
    are not sampled do not influence the result, even if they are NaN. Sums are formed in float32 for half precision,
    and the result has the dtype of `value`. The three floating-point inputs may differ in dtype. Keep locations in
    float32: on a feature map 167 pixels wide, neighboring bfloat16 locations are up to 0.65 pixels apart.

    Args:
        value: Features of all levels, flattened row by row, concatenated, and split into heads.
        spatial_shapes: (height, width) of every level, in the order of `value`: Python ints, or an integer tensor,
            which is read on its own device. Neither form makes the host wait for a GPU.
        sampling_locations: (x, y) as fractions of each level's width and height; [0, 1] is inside. Shape (batch,
            queries, heads, levels, points, 2).
        attention_weights: Usually a softmax over levels and points; not normalized here. Shape (batch, queries, heads,
            levels, points).
        backend: `auto` chooses by device and dtype. `reference` is the specification in plain PyTorch, which autograd
            differentiates any number of times.
        method: `bilinear`, or RT-DETRv2's `discrete`: a sample is the pixel `floor(location * size + 1/2)` along each
            axis, moved into the level. NaN counts as 0, and locations have no gradient. On every device it is a gather
            and a weighted sum of PyTorch's, which any exporter supports.
        points_per_level: Number of points of each level, if levels differ. Locations and weights then have one axis of
            all points, level by level, in place of those of levels and points.
        deterministic: Whether gradients are bit-identical from run to run, which is slower on GPUs. None follows
            `torch.use_deterministic_algorithms`. float64 on GPUs follows that setting alone.
        grad_value_dtype: Dtype in which the gradient of `value` is summed. float16 or bfloat16 applies to a value of
            that dtype on GPUs that add vectors of it, those of NVIDIA from compute capability 9.0 on. It halves the
            traffic and rounds after every addition: a sum of ones in bfloat16 stops at 256. Everything else, and sums
            in a fixed order, are formed in float32.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or `spatial_shapes` holds anything but integers.
        ValueError: If `grad_value_dtype` is another dtype, shapes disagree, or the levels do not hold as many pixels as
            `value`. Sizes that only a GPU knows are not checked: a level that does not fit into `value` counts as empty
            there.

    References:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, equation 3;
        Lv et al., "RT-DETRv2", 2024, for discrete sampling and points that differ between levels.

    Examples:
        >>> import torch
        >>> value = torch.arange(6.0).view(1, 6, 1, 1)  # One level of 2 rows and 3 columns.
        >>> center = torch.full((1, 1, 1, 1, 1, 2), 0.5)
        >>> ms_deform_attn(value, [(2, 3)], center, torch.ones(1, 1, 1, 1, 1))
        tensor([[[2.5000]]])
    """
    repeats: Sequence[int] = ()
    if points_per_level is not None:
        repeats = count_groups(points_per_level)
        sampling_locations = group_points("sampling_locations", sampling_locations, points_per_level, 2)
        attention_weights = group_points("attention_weights", attention_weights, points_per_level)
    pyramid = pack_shapes(spatial_shapes, repeats)
    check_arguments(value, pyramid, sampling_locations, attention_weights)
    run = _op.choose_forward(backend, method, value, sampling_locations, attention_weights)
    return run(
        value, *pyramid, sampling_locations, attention_weights, None, None, _is_deterministic(deterministic),
        _sums_in_half(grad_value_dtype, value),
    )  # fmt: skip


def ms_deform_attn_backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    *,
    deterministic: bool | None = None,
    grad_value_dtype: torch.dtype = torch.float32,
) -> tuple[
    Float[Tensor, "batch pixels heads channels"],
    Float[Tensor, "batch queries heads levels points 2"],
    Float[Tensor, "batch queries heads levels points"],
]:
    """Return the gradients of `ms_deform_attn` with respect to value, locations and weights.

    For autograd functions in other code; `ms_deform_attn` itself is differentiable. Arguments and errors are those of
    `ms_deform_attn`, and `grad_output` has the shape of its result.

    Examples:
        >>> import torch
        >>> value, center = torch.arange(6.0).view(1, 6, 1, 1), torch.full((1, 1, 1, 1, 1, 2), 0.5)
        >>> grads = ms_deform_attn_backward(torch.ones(1, 1, 1), value, [(2, 3)], center, torch.ones(1, 1, 1, 1, 1))
        >>> grads[0].view(2, 3)
        tensor([[0.0000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.0000]])
    """
    pyramid = pack_shapes(spatial_shapes)
    check_arguments(value, pyramid, sampling_locations, attention_weights)
    check_output("grad_output", grad_output, value, attention_weights)
    run = _op.choose_backward(grad_output, value, sampling_locations, attention_weights)
    grad_value, grad_locations, grad_weights, _ = run(
        grad_output, None, value, *pyramid, sampling_locations, attention_weights, None, None,
        _is_deterministic(deterministic), True, True, True, False, _sums_in_half(grad_value_dtype, value),
    )  # fmt: skip
    return grad_value, grad_locations, grad_weights


def fused_ms_deform_attn(
    value: Float[Tensor, "batch pixels heads channels"],
    spatial_shapes: SpatialShapes,
    reference_points: Float[Tensor, "#batch queries #levels coordinates"],
    sampling_offsets: Float[Tensor, "batch queries heads *levels_and_points 2"],
    attention_logits: Float[Tensor, "batch queries heads *levels_and_points"],
    padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    *,
    backend: Backend = "auto",
    method: Method = "bilinear",
    points_per_level: Sequence[int] | None = None,
    deterministic: bool | None = None,
    grad_value_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch queries heads*channels"]:
    """Return what `ms_deform_attn` does, from offsets and logits as a layer predicts them.

    Equal to `ms_deform_attn` at `sampling_locations(reference_points, sampling_offsets, spatial_shapes)`, weighted by
    the softmax of the logits over all levels and points, with padded pixels set to zero. On GPUs one kernel does all of
    it, and neither locations, weights nor masked features are stored.

    Args:
        value: As in `ms_deform_attn`.
        spatial_shapes: As in `ms_deform_attn`.
        reference_points: Fractions of each level: centers (x, y), or boxes (cx, cy, w, h), which scale the offsets. The
            axes of images and levels may have size 1, which holds for all. Keep them in float32.
        sampling_offsets: (x, y), in pixels of each level from a center, or in halves of a box's size divided by the
            number of points of the level.
        attention_logits: Attention before the softmax.
        padding_mask: True at padded pixels, which count as zero.
        backend: As in `ms_deform_attn`.
        method: As in `ms_deform_attn`.
        points_per_level: As in `ms_deform_attn`, for offsets and logits.
        deterministic: As in `ms_deform_attn`.
        grad_value_dtype: As in `ms_deform_attn`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If `grad_value_dtype` is another dtype, or shapes disagree.

    Examples:
        >>> import torch
        >>> value, reference_points = torch.arange(6.0).view(1, 6, 1, 1), torch.full((1, 1, 1, 2), 0.5)
        >>> one_pixel_to_the_right = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 1, 2)
        >>> fused_ms_deform_attn(value, [(2, 3)], reference_points, one_pixel_to_the_right, torch.zeros(1, 1, 1, 1, 1))
        tensor([[[3.5000]]])
    """
    repeats: Sequence[int] = ()
    if points_per_level is not None:
        repeats = count_groups(points_per_level)
        sampling_offsets = group_points("sampling_offsets", sampling_offsets, points_per_level, 2)
        attention_logits = group_points("attention_logits", attention_logits, points_per_level)
        reference_points = group_references(reference_points, sampling_offsets, repeats)
    pyramid = pack_shapes(spatial_shapes, repeats)
    check_arguments(value, pyramid, sampling_offsets, attention_logits, reference_points, padding_mask, fused=True)
    deterministic, half_sums = _is_deterministic(deterministic), _sums_in_half(grad_value_dtype, value)
    # Sums in a fixed order need the samples sorted, and so their locations.
    if (
        backend == "auto"
        and method == "bilinear"
        and not deterministic
        and _op.can_fuse(value, sampling_offsets, attention_logits, reference_points)
    ):
        run = _op.choose_forward(backend, method, value, sampling_offsets, attention_logits, reference_points)
        return run(
            value, *pyramid, sampling_offsets, attention_logits, reference_points, padding_mask, deterministic,
            half_sums,
        )  # fmt: skip
    value = mask_padding(value, padding_mask)
    locations = locate_samples(reference_points, sampling_offsets, pyramid)
    weights = normalize_attention(attention_logits)
    run = _op.choose_forward(backend, method, value, locations, weights)
    return run(value, *pyramid, locations, weights, None, None, deterministic, half_sums)


def sampling_locations(
    reference_points: Float[Tensor, "#batch queries #levels coordinates"],
    sampling_offsets: Float[Tensor, "batch queries heads *levels_and_points 2"],
    spatial_shapes: SpatialShapes,
    *,
    points_per_level: Sequence[int] | None = None,
) -> Float[Tensor, "batch queries heads *levels_and_points 2"]:
    """Return where each query samples, (x, y) as fractions of each level, in float32 or better.

    An offset counts pixels of its level from a center (x, y). From a box (cx, cy, w, h) it counts halves of the box's
    size divided by the number of points of the level: eighths of the box for the usual four. `points_per_level` is that
    of `ms_deform_attn`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes disagree.

    Examples:
        >>> import torch
        >>> centers, offsets = torch.full((1, 1, 1, 2), 0.5), torch.tensor([1.0, -2.0]).view(1, 1, 1, 1, 1, 2)
        >>> sampling_locations(centers, offsets, [(8, 4)]).flatten()
        tensor([0.7500, 0.2500])
    """
    repeats: Sequence[int] = ()
    offsets = sampling_offsets
    if points_per_level is not None:
        repeats = count_groups(points_per_level)
        offsets = group_points("sampling_offsets", sampling_offsets, points_per_level, 2)
        reference_points = group_references(reference_points, offsets, repeats)
    pyramid = pack_shapes(spatial_shapes, repeats)
    check_offsets(reference_points, offsets, pyramid)
    return locate_samples(reference_points, offsets, pyramid).view(sampling_offsets.shape)


def _is_deterministic(wanted: bool | None) -> bool:  # noqa: FBT001
    return torch.are_deterministic_algorithms_enabled() if wanted is None else wanted


def _sums_in_half(dtype: torch.dtype, value: Tensor) -> bool:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"grad_value_dtype must be torch.float32, float16 or bfloat16, got {dtype}")
    return dtype == value.dtype and dtype != torch.float32
