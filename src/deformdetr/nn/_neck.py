"""The neck: backbone features to a pyramid with equal channels."""

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr.nn._group_norm import GroupNorm


class ChannelMapper(nn.Module):
    """Project every backbone feature to `d_model` channels and append coarser levels.

    Each feature has a 1x1 convolution and a group norm. The first added level is a 3x3 convolution of stride 2 on the
    last backbone feature, each later one on the level before it; a group norm follows.

    Args:
        in_channels: Channels of the backbone's features, finest first.
        d_model: Channels of every level; a multiple of `norm_groups`.
        n_levels: Levels to return, at least as many as there are features.
        norm_groups: Groups of the group norm.

    Raises:
        ValueError: If there are no features or more than `n_levels`, or `d_model` is not a multiple of `norm_groups`;
            when called, if the number of features differs from that of `in_channels`.

    Examples:
        >>> import torch
        >>> neck = ChannelMapper([16, 32], d_model=64, n_levels=3)
        >>> levels = neck([torch.rand(1, 16, 8, 12), torch.rand(1, 32, 4, 6)])
        >>> [tuple(level.shape) for level in levels]
        [(1, 64, 8, 12), (1, 64, 4, 6), (1, 64, 2, 3)]
    """

    def __init__(
        self, in_channels: Sequence[int], d_model: int = 256, *, n_levels: int = 4, norm_groups: int = 32
    ) -> None:
        super().__init__()
        if not 1 <= len(in_channels) <= n_levels:
            raise ValueError(f"need between 1 and n_levels ({n_levels}) backbone features, got {len(in_channels)}")
        if d_model % norm_groups:
            raise ValueError(f"d_model ({d_model}) must be divisible by norm_groups ({norm_groups})")
        self.in_channels = tuple(in_channels)
        self.d_model = d_model
        projections = [nn.Conv2d(channels, d_model, 1) for channels in in_channels]
        extras = [
            nn.Conv2d(d_model if index else in_channels[-1], d_model, 3, stride=2, padding=1)
            for index in range(n_levels - len(in_channels))
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=conv, norm=GroupNorm(norm_groups, d_model))) for conv in projections + extras
        )
        for conv in projections + extras:
            weight, bias = conv.parameters()
            nn.init.xavier_uniform_(weight)
            nn.init.zeros_(bias)

    def forward(
        self, features: Sequence[Float[Tensor, "batch _channels _height _width"]]
    ) -> list[Float[Tensor, "batch d_model _height _width"]]:
        """Return the levels, finest first."""
        n_features = len(self.in_channels)
        if len(features) != n_features:
            raise ValueError(f"expected {n_features} features with {self.in_channels} channels, got {len(features)}")
        levels = [level(feature) for level, feature in zip(self.levels[:n_features], features, strict=True)]
        coarsest = features[-1]
        for level in self.levels[n_features:]:
            coarsest = level(coarsest)
            levels.append(coarsest)
        return levels
