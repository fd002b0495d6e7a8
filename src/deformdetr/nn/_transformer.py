"""Encoder and decoder of standard attention, as DETR has them."""

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.kernels._layers import apply_dropout
from deformdetr.nn._feed_forward import FeedForward


class TransformerEncoderLayer(nn.Module):
    """Let every pixel attend to all others, then transform it; norms follow the residual sums.

    Args:
        self_attn: The attention layer; must be built with `batch_first=True`.
        feed_forward: The layer after it.
        dropout: Probability of dropping a channel of either residual branch.

    Raises:
        ValueError: If `self_attn` is not batch-first.
    """

    def __init__(self, self_attn: nn.MultiheadAttention, feed_forward: FeedForward, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.self_attn = _prepare(self_attn, "self_attn")
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
        """Transform the features; `position` is added to queries and keys, not to values.

        Args:
            src: Features, flattened row by row.
            position: Position encoding of the same pixels.
            padding_mask: True at padded pixels, which nobody attends to.
        """
        placed = src + position
        attended, _ = self.self_attn(placed, placed, src, key_padding_mask=padding_mask, need_weights=False)
        src = self.self_attn_norm(src + apply_dropout(self.dropout, attended))
        out: Tensor = self.feed_forward_norm(src + apply_dropout(self.dropout, self.feed_forward(src)))
        return out


class TransformerDecoderLayer(nn.Module):
    """Let queries attend to each other, then to all pixels, then transform them; norms follow the residual sums.

    Args:
        self_attn: Attention among queries; must be built with `batch_first=True`.
        cross_attn: Attention to the encoder's features, likewise.
        feed_forward: The layer after them.
        dropout: Probability of dropping a channel of any residual branch.

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
        self.self_attn = _prepare(self_attn, "self_attn")
        self.self_attn_norm = nn.LayerNorm(self_attn.embed_dim)
        self.cross_attn = _prepare(cross_attn, "cross_attn")
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
        """Transform the queries; positions are added wherever something is asked or compared, not to what is carried.

        Args:
            query: Content of the queries.
            query_position: Their position encoding.
            memory: Features, flattened row by row.
            memory_position: Their position encoding.
            padding_mask: True at padded pixels, which nobody attends to.
        """
        placed = query + query_position
        attended, _ = self.self_attn(placed, placed, query, need_weights=False)
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
        """Refine the features; the arguments are those of a layer."""
        for layer in self.layers:
            src = layer(src, position, padding_mask)
        return src


class TransformerDecoder(nn.Module):
    """A stack of decoder layers, whose outputs share one norm.

    Args:
        layers: Built layers, which the stack owns.
        norm: Applied to the output of every layer, but not to what the next one receives.
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
        """Give the normalised output of every layer, first layer first; the arguments are those of a layer."""
        outputs = []
        for layer in self.layers:
            query = layer(query, query_position, memory, memory_position, padding_mask)
            outputs.append(self.norm(query))
        return outputs


def _prepare(attention: nn.MultiheadAttention, name: str) -> nn.MultiheadAttention:
    """Check the layout, and draw the output projection as DETR does; PyTorch draws the others so already."""
    if not attention.batch_first:
        raise ValueError(f"{name} must be built with batch_first=True")
    nn.init.xavier_uniform_(attention.out_proj.weight)
    return attention
