"""The encoder of Deformable DETR."""

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.kernels import SpatialShapes
from deformdetr.kernels._chunks import apply_in_chunks
from deformdetr.kernels._layers import apply_dropout
from deformdetr.nn._attention import MSDeformAttn
from deformdetr.nn._feed_forward import FeedForward
from deformdetr.nn._geometry import LevelShapes, pixel_centers


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention of all pixels, then a feed-forward layer; each residual sum is normalized.

    Args:
        self_attn: The attention layer.
        feed_forward: The feed-forward layer.
        dropout: Probability of dropping an element of either residual branch.

    Examples:
        >>> import torch
        >>> from deformdetr.nn import FeedForward, pixel_centers
        >>> layer = DeformableEncoderLayer(MSDeformAttn(32, n_levels=1, n_heads=4), FeedForward(32, 64))
        >>> references = pixel_centers([(8, 12)], torch.ones(1, 1, 2))
        >>> layer(torch.rand(1, 96, 32), torch.rand(1, 96, 32), references, [(8, 12)]).shape
        torch.Size([1, 96, 32])
    """

    def __init__(self, self_attn: MSDeformAttn, feed_forward: FeedForward, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.self_attn_norm = nn.LayerNorm(self_attn.d_model)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(self_attn.d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        src: Float[Tensor, "batch pixels d_model"],
        position: Float[Tensor, "batch pixels d_model"],
        reference_points: Float[Tensor, "batch pixels levels 2"],
        spatial_shapes: SpatialShapes,
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch pixels d_model"]:
        """Return new features of all levels; `position` is added to queries, not to values."""
        attended = self.self_attn(
            src + position, reference_points, src, spatial_shapes, input_padding_mask=padding_mask
        )
        return apply_in_chunks(self._transform, src, attended)

    def _transform(self, src: Tensor, attended: Tensor) -> Tensor:
        src = self.self_attn_norm(src + apply_dropout(self.dropout, attended))
        out: Tensor = self.feed_forward_norm(src + apply_dropout(self.dropout, self.feed_forward(src)))
        return out


class DeformableEncoder(nn.Module):
    """A stack of encoder layers over a pyramid of features.

    Args:
        layers: Built layers, which the stack owns.

    Examples:
        >>> import torch
        >>> from deformdetr.nn import FeedForward
        >>> encoder = DeformableEncoder(
        ...     DeformableEncoderLayer(MSDeformAttn(32, n_levels=1, n_heads=4), FeedForward(32, 64)) for _ in range(2)
        ... )
        >>> encoder(torch.rand(1, 96, 32), torch.rand(1, 96, 32), [(8, 12)], torch.ones(1, 1, 2)).shape
        torch.Size([1, 96, 32])
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        # Built layers rather than a prototype to copy, because copies would share one initialization.
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        src: Float[Tensor, "batch pixels d_model"],
        position: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        valid_ratios: Float[Tensor, "batch levels 2"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch pixels d_model"]:
        """Return the refined features of all levels.

        Args:
            src: Features, flattened row by row, levels concatenated.
            position: Position and level encoding of the same pixels.
            spatial_shapes: (height, width) of every level, as ints.
            valid_ratios: Share of each level's width and height that is not padding, (x, y).
            padding_mask: True at padded pixels.
        """
        reference_points = pixel_centers(spatial_shapes, valid_ratios)
        for layer in self.layers:
            src = layer(src, position, reference_points, spatial_shapes, padding_mask)
        return src
