"""Encoder and decoder of DETR, with dense attention."""

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.kernels._layers import apply_dropout
from deformdetr.nn._feed_forward import FeedForward


class TransformerEncoderLayer(nn.Module):
    """Self-attention between the pixels of a feature map and a feed-forward network.

    Both are residual branches, with a norm after the sum.

    Examples:
        >>> import torch
        >>> layer = TransformerEncoderLayer(nn.MultiheadAttention(64, 4, batch_first=True), FeedForward(64, 128))
        >>> src = torch.rand(1, 8 * 8, 64)
        >>> layer(src, torch.zeros_like(src)).shape
        torch.Size([1, 64, 64])

    Args:
        self_attn: Self-attention; must be built with `batch_first=True`.
        feed_forward: Feed-forward network.
        dropout: Dropout probability of the residual branches.

    Raises:
        ValueError: If `self_attn` is not batch-first.
    """

    def __init__(self, self_attn: nn.MultiheadAttention, feed_forward: FeedForward, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attn = initialize_attention(self_attn, "self_attn")
        self.self_attn_norm = nn.LayerNorm(self_attn.embed_dim)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(self_attn.embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        src: Float[Tensor, "batch pixels d_model"],
        position: Float[Tensor, "batch pixels d_model"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch pixels d_model"]:
        """Return the updated features; `position` is added to queries and keys, not to values.

        Args:
            src: Features, flattened row by row.
            position: Position encoding of the same pixels.
            padding_mask: True at padded pixels, which get no attention.
        """
        positioned = src + position
        attended, _ = self.self_attn(positioned, positioned, src, key_padding_mask=padding_mask, need_weights=False)
        src = self.self_attn_norm(src + apply_dropout(self.dropout, attended))
        out: Tensor = self.feed_forward_norm(src + apply_dropout(self.dropout, self.feed_forward(src)))
        return out


class TransformerDecoderLayer(nn.Module):
    """Self-attention between queries, cross-attention to the encoder's features, and a feed-forward network.

    Each of the three is a residual branch, with a norm after its sum.

    Examples:
        >>> import torch
        >>> self_attn, cross_attn = (nn.MultiheadAttention(64, 4, batch_first=True) for _ in range(2))
        >>> layer = TransformerDecoderLayer(self_attn, cross_attn, FeedForward(64, 128))
        >>> query, memory = torch.rand(1, 10, 64), torch.rand(1, 8 * 8, 64)
        >>> layer(query, torch.zeros_like(query), memory, torch.zeros_like(memory)).shape
        torch.Size([1, 10, 64])

    Args:
        self_attn: Self-attention; must be built with `batch_first=True`.
        cross_attn: Cross-attention; must be built with `batch_first=True`.
        feed_forward: Feed-forward network.
        dropout: Dropout probability of the residual branches.

    Raises:
        ValueError: If an attention layer is not batch-first.
    """

    def __init__(
        self,
        self_attn: nn.MultiheadAttention,
        cross_attn: nn.MultiheadAttention,
        feed_forward: FeedForward,
        *,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.self_attn = initialize_attention(self_attn, "self_attn")
        self.self_attn_norm = nn.LayerNorm(self_attn.embed_dim)
        self.cross_attn = initialize_attention(cross_attn, "cross_attn")
        self.cross_attn_norm = nn.LayerNorm(self_attn.embed_dim)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(self_attn.embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        query_position: Float[Tensor, "batch queries d_model"],
        memory: Float[Tensor, "batch pixels d_model"],
        memory_position: Float[Tensor, "batch pixels d_model"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Return the updated content of the queries; positions are added to queries and keys, not to values.

        Args:
            query: Content of the queries.
            query_position: Position encoding of the queries.
            memory: The encoder's features, flattened row by row.
            memory_position: Position encoding of the features.
            padding_mask: True at padded pixels, which get no attention.
        """
        positioned = query + query_position
        attended, _ = self.self_attn(positioned, positioned, query, need_weights=False)
        query = self.self_attn_norm(query + apply_dropout(self.dropout, attended))
        attended, _ = self.cross_attn(
            query + query_position,
            memory + memory_position,
            memory,
            key_padding_mask=padding_mask,
            need_weights=False,
        )
        query = self.cross_attn_norm(query + apply_dropout(self.dropout, attended))
        out: Tensor = self.feed_forward_norm(query + apply_dropout(self.dropout, self.feed_forward(query)))
        return out


class TransformerEncoder(nn.Module):
    """A stack of encoder layers over one feature map.

    Examples:
        >>> import torch
        >>> layer = TransformerEncoderLayer(nn.MultiheadAttention(64, 4, batch_first=True), FeedForward(64, 128))
        >>> src = torch.rand(1, 8 * 8, 64)
        >>> TransformerEncoder([layer])(src, torch.zeros_like(src)).shape
        torch.Size([1, 64, 64])

    Args:
        layers: Built layers, which the stack owns.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        src: Float[Tensor, "batch pixels d_model"],
        position: Float[Tensor, "batch pixels d_model"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> Float[Tensor, "batch pixels d_model"]:
        """Return the features after all layers; the arguments are those of a layer."""
        for layer in self.layers:
            src = layer(src, position, padding_mask)
        return src


class TransformerDecoder(nn.Module):
    """A stack of decoder layers.

    Examples:
        >>> import torch
        >>> self_attn, cross_attn = (nn.MultiheadAttention(64, 4, batch_first=True) for _ in range(2))
        >>> layer = TransformerDecoderLayer(self_attn, cross_attn, FeedForward(64, 128))
        >>> query, memory = torch.rand(1, 10, 64), torch.rand(1, 8 * 8, 64)
        >>> decoder = TransformerDecoder([layer], norm=nn.LayerNorm(64))
        >>> [hidden.shape for hidden in decoder(query, torch.zeros_like(query), memory, torch.zeros_like(memory))]
        [torch.Size([1, 10, 64])]

    Args:
        layers: Built layers, which the stack owns.
        norm: Norm of the returned outputs. Layers pass their outputs on without it.
    """

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        query_position: Float[Tensor, "batch queries d_model"],
        memory: Float[Tensor, "batch pixels d_model"],
        memory_position: Float[Tensor, "batch pixels d_model"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
    ) -> list[Float[Tensor, "batch queries d_model"]]:
        """Return the normalized outputs of all layers, first layer first; the arguments are those of a layer."""
        outputs = []
        for layer in self.layers:
            query = layer(query, query_position, memory, memory_position, padding_mask)
            outputs.append(self.norm(query))
        return outputs


def initialize_attention(attention: nn.MultiheadAttention, name: str) -> nn.MultiheadAttention:
    """Initialize the output projection as DETR does: by Xavier's distribution, like PyTorch's input projections.

    Raises:
        ValueError: If the layer is not batch-first.
    """
    if not attention.batch_first:
        raise ValueError(f"{name} must be built with batch_first=True")
    nn.init.xavier_uniform_(attention.out_proj.weight)
    return attention
