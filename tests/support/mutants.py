"""The operator with one mistake each, and the cases of the check that find it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deformdetr.kernels import ms_deform_attn

Mutant = Callable[..., Tensor]


def off_by_half_a_pixel(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations + 0.5 / spatial_shapes.flip(1)[:, None], weights)


def pads_with_the_border(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    half = 0.5 / spatial_shapes.flip(1)[:, None]
    return ms_deform_attn(value, spatial_shapes, locations.clamp(half, 1 - half), weights)


def swaps_x_and_y(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations.flip(-1), weights)


def swaps_height_and_width(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes.flip(-1), locations, weights)


def has_no_gradient_of_locations(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations.detach(), weights)


def has_gradients_in_pixels(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    sizes = spatial_shapes.flip(1)[:, None]
    scaled = locations / sizes + (locations - locations / sizes).detach()
    return ms_deform_attn(value, spatial_shapes, scaled, weights)


def rounds_locations_to_half(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations.to(value.dtype), weights)


def rounds_under_autocast(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        locations = locations.to(torch.get_autocast_dtype("cpu"))
    return ms_deform_attn(value, spatial_shapes, locations, weights)


def sums_in_the_dtype_of_the_value(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    points = zip(locations.split(1, dim=4), weights.split(1, dim=4), strict=True)
    return sum(ms_deform_attn(value, spatial_shapes, *point) for point in points)


def takes_64_images(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    image = torch.arange(len(value)) % 64
    return ms_deform_attn(value[image], spatial_shapes, locations, weights)


def reads_as_if_contiguous(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    strides = torch.empty(value.shape, device="meta").stride()
    return ms_deform_attn(value.as_strided(value.shape, strides), spatial_shapes, locations, weights)


def multiplies_everything_by_its_weight(
    value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations, weights) + 0 * value.sum()


def hides_nan(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value.nan_to_num(0), spatial_shapes, locations, weights)


def clamps_nan_into_the_image(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations.nan_to_num(0.5, 2, -2), weights)


def normalizes_weights(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    normal = weights.float().flatten(3).softmax(-1).view(weights.shape)
    return ms_deform_attn(value, spatial_shapes, locations, normal)


def reverses_points_per_level(
    value: Tensor,
    spatial_shapes: Tensor,
    locations: Tensor,
    weights: Tensor,
    *,
    points_per_level: tuple[int, ...] | None = None,
) -> Tensor:
    counts = points_per_level[::-1] if points_per_level else None
    return ms_deform_attn(value, spatial_shapes, locations, weights, points_per_level=counts)


def leaves_rows_unset(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    out = ms_deform_attn(value, spatial_shapes, locations, weights)
    is_sampled = ((locations > -1) & (locations < 2)).flatten(2).any(-1, keepdim=True)
    return torch.where(is_sampled, out, torch.empty_like(out))


def varies_from_call_to_call(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations, weights) * (1 + 2e-3 * torch.rand(()))


def returns_float32(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, spatial_shapes, locations, weights).float()


def reads_sizes_under_a_compiler(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    if int(spatial_shapes.prod(1).sum()) != value.shape[1]:
        raise ValueError(value.shape)
    return ms_deform_attn(value, spatial_shapes, locations, weights)


MUTANTS: Mapping[Mutant, tuple[str, ...]] = {
    off_by_half_a_pixel: ("pyramids", "pixel_centers", "edges", "thin_levels"),
    pads_with_the_border: ("pyramids", "edges", "far_outside"),
    swaps_x_and_y: ("pyramids", "thin_levels"),
    swaps_height_and_width: ("pyramids", "thin_levels"),
    has_no_gradient_of_locations: ("pyramids", "partial_gradients"),
    has_gradients_in_pixels: ("pyramids", "pixel_centers"),
    rounds_locations_to_half: ("precise_locations",),
    rounds_under_autocast: ("autocast",),
    sums_in_the_dtype_of_the_value: ("large_values",),
    takes_64_images: ("large_batch",),
    reads_as_if_contiguous: ("non_contiguous",),
    multiplies_everything_by_its_weight: ("unsampled_nan", "unsampled_infinity"),
    hides_nan: ("sampled_nan",),
    clamps_nan_into_the_image: ("nan_and_infinite_locations",),
    normalizes_weights: ("pyramids", "hot_pixel"),
    reverses_points_per_level: ("points_per_level",),
    leaves_rows_unset: ("uninitialized_memory",),
    varies_from_call_to_call: ("determinism",),
    returns_float32: ("pyramids", "empty"),
    reads_sizes_under_a_compiler: ("compiled", "exported"),
}
"""Mutants, with the cases that have to find each in float16."""
