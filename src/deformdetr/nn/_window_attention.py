"""Attention within the windows of a feature map."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._grids import padding_to_multiple
from deformdetr.kernels._layers import apply_linear, split_channels


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
        pixels, parts = self._windows(height, width)
        windows = x.flatten(2).transpose(1, 2).index_select(1, pixels.flatten())
        out = self._attend(windows.view(x.shape[0], *pixels.shape, x.shape[1]), self._bias(parts))
        back = out.flatten(1, 2).index_select(1, self._places(height, width))
        return back.transpose(1, 2).reshape(x.shape)

    def _windows(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the pixel at every place of every window, and the part of the map it belongs to.

        Parts do not see each other: what the shift has moved to the other edge, the padding, and the rest. Any pixel
        stands for padding, because nothing attends to it.
        """
        side = self.window_size
        down, across = ((size + side - 1) // side for size in (height, width))
        # Index arithmetic, because views of tiles would let compilers fix a number of windows in a line that is 1.
        places = torch.arange(down * across * side**2, device=self.distances.device)
        windows, places = places // side**2, places % side**2
        line = windows // across
        rows = _wrap(line * side + places // side + self.shift, down * side)
        columns = _wrap((windows - line * across) * side + places % side + self.shift, across * side)
        pixels = rows.clamp(max=height - 1) * width + columns.clamp(max=width - 1)
        parts = 3 * self._parts(rows, height) + self._parts(columns, width)
        return pixels.view(-1, side**2), parts.view(-1, side**2)

    def _parts(self, pixels: Tensor, size: int) -> Tensor:
        return (pixels >= self.shift).long() + (pixels >= size).long()

    def _places(self, height: int, width: int) -> Tensor:
        """Return the place of every pixel among those of all windows."""
        side = self.window_size
        rows, columns = (
            _wrap(torch.arange(size, device=self.distances.device) - self.shift, size + padding_to_multiple(size, side))
            for size in (height, width)
        )
        windows_in_line = (width + side - 1) // side
        down = rows // side * (windows_in_line * side**2) + rows % side * side
        across = columns // side * side**2 + columns % side
        return (down[:, None] + across).flatten()

    def _bias(self, parts: Tensor) -> Tensor:
        """Return the logits' bias (1, windows * heads, pixels, pixels): minus infinity between parts of the map."""
        is_apart = parts[:, None, :, None] != parts[:, None, None]
        bias = self.position_bias.flatten(1)[:, self.distances]
        return bias.masked_fill(is_apart, -torch.inf).flatten(0, 1)[None]

    def _attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Return the attention's result for windows (batch, windows, pixels, d_model)."""
        projected = split_channels(split_channels(apply_linear(self.qkv_proj, windows), 3), self.n_heads)
        # PyTorch's fused kernels take four axes; windows are more heads to them.
        query, key, value = projected.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        out = out.view(*windows.shape[:2], self.n_heads, *out.shape[2:]).transpose(2, 3).flatten(3)
        return apply_linear(self.output_proj, out)

    def extra_repr(self) -> str:
        """Return the settings that the layers do not show."""
        return f"n_heads={self.n_heads}, window_size={self.window_size}, shift={self.shift}"


def _wrap(places: Int[Tensor, " places"], size: int) -> Int[Tensor, " places"]:
    """Return places from `-size` to `2 * size - 1` modulo `size`: exporters cannot divide by a size that may vary."""
    return torch.where(places < 0, places + size, torch.where(places < size, places, places - size))


def _distances(size: int) -> Int[Tensor, "pixels pixels"]:
    """Return the index into the flattened table of biases for every query (row) and key (column) of a window."""
    y, x = torch.arange(size**2) // size, torch.arange(size**2) % size
    down, across = y[:, None] - y + size - 1, x[:, None] - x + size - 1
    return down * (2 * size - 1) + across
