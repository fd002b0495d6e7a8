"""The attention layer of DAT: all queries share the points that keys and values are sampled at."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._dtypes import at_least_float32
from deformdetr._grids import level_size, pixel_indices
from deformdetr.kernels import ms_deform_attn
from deformdetr.kernels._layers import apply_linear, split_channels


class DeformableAttention2d(nn.Module):
    """Attend from every pixel of a feature map to keys and values at points that the map itself has moved.

    Unlike in `MSDeformAttn`, the points belong to no query. They start from a regular grid, a small network that all
    groups of channels share offsets them, and every query attends to all of them by dot products. A learned table of
    relative positions is interpolated at the moved points. This is the layer of DAT as in CVPR 2022, not of DAT++.

    Args:
        d_model: Channels of the map; a multiple of `n_heads`.
        n_heads: Attention heads; a multiple of `n_groups`.
        n_groups: Groups of channels, each with points of its own.
        map_size: (height, width) of the map that the table of relative positions is made for, or one number for both.
            On maps of another size, the table stretches with the map.
        kernel_size: Side of the offset network's depthwise convolution, an odd number.
        stride: Pixels between neighboring points of the grid.
        offset_range: Largest offset along each axis, in halves of the distance between neighboring points of the grid.

    Raises:
        ValueError: If a count is not positive, counts do not divide each other, `kernel_size` is even, or
            `offset_range` is not positive.

    References:
        Xia et al., "Vision Transformer with Deformable Attention", CVPR 2022, section 3.2.

    Examples:
        >>> import torch
        >>> layer = DeformableAttention2d(d_model=32, n_heads=4, n_groups=2, map_size=14)
        >>> layer(torch.rand(1, 32, 8, 12)).shape
        torch.Size([1, 32, 8, 12])
        >>> layer.sampling_locations(torch.rand(1, 32, 8, 12)).shape
        torch.Size([1, 96, 2, 2])
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_groups: int,
        *,
        map_size: int | tuple[int, int],
        kernel_size: int = 5,
        stride: int = 1,
        offset_range: float = 2.0,
    ) -> None:
        super().__init__()
        height, width = (map_size, map_size) if isinstance(map_size, int) else map_size
        if min(d_model, n_heads, n_groups, height, width, stride) < 1:
            raise ValueError(
                "d_model, n_heads, n_groups, map_size and stride must be positive, got "
                f"{d_model}, {n_heads}, {n_groups}, {map_size} and {stride}"
            )
        if d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads})")
        if n_heads % n_groups:
            raise ValueError(f"n_heads ({n_heads}) must be divisible by n_groups ({n_groups})")
        if kernel_size < 1 or not kernel_size % 2:
            raise ValueError(f"kernel_size must be a positive odd number, got {kernel_size}")
        if not offset_range > 0:
            raise ValueError(f"offset_range must be positive, got {offset_range}")
        self.n_heads = n_heads
        self.n_groups = n_groups
        self.offset_range = offset_range
        channels = d_model // n_groups
        self.offset_conv = nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels)
        self.offset_norm = nn.LayerNorm(channels)
        self.offset_proj = nn.Linear(channels, 2, bias=False)
        self.query_proj = nn.Linear(d_model, d_model)
        self.key_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.position_bias = nn.Parameter(torch.empty(n_heads, 2 * height - 1, 2 * width - 1))
        nn.init.trunc_normal_(self.position_bias, std=0.01)

    def forward(self, x: Float[Tensor, "batch d_model height width"]) -> Float[Tensor, "batch d_model height width"]:
        """Return the attention's result at every pixel; positions are computed in float32 or wider."""
        x = x.permute(0, 2, 3, 1)
        query = apply_linear(self.query_proj, x)
        points = self._points(query)
        sampled = self._sample(x, points)
        keys, values = (self._split(apply_linear(layer, sampled)) for layer in (self.key_proj, self.value_proj))
        bias = self._bias(points, *x.shape[1:3])
        out = F.scaled_dot_product_attention(
            self._split(query.flatten(1, 2)), keys, values, attn_mask=bias.to(query.dtype)
        )
        # Joined by a copy: a view would fix the strides that the attention function has here, and exporters use others.
        out = apply_linear(self.output_proj, torch.cat(out.unbind(1), dim=-1).view(x.shape))
        return out.permute(0, 3, 1, 2)

    def sampling_locations(
        self, x: Float[Tensor, "batch d_model height width"]
    ) -> Float[Tensor, "batch points groups 2"]:
        """Return where keys and values are sampled, (x, y) as fractions of the map, row by row of the grid.

        Pixel centers lie at half-integers, as in `ms_deform_attn`. The locations have no gradient.
        """
        with torch.no_grad():
            x = x.permute(0, 2, 3, 1)
            return self._locations(self._points(apply_linear(self.query_proj, x)), *x.shape[1:3])

    def _points(self, query: Tensor) -> Tensor:
        """Return the points (batch, points, groups, 2), where the outermost pixel centers are 0 and 1."""
        groups = split_channels(query, self.n_groups).permute(0, 3, 4, 1, 2)
        convolved = self.offset_conv(groups.flatten(0, 1)).permute(0, 2, 3, 1)
        offsets = at_least_float32(self.offset_proj(F.gelu(self.offset_norm(convolved))))
        height, width = offsets.shape[1:3]
        moved = _pixels(height, width, offsets) + offsets.flatten(1, 2).tanh() * (self.offset_range / 2)
        points = moved / _size(height, width, offsets)
        return points.view(query.shape[0], self.n_groups, *points.shape[1:]).transpose(1, 2)

    def _locations(self, points: Tensor, height: int, width: int) -> Tensor:
        size = _size(height, width, points)
        return (points * (size - 1) + 0.5) / size

    def _sample(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the features at the points, (batch, points, d_model): one sample of weight one for every group."""
        height, width = x.shape[1:3]
        locations = self._locations(points, height, width)[:, :, :, None, None]
        value = split_channels(x.flatten(1, 2), self.n_groups)
        return ms_deform_attn(value, [(height, width)], locations, torch.ones_like(locations[..., 0]))

    def _bias(self, points: Tensor, height: int, width: int) -> Tensor:
        """Return the logits' bias (batch, heads, queries, points), from the distances of queries to points."""
        queries = _pixels(height, width, points) / _size(height, width, points)
        distances = queries[:, None] - points.transpose(1, 2).flatten(0, 1)[:, None]
        table = self.position_bias.to(points.dtype).expand(points.shape[0], -1, -1, -1)
        tables = table.reshape(distances.shape[0], self.n_heads // self.n_groups, *table.shape[2:])
        bias = F.grid_sample(tables, distances, mode="bilinear", padding_mode="zeros", align_corners=True)
        return bias.view(points.shape[0], self.n_heads, *bias.shape[2:])

    def _split(self, x: Tensor) -> Tensor:
        """Split the channels into heads: (batch, heads, pixels, channels)."""
        return split_channels(x, self.n_heads).transpose(1, 2)

    def extra_repr(self) -> str:
        """Return the settings that the layers do not show."""
        return f"n_heads={self.n_heads}, n_groups={self.n_groups}, offset_range={self.offset_range}"


def _size(height: int, width: int, like: Tensor) -> Tensor:
    return level_size(height, width, like=like).to(like.dtype)


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    return pixel_indices(height, width, device=like.device).to(like.dtype)
