"""Position encodings of feature maps and of boxes."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._tracing import compares_sizes


class SinePositionEncoding(nn.Module):
    """Encode each pixel's position among the valid pixels by sines and cosines: half of the channels for y, half for x.

    Args:
        d_model: Channels of the encoding, a multiple of 4.
        temperature: Ratio of the longest to the shortest wavelength.
        normalize: Whether positions are scaled to [0, 2 pi], rather than counted in pixels.
        offset: Added to the pixel count, which starts at 1, if positions are normalized. -0.5 places positions at pixel
            centers, as in Deformable DETR; DETR uses 0.

    Raises:
        ValueError: If `d_model` is not a positive multiple of 4, or `temperature` is not positive.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5, in two dimensions.

    Examples:
        >>> SinePositionEncoding(d_model=8)(torch.zeros(1, 4, 6, dtype=torch.bool)).shape
        torch.Size([1, 8, 4, 6])
    """

    def __init__(
        self, d_model: int = 256, *, temperature: float = 10000.0, normalize: bool = True, offset: float = -0.5
    ) -> None:
        super().__init__()
        if d_model < 4 or d_model % 4:
            raise ValueError(f"d_model must be a positive multiple of 4, got {d_model}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.d_model = d_model
        self.temperature = temperature
        self.normalize = normalize
        self.offset = offset

    def forward(self, padding_mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch d_model height width"]:
        """Return the encoding of a feature map's positions, in float32.

        Args:
            padding_mask: True at padded pixels. Positions count the other pixels along each row and column.
        """
        valid = (~padding_mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)
        if self.normalize:
            y = (y + self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
            x = (x + self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        features = [sine_features(position, self.d_model // 2, self.temperature) for position in (y, x)]
        return torch.cat(features, dim=-1).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Return the settings, since there are no parameters to show."""
        names = ("d_model", "temperature", "normalize", "offset")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class LearnedPositionEncoding(nn.Module):
    """Encode each pixel's position by a learned vector for its row and one for its column.

    Args:
        d_model: Channels of the encoding, even: half for x, half for y.
        max_size: Largest height and width of a feature map, in pixels.

    Raises:
        ValueError: If `d_model` is odd or not positive; when called, if a feature map is larger than `max_size`.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 4.2.

    Examples:
        >>> LearnedPositionEncoding(d_model=8)(torch.zeros(1, 4, 6, dtype=torch.bool)).shape
        torch.Size([1, 8, 4, 6])
    """

    def __init__(self, d_model: int = 256, *, max_size: int = 50) -> None:
        super().__init__()
        if d_model < 2 or d_model % 2:
            raise ValueError(f"d_model must be positive and even, got {d_model}")
        self.max_size = max_size
        self.row_embed = nn.Embedding(max_size, d_model // 2)
        self.col_embed = nn.Embedding(max_size, d_model // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding_mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch d_model height width"]:
        """Return the encoding of a feature map's positions, which does not depend on the padding.

        Args:
            padding_mask: True at padded pixels; only its shape is used.
        """
        batch, height, width = padding_mask.shape
        self._check(height, width)
        y = self.row_embed.weight[:height, None].expand(-1, width, -1)
        x = self.col_embed.weight[None, :width].expand(height, -1, -1)
        return torch.cat([x, y], dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)

    @compares_sizes
    def _check(self, height: int, width: int) -> None:
        if max(height, width) > self.max_size:
            raise ValueError(f"feature map {height} x {width} is larger than max_size ({self.max_size})")


def sine_features(
    positions: Float[Tensor, "*batch"], channels: int, temperature: float = 10000.0
) -> Float[Tensor, "*batch {channels}"]:
    """Return interleaved sines and cosines of scalars, at geometrically spaced frequencies.

    Args:
        positions: Scalars in radians of the highest frequency.
        channels: Even number of channels; 2i and 2i + 1 are sine and cosine of
            `positions / temperature^(2i / channels)`.
        temperature: Ratio of the longest to the shortest wavelength.

    Examples:
        >>> sine_features(torch.tensor([0.0, 1.0]), channels=2)
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """
    exponents = torch.arange(0, channels, 2, dtype=positions.dtype, device=positions.device) / channels
    angles = positions.unsqueeze(-1) / temperature**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
