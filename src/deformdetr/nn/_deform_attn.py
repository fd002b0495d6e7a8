"""Deformable attention over one feature map."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.nn._attention import MSDeformAttn


class DeformAttn(nn.Module):
    """Attend to a few learned points around a reference, on one feature map of shape (channels, height, width).

    Args:
        d_model: Channels of queries and features; a multiple of `n_heads`.
        n_heads: Attention heads.
        n_points: Sampling points per head.

    Attributes:
        attention: The `MSDeformAttn` of one level, which holds all parameters.

    Raises:
        ValueError: If `d_model` is not a positive multiple of `n_heads`, or a count is not positive.

    References:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, equation 2.

    Examples:
        >>> import torch
        >>> layer = DeformAttn(d_model=32, n_heads=4)
        >>> layer(torch.rand(1, 10, 32), torch.rand(1, 10, 2), torch.rand(1, 32, 8, 12)).shape
        torch.Size([1, 10, 32])
    """

    def __init__(self, d_model: int = 256, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        self.attention = MSDeformAttn(d_model, 1, n_heads, n_points)

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        reference_points: Float[Tensor, "#batch queries coordinates"],
        features: Float[Tensor, "batch d_model height width"],
        padding_mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Sample the features around each query's reference and project the weighted sum.

        Args:
            query: Content plus position.
            reference_points: Fractions of the map: centers (x, y), or boxes (cx, cy, w, h), which scale the offsets.
            features: The feature map.
            padding_mask: True at padded pixels, whose projected features count as zero.

        Raises:
            ValueError: If `reference_points` has neither 2 nor 4 coordinates.
        """
        out: Tensor = self.attention(
            query,
            reference_points[:, :, None],
            features.flatten(2).transpose(1, 2),
            [(features.shape[2], features.shape[3])],
            input_padding_mask=None if padding_mask is None else padding_mask.flatten(1),
        )
        return out
