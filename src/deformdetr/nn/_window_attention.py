"""Attention within the windows of a feature map."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._grids import padding_to_multiple
from deformdetr.kernels._layers import apply_linear


class WindowAttention(nn.Module):
    """Attend within square windows of a feature map, which may be shifted; a learned bias belongs to every distance.

    Maps of any size are padded at the bottom and on the right, and nothing attends to the padding. Shifted windows
    that reach over an edge of the map continue at the opposite edge, and attention does not cross the edge.

    Args:
        d_model: Channels of the map; a multiple of `n_heads`.
        n_heads: Attention heads.
        window_size: Side of a window, in pixels.
        shift: Pixels by which windows are shifted down and to the right; less than `window_size`.

    Raises:
        ValueError: If a count is not positive, `d_model` is not a multiple of `n_heads`, or the shift is out of range.

    References:
        Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, section 3.2.
    """

    def __init__(self, d_model: int, n_heads: int, *, window_size: int, shift: int = 0) -> None:
        super().__init__()
        if min(d_model, n_heads, window_size) < 1:
            raise ValueError(
                f"d_model, n_heads and window_size must be positive, got {d_model}, {n_heads} and {window_size}"
            )
        if d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads})")
        if not 0 <= shift < window_size:
            raise ValueError(f"shift must lie in 0..{window_size - 1}, got {shift}")
        self.n_heads = n_heads
        self.window_size = window_size
        self.shift = shift
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        side = 2 * window_size - 1
        self.position_bias = nn.Parameter(torch.empty(n_heads, side, side))
        nn.init.trunc_normal_(self.position_bias, std=0.01)
        self.distances: Tensor
        self.register_buffer("distances", _distances(window_size), persistent=False)

    def forward(self, x: Float[Tensor, "batch d_model height width"]) -> Float[Tensor, "batch d_model height width"]:
        """Return the attention's result at every pixel."""
        height, width = x.shape[2:]
        bottom, right = (padding_to_multiple(size, self.window_size) for size in (height, width))
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, right, 0, bottom))
        windows = self._split(padded.roll((-self.shift, -self.shift), (1, 2)))
        joined = self._join(self._attend(windows, self._bias(height, width, bottom, right)), padded.shape)
        back = joined.roll((self.shift, self.shift), (1, 2))
        return back[:, :height, :width].permute(0, 3, 1, 2)

    def _attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Return the attention's result for windows (batch, windows, pixels, d_model)."""
        projected = apply_linear(self.qkv_proj, windows).view(*windows.shape[:3], 3, self.n_heads, -1)
        # PyTorch's fused kernels take four axes; windows are more heads to them.
        query, key, value = projected.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        out = out.view(*windows.shape[:2], self.n_heads, *out.shape[2:]).transpose(2, 3).flatten(3)
        return apply_linear(self.output_proj, out)

    def _bias(self, height: int, width: int, bottom: int, right: int) -> Tensor:
        """Return the logits' bias (1, windows * heads, pixels, pixels): minus infinity between parts of the map."""
        rows, columns = self._parts(height, bottom), self._parts(width, right)
        parts = (3 * rows[:, None] + columns).roll((-self.shift, -self.shift), (0, 1))
        parts = self._split(parts[None, :, :, None])[0, :, :, 0]
        is_apart = parts[:, None, :, None] != parts[:, None, None]
        bias = self.position_bias.flatten(1)[:, self.distances]
        return bias.masked_fill(is_apart, -torch.inf).flatten(0, 1)[None]

    def _parts(self, size: int, padding: int) -> Tensor:
        """Return the part that every pixel of an axis belongs to: 0 if it is shifted to the end, 2 if it is padding."""
        pixels = torch.arange(size + padding, device=self.distances.device)
        return (pixels >= self.shift).long() + (pixels >= size).long()

    def _split(self, x: Tensor) -> Tensor:
        """Split a map (batch, height, width, channels) into windows (batch, windows, pixels, channels)."""
        batch, height, width, channels = x.shape
        size = self.window_size
        tiles = x.reshape(batch, height // size, size, width // size, size, channels)
        return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _join(self, windows: Tensor, shape: torch.Size) -> Tensor:
        batch, height, width, channels = shape
        size = self.window_size
        tiles = windows.view(batch, height // size, width // size, size, size, channels)
        return tiles.transpose(2, 3).reshape(shape)

    def extra_repr(self) -> str:
        """Return the settings that the layers do not show."""
        return f"n_heads={self.n_heads}, window_size={self.window_size}, shift={self.shift}"


def _distances(size: int) -> Int[Tensor, "pixels pixels"]:
    """Return the index into the flattened table of biases for every query (row) and key (column) of a window."""
    y, x = torch.arange(size**2) // size, torch.arange(size**2) % size
    down, across = y[:, None] - y + size - 1, x[:, None] - x + size - 1
    return down * (2 * size - 1) + across
