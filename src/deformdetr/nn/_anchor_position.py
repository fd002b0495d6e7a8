"""Position encodings of queries that are boxes."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.nn._feed_forward import MLP
from deformdetr.nn._position import sine_features


class AnchorPosition(nn.Module):
    """Encode the boxes of queries by sines and an MLP.

    Examples:
        >>> AnchorPosition(d_model=64)(torch.rand(1, 300, 4)).shape
        torch.Size([1, 300, 64])

    Args:
        d_model: Channels of the encoding, a multiple of 4.
        has_scale: Whether a second MLP computes a scale of the encoding from the content of the queries.

    Raises:
        ValueError: If `d_model` is not a multiple of 4.

    References:
        Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022, section 4.2. The scale is
        that of the conditional queries of Meng et al., "Conditional DETR for Fast Training Convergence", ICCV 2021.
    """

    def __init__(self, d_model: int, *, has_scale: bool = False) -> None:
        super().__init__()
        if d_model % 4:
            raise ValueError(f"d_model must be a multiple of 4, got {d_model}")
        self.d_model = d_model
        self.encoding = MLP(2 * d_model, d_model, d_model, 2)
        self.scale = MLP(d_model, d_model, d_model, 2) if has_scale else None
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, boxes: Float[Tensor, "batch queries 4"], content: Float[Tensor, "batch queries d_model"] | None = None
    ) -> Float[Tensor, "batch queries d_model"]:
        """Return the position encoding of boxes.

        Args:
            boxes: (cx, cy, w, h) as fractions of the padded image.
            content: Content of the same queries; None leaves the encoding unscaled.
        """
        x, y, width, height = at_least_float32(boxes).unbind(-1)
        # y comes first, as in the published models and in their encodings of feature maps.
        angles = torch.stack([y, x, width, height], dim=-1) * (2 * math.pi)
        sines = sine_features(angles, self.d_model // 2).flatten(-2)
        # A quantized MLP has no parameters and takes float32.
        dtype = [*self.encoding.parameters(), sines][0].dtype
        position: Tensor = self.encoding(sines.to(dtype))
        return position if self.scale is None or content is None else position * self.scale(content)
