"""The attention layer of Deformable DETR."""

import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deformdetr._tracing import compares_sizes
from deformdetr.kernels import (
    Method,
    SpatialShapes,
    fused_ms_deform_attn,
    register_flop_formulas,
    sampling_locations,
)
from deformdetr.kernels._layers import apply_linear, split_channels


class MSDeformAttn(nn.Module):
    """Attend to a few learned points around a reference, on every level of a feature pyramid.

    Constructor, call, initialization and parameter names are those of the original layer, so that its checkpoints and
    its callers work unchanged.

    Args:
        d_model: Channels of queries and features; a multiple of `n_heads`.
        n_levels: Levels of the feature pyramid.
        n_heads: Attention heads.
        n_points: Sampling points per head and level: one number, or a number for each level.
        ratio: Channels of the projected features as a multiple of `d_model`, rounded down. With 0.5, heads sample half
            as many channels. mmcv calls it `value_proj_ratio`.
        method: `bilinear`, or RT-DETRv2's `discrete`, which reads one pixel per point. Locations then have no gradient,
            and `sampling_offsets` is frozen: train the layer with `bilinear` first.

    Raises:
        ValueError: If `d_model` is not a positive multiple of `n_heads`, a count is not positive, `n_points` does not
            have one number per level, the projected channels are not a positive multiple of `n_heads`, or there is no
            such method.

    References:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, equation 3
        and appendix A.4 for the initialization; Lv et al., "RT-DETRv2", 2024, for points that differ between levels,
        and for discrete sampling; Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023, for the
        ratio.

    Examples:
        >>> import torch
        >>> shapes = [(8, 12), (4, 6)]
        >>> layer = MSDeformAttn(d_model=32, n_levels=2, n_heads=4)
        >>> query, features = torch.rand(1, 10, 32), torch.rand(1, 8 * 12 + 4 * 6, 32)
        >>> layer(query, torch.rand(1, 10, 2, 2), features, shapes).shape
        torch.Size([1, 10, 32])
    """

    im2col_step = 64
    """Images per kernel launch in the original, whose callers read this attribute; not used here."""

    grad_value_dtype = torch.float32
    """Dtype in which the gradient of the projected features is summed, as in `ms_deform_attn`. Set it on a layer."""

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int | Sequence[int] = 4,
        *,
        ratio: float = 1.0,
        method: Method = "bilinear",
    ) -> None:
        super().__init__()
        points = (n_points,) * n_levels if isinstance(n_points, int) else tuple(n_points)
        if min(d_model, n_levels, n_heads, *points) < 1:
            raise ValueError(
                "d_model, n_levels, n_heads and n_points must be positive, got "
                f"{d_model}, {n_levels}, {n_heads} and {n_points}"
            )
        if len(points) != n_levels:
            raise ValueError(f"n_points ({points}) must have a number for each of n_levels ({n_levels})")
        if d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads})")
        d_value = int(d_model * ratio) if 0 < ratio < math.inf else 0
        if d_value < 1 or d_value % n_heads:
            raise ValueError(
                f"ratio ({ratio}) must give a positive multiple of n_heads ({n_heads}), got {d_value} channels of "
                f"d_model ({d_model})"
            )
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points: int | tuple[int, ...] = points[0] if len(set(points)) == 1 else points
        self.ratio = ratio
        self.method: Method = method
        self._points_per_level = points
        self.sampling_offsets = nn.Linear(d_model, n_heads * sum(points) * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * sum(points))
        self.value_proj = nn.Linear(d_model, d_value)
        self.output_proj = nn.Linear(d_value, d_model)
        self.reset_parameters()
        if method == "discrete":
            self.sampling_offsets.requires_grad_(False)
        if "torch.utils.flop_counter" in sys.modules:
            register_flop_formulas()

    def reset_parameters(self) -> None:
        """Set offsets to direction 2 pi m / n_heads for head m and p + 1 pixels for point p, with uniform attention."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = [torch.arange(1, points + 1, dtype=torch.float32) for points in self._points_per_level]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * torch.cat(distances)[:, None]).flatten())
        for layer in (self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(layer)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    # The original's transformer calls the method by this name.
    _reset_parameters = reset_parameters

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        reference_points: Float[Tensor, "#batch queries #levels coordinates"],
        input_flatten: Float[Tensor, "batch pixels d_model"],
        input_spatial_shapes: SpatialShapes,
        input_level_start_index: Int[Tensor, " levels"] | Sequence[int] | None = None,
        input_padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Sample the features around each query's reference and project the weighted sum.

        Args:
            query: Content plus position.
            reference_points: Fractions of each level: centers (x, y), or boxes (cx, cy, w, h), which scale the offsets.
                An axis of batch or levels may have size 1, for all images or levels.
            input_flatten: Features of all levels, flattened row by row and concatenated.
            input_spatial_shapes: (height, width) of every level, as ints or as a tensor.
            input_level_start_index: Index of each level's first pixel in `input_flatten`, for callers of the original:
                an integer per level. The values follow from the shapes and are not read.
            input_padding_mask: True at padded pixels, whose projected features count as zero.

        Raises:
            TypeError: If an argument that must be a tensor is not one.
            ValueError: If `reference_points` does not have 2 or 4 coordinates, or has a number of levels other than 1
                and the layer's; if the spatial shapes do not fit the layer or the features; or if
                `input_level_start_index` is not an integer per level but, say, a padding mask.
        """
        _check_level_starts(input_level_start_index, self.n_levels)
        value = split_channels(apply_linear(self.value_proj, input_flatten), self.n_heads)
        offsets, logits = self._offsets_and_logits(query, reference_points, input_spatial_shapes)
        sampled = fused_ms_deform_attn(
            value,
            input_spatial_shapes,
            reference_points,
            offsets,
            logits,
            input_padding_mask,
            method=self.method,
            points_per_level=self._uneven_points,
            grad_value_dtype=self.grad_value_dtype,
        )
        return apply_linear(self.output_proj, sampled)

    def sampling_locations_and_weights(
        self,
        query: Float[Tensor, "batch queries d_model"],
        reference_points: Float[Tensor, "#batch queries #levels coordinates"],
        spatial_shapes: SpatialShapes,
    ) -> tuple[
        Float[Tensor, "batch queries heads *levels_and_points 2"],
        Float[Tensor, "batch queries heads *levels_and_points"],
    ]:
        """Return the sampling locations, (x, y) as fractions of each level, and the attention weights.

        Locations are float32 or wider, also under autocast. The unit of an offset is a pixel of its level for a center,
        and `1 / (2 * n_points)` of the box for a box. If levels differ in their number of points, one axis holds the
        points of all levels, in place of the two axes of levels and points.
        """
        offsets, logits = self._offsets_and_logits(query, reference_points, spatial_shapes)
        weights = logits.flatten(3).softmax(-1).view(logits.shape)
        locations = sampling_locations(reference_points, offsets, spatial_shapes, points_per_level=self._uneven_points)
        return locations, weights

    @property
    def _uneven_points(self) -> tuple[int, ...] | None:
        """Number of points of every level, if levels differ; points then have one axis for all levels."""
        return None if isinstance(self.n_points, int) else self.n_points

    def _offsets_and_logits(
        self, query: Tensor, reference_points: Tensor, spatial_shapes: SpatialShapes
    ) -> tuple[Tensor, Tensor]:
        self._check(reference_points, spatial_shapes)
        points = (self.n_levels, self.n_points) if isinstance(self.n_points, int) else (sum(self.n_points),)
        return (
            _split(apply_linear(self.sampling_offsets, query), self.n_heads, *points, 2),
            _split(apply_linear(self.attention_weights, query), self.n_heads, *points),
        )

    @compares_sizes
    def _check(self, reference_points: Tensor, spatial_shapes: SpatialShapes) -> None:
        if not isinstance(reference_points, Tensor):
            raise TypeError(f"reference_points must be a tensor, got {type(reference_points).__name__}")
        if reference_points.ndim != 4:
            raise ValueError(
                "reference_points must have shape (batch, queries, levels, coordinates), got "
                f"{tuple(reference_points.shape)}"
            )
        levels, coordinates = reference_points.shape[-2:]
        if coordinates not in (2, 4):
            raise ValueError(f"reference_points must have 2 (x, y) or 4 (cx, cy, w, h) coordinates, got {coordinates}")
        if levels not in (1, self.n_levels):
            raise ValueError(f"reference_points has {levels} levels, but the layer has {self.n_levels}")
        if len(spatial_shapes) != self.n_levels:
            raise ValueError(f"spatial_shapes has {len(spatial_shapes)} levels, but the layer has {self.n_levels}")

    def extra_repr(self) -> str:
        """Return the settings that the linear layers do not show."""
        ratio = "" if self.ratio == 1 else f", ratio={self.ratio}"
        method = "" if self.method == "bilinear" else f", method={self.method}"
        return f"n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}{ratio}{method}"


@compares_sizes
def _check_level_starts(starts: Any, n_levels: int) -> None:
    """Check the type and shape of level starts, without reading their values from the device."""
    if starts is None:
        return
    if isinstance(starts, Tensor):
        fits = _holds_integers(starts) and tuple(starts.shape) == (n_levels,)
    else:
        fits = isinstance(starts, Iterable) and len(each := list(starts)) == n_levels and all(map(_is_integer, each))
    if not fits:
        found = f"{starts.dtype} of shape {tuple(starts.shape)}" if isinstance(starts, Tensor) else repr(starts)
        raise ValueError(
            f"input_level_start_index must be None or an integer for each of {n_levels} levels, got {found}. In early "
            "Deformable DETR, TrackFormer and TransTrack the fifth argument is the padding mask: pass it as "
            "input_padding_mask=mask"
        )


def _is_integer(number: Any) -> bool:
    """Return whether a number is an integer of any type, or an integer tensor without axes, which is not read."""
    if isinstance(number, Tensor):
        return not number.ndim and _holds_integers(number)
    return isinstance(number, (int, torch.SymInt, Integral))


def _holds_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _split(projected: Tensor, *sizes: int) -> Tensor:
    """Split the last axis. In PyTorch's older ONNX exporter, `unflatten` would fix the batch size of the trace."""
    return projected.view(*projected.shape[:-1], *sizes)
