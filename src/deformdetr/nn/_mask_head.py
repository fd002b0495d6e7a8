"""The mask head of DETR."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr.kernels._layers import apply_linear, split_channels
from deformdetr.nn._group_norm import GroupNorm

# For an image of 800 x 1333 pixels the largest activation of a query takes 8.5 MB, and three of them exist at a time.
_QUERIES_AT_ONCE = 25


class AttentionMaps(nn.Module):
    """Compute the attention weights of queries on a feature map, without values.

    Examples:
        >>> AttentionMaps(d_model=64, n_heads=4)(torch.rand(1, 10, 64), torch.rand(1, 64, 8, 8)).shape
        torch.Size([1, 10, 4, 8, 8])

    Args:
        d_model: Channels of the queries and the feature map.
        n_heads: Number of maps per query.

    Raises:
        ValueError: If `d_model` is not a multiple of `n_heads`.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.4.
    """

    def __init__(self, d_model: int = 256, n_heads: int = 8) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads})")
        self.n_heads = n_heads
        self.query_proj = nn.Linear(d_model, d_model)
        self.key_proj = nn.Linear(d_model, d_model)
        for layer in (self.query_proj, self.key_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        memory: Float[Tensor, "batch d_model height width"],
        padding_mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch queries heads height width"]:
        """Return the attention weights, which sum to 1 over all heads and pixels of a query.

        Args:
            query: Hidden states of the last decoder layer.
            memory: The encoder's features.
            padding_mask: True at padded pixels, which get no attention.
        """
        pixels = memory.flatten(2).transpose(1, 2)
        queries = split_channels(apply_linear(self.query_proj, query), self.n_heads)
        keys = split_channels(apply_linear(self.key_proj, pixels), self.n_heads)
        weights = torch.einsum("bqmc,bpmc->bqmp", queries * queries.shape[-1] ** -0.5, keys)
        if padding_mask is not None:
            weights = weights.masked_fill(padding_mask.flatten(1)[:, None, None], -torch.inf)
        return weights.flatten(2).softmax(-1).view(*weights.shape[:3], *memory.shape[-2:])


class MaskHead(nn.Module):
    """Predict a mask for every query from its attention maps and from backbone features of increasing resolution.

    Two 3x3 convolutions take a query's maps together with the feature map. For each lateral feature, the result is
    resized to its size, the projected feature is added, and a 3x3 convolution follows, which halves the channels. Group
    norm and ReLU follow every 3x3 convolution but the last. The norm has 8 groups, or the largest smaller power of two
    that divides the channels.

    Examples:
        >>> head = MaskHead(AttentionMaps(d_model=64, n_heads=4), lateral_channels=[16, 32], d_model=64)
        >>> query, features = torch.rand(1, 10, 64), torch.rand(1, 64, 2, 3)
        >>> head(query, features, features, [torch.rand(1, 16, 8, 12), torch.rand(1, 32, 4, 6)]).shape
        torch.Size([1, 10, 8, 12])

    Args:
        attention_maps: Computes the attention maps.
        lateral_channels: Channels of the lateral features, which are finer than the feature map; finest first.
        d_model: Channels of the feature map.

    Raises:
        ValueError: If there are no lateral features, or too few channels to halve for each of them.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.4 and figure 8.
    """

    def __init__(self, attention_maps: AttentionMaps, lateral_channels: Sequence[int], *, d_model: int = 256) -> None:
        super().__init__()
        if not lateral_channels:
            raise ValueError("a mask head needs at least one feature that is finer than the feature map, got none")
        widths = [d_model >> step for step in range(1, len(lateral_channels) + 2)]
        if not widths[-1]:
            raise ValueError(
                f"d_model ({d_model}) is halved {len(widths)} times for {len(lateral_channels)} finer features: "
                f"it must be at least {1 << len(widths)}"
            )
        self.attention_maps = attention_maps
        self.convolutions = _MaskConvolutions(d_model, attention_maps.n_heads, widths)
        # Coarsest first, in the order of use.
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels, width in zip(reversed(lateral_channels), widths, strict=False)
        )
        for module in (*self.laterals, *self.convolutions.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        memory: Float[Tensor, "batch d_model height width"],
        features: Float[Tensor, "batch d_model height width"],
        laterals: Sequence[Float[Tensor, "batch _channels _height _width"]],
        padding_mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch queries mask_height mask_width"]:
        """Return the logits of the masks, at the size of the finest lateral feature.

        A few queries are processed at a time, which bounds the memory of their feature maps in inference.

        Args:
            query: Hidden states of the last decoder layer.
            memory: The encoder's output, which the queries attend to.
            features: The encoder's input at the same pixels.
            laterals: Backbone features, finest first, as many as the head was built for.
            padding_mask: True at padded pixels of the feature map.

        Raises:
            ValueError: If the number of lateral features differs from that of `lateral_channels`.
        """
        if len(laterals) != len(self.laterals):
            raise ValueError(f"built for {len(self.laterals)} lateral features, got {len(laterals)}")
        maps = self.attention_maps(query, memory, padding_mask)
        shared = self.convolutions.convolve_features(features)
        projected = [lateral(feature) for lateral, feature in zip(self.laterals, reversed(laterals), strict=True)]
        return torch.cat(
            [self.convolutions(piece, shared, projected) for piece in maps.split(_QUERIES_AT_ONCE, dim=1)], dim=1
        )


class _MaskConvolutions(nn.Module):
    """The convolutions of a mask head, which every query passes through separately."""

    def __init__(self, d_model: int, n_heads: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.d_model = d_model
        channels = [d_model + n_heads, d_model + n_heads, *widths]
        pairs = list(pairwise(channels))
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)
        self.norms = nn.ModuleList(GroupNorm(gcd(8, after), after) for _, after in pairs)
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def convolve_features(self, features: Tensor) -> Tensor:
        """Apply the first convolution to the feature map, which all queries of an image share."""
        first: Any = self.convs[0]
        return F.conv2d(features, first.weight[:, : self.d_model], first.bias, padding=1)

    def forward(
        self,
        maps: Float[Tensor, "batch queries heads height width"],
        shared: Float[Tensor, "batch channels height width"],
        laterals: Sequence[Float[Tensor, "batch _channels _height _width"]],
    ) -> Float[Tensor, "batch queries mask_height mask_width"]:
        """Return the mask logits of some queries.

        Args:
            maps: Attention maps of the queries.
            shared: Result of `convolve_features`.
            laterals: Projected lateral features, coarsest first.
        """
        sizes = maps.shape[:2]
        first: Any = self.convs[0]
        x = _add_to_queries(F.conv2d(maps.flatten(0, 1), first.weight[:, self.d_model :], padding=1), shared, sizes)
        x = self.norms[0](x).relu()
        x = self.norms[1](self.convs[1](x)).relu()
        for feature, conv, norm in zip(laterals, self.convs[2:], self.norms[2:], strict=True):
            x = _add_to_queries(F.interpolate(x, feature.shape[-2:], mode="nearest"), feature, sizes)
            x = norm(conv(x)).relu()
        logits: Tensor = self.out(x)
        return logits.view(*sizes, *logits.shape[2:])


def _add_to_queries(queries: Tensor, images: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add features of images to those of their queries, (batch * queries, channels, height, width).

    `sizes` are the numbers of images and of queries.
    """
    per_image = queries.view(*sizes, *queries.shape[1:])
    return (per_image + images.unsqueeze(1)).flatten(0, 1)
