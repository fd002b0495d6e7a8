"""The decoder of Deformable DETR and of the models that build on it."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr._tracing import fixed_size
from deformdetr.boxes import inverse_sigmoid
from deformdetr.kernels import SpatialShapes
from deformdetr.kernels._layers import apply_dropout
from deformdetr.nn._anchor_position import AnchorPosition
from deformdetr.nn._attention import MSDeformAttn
from deformdetr.nn._feed_forward import FeedForward
from deformdetr.nn._transformer import initialize_attention


class DecoderOutput(NamedTuple):
    """Results of all decoder layers, first layer first.

    Examples:
        >>> hidden, boxes = torch.rand(1, 10, 64), torch.rand(1, 10, 4)
        >>> output = DecoderOutput(hidden_states=[hidden, hidden], boxes=[boxes, boxes])
        >>> output.boxes[-1].shape  # Of the last layer.
        torch.Size([1, 10, 4])
    """

    hidden_states: list[Float[Tensor, "batch queries d_model"]]
    boxes: list[Float[Tensor, "batch queries 4"]]
    """(cx, cy, w, h) as fractions of the unpadded image."""


class DeformableDecoderLayer(nn.Module):
    """Self-attention between queries, deformable cross-attention to the encoder's features, and a feed-forward network.

    Each of the three is a residual branch, with a norm after its sum.

    Examples:
        >>> layer = DeformableDecoderLayer(
        ...     nn.MultiheadAttention(64, 4, batch_first=True),
        ...     MSDeformAttn(64, n_levels=1, n_heads=4, n_points=4),
        ...     FeedForward(64, 128),
        ... )
        >>> query, memory = torch.rand(1, 10, 64), torch.rand(1, 8 * 8, 64)
        >>> layer(query, torch.zeros_like(query), torch.rand(1, 10, 1, 2), memory, [(8, 8)]).shape
        torch.Size([1, 10, 64])

    Args:
        self_attn: Self-attention; must be built with `batch_first=True`.
        cross_attn: Cross-attention.
        feed_forward: Feed-forward network.
        dropout: Dropout probability of the residual branches.

    Raises:
        ValueError: If `self_attn` is not batch-first, or differs from `cross_attn` in channels.
    """

    def __init__(
        self,
        self_attn: nn.MultiheadAttention,
        cross_attn: MSDeformAttn,
        feed_forward: FeedForward,
        *,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if self_attn.embed_dim != cross_attn.d_model:
            raise ValueError(f"self_attn has {self_attn.embed_dim} channels, but cross_attn has {cross_attn.d_model}")
        self.self_attn = initialize_attention(self_attn, "self_attn")
        self.self_attn_norm = nn.LayerNorm(cross_attn.d_model)
        self.cross_attn = cross_attn
        self.cross_attn_norm = nn.LayerNorm(cross_attn.d_model)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(cross_attn.d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        query_position: Float[Tensor, "batch queries d_model"],
        reference_points: Float[Tensor, "batch queries levels coordinates"],
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: SpatialShapes,
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
        attention_mask: Bool[Tensor, "queries queries"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Return the updated content of the queries; `query_position` is added to queries and keys, not to values.

        Args:
            query: Content of the queries.
            query_position: Position encoding of the queries.
            reference_points: (x, y) or (cx, cy, w, h) as fractions of each padded level.
            memory: The encoder's features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            padding_mask: True at padded pixels.
            attention_mask: True where a query (row) must not attend to another (column).
        """
        positioned = query + query_position
        attended, _ = self.self_attn(positioned, positioned, query, attn_mask=attention_mask, need_weights=False)
        query = self.self_attn_norm(query + apply_dropout(self.dropout, attended))
        attended = self.cross_attn(
            query + query_position, reference_points, memory, spatial_shapes, input_padding_mask=padding_mask
        )
        query = self.cross_attn_norm(query + apply_dropout(self.dropout, attended))
        out: Tensor = self.feed_forward_norm(query + apply_dropout(self.dropout, self.feed_forward(query)))
        return out


class DeformableDecoder(nn.Module):
    """A stack of decoder layers, each of which predicts boxes relative to its reference points.

    The decoders of Deformable DETR need neither `position` nor `norm`. DAB-DETR and DN-DETR have `position`, DINO has
    all options.

    Examples:
        >>> self_attn, cross_attn = nn.MultiheadAttention(64, 4, batch_first=True), MSDeformAttn(64, n_levels=1)
        >>> layer = DeformableDecoderLayer(self_attn, cross_attn, FeedForward(64, 128))
        >>> decoder = DeformableDecoder([layer], box_heads=[nn.Linear(64, 4)])
        >>> query, memory = torch.rand(1, 10, 64), torch.rand(1, 8 * 8, 64)
        >>> references, valid_ratios = torch.rand(1, 10, 2), torch.ones(1, 1, 2)
        >>> decoder(query, torch.zeros_like(query), references, memory, [(8, 8)], valid_ratios).boxes[-1].shape
        torch.Size([1, 10, 4])

    Args:
        layers: Built layers, which the stack owns.
        box_heads: Modules that return four numbers per query, added to the logits of its reference: one per layer, or
            one that all layers share.
        position: Encodes the reference boxes of every layer as the positions of the queries. From the second layer on
            it gets their content too. None: `forward` takes the positions.
        norm: Norm of the hidden states that are returned and that boxes are predicted from. The next layer gets content
            and references computed without it.
        with_box_refine: Whether the boxes of a layer, detached, are the references of the next. Otherwise all layers
            attend around the given references.
        look_forward_twice: Whether the boxes of a layer train the layer before it too, through its references.
        eps: Lower bound of a reference coordinate, and of its distance from 1, before the logit.

    Raises:
        ValueError: If the number of box heads is neither one nor the number of layers, or `look_forward_twice` comes
            without `with_box_refine`.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.3 (bounding box prediction) and A.4 (refinement);
        Liu et al., "DAB-DETR", ICLR 2022, sections 4.2 and 4.3 (positions from boxes);
        Zhang et al., "DINO", ICLR 2023, section 3.5 and equation 2 (look forward twice).
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        box_heads: Iterable[nn.Module],
        *,
        position: AnchorPosition | None = None,
        norm: nn.Module | None = None,
        with_box_refine: bool = False,
        look_forward_twice: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.box_heads = nn.ModuleList(box_heads)
        self.position = position
        self.norm = norm
        self.with_box_refine = with_box_refine
        self.look_forward_twice = look_forward_twice
        self.eps = eps
        if len(self.box_heads) not in (1, len(self.layers)):
            raise ValueError(
                f"need one box head, or one for each of {len(self.layers)} layers; got {len(self.box_heads)}"
            )
        if look_forward_twice and not with_box_refine:
            raise ValueError("look_forward_twice=True needs with_box_refine=True")

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        query_position: Float[Tensor, "batch queries d_model"] | None,
        reference_points: Float[Tensor, "batch queries coordinates"],
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: SpatialShapes,
        valid_ratios: Float[Tensor, "batch levels 2"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
        attention_mask: Bool[Tensor, "queries queries"] | None = None,
    ) -> DecoderOutput:
        """Return the hidden states and the boxes of every layer.

        Args:
            query: Content of the queries.
            query_position: Position encoding of the queries; None if the decoder has `position`, which computes it.
            reference_points: (x, y) or (cx, cy, w, h) as fractions of the unpadded image.
            memory: The encoder's features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            valid_ratios: Unpadded fraction of each level's width and height, (x, y).
            padding_mask: True at padded pixels.
            attention_mask: True where a query (row) must not attend to another (column).

        Raises:
            ValueError: If `query_position` is missing, or the decoder computes it itself.
        """
        if (query_position is None) == (self.position is None):
            raise ValueError("query_position is needed by a decoder without `position`, and refused by one with it")
        output = DecoderOutput([], [])
        # Predicted boxes are relative to these, which keep their gradient when looking forward twice.
        start = reference_points
        for index, layer in enumerate(self.layers):
            ratios = valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)
            on_levels = reference_points[:, :, None] * ratios[:, None]
            if self.position is not None:
                query_position = self.position(on_levels[:, :, 0], query if index else None)
            query = layer(query, query_position, on_levels, memory, spatial_shapes, padding_mask, attention_mask)
            box_head = self.box_heads[index % len(self.box_heads)]
            hidden = query if self.norm is None else self.norm(query)
            deltas = box_head(hidden)
            boxes = offset_boxes(start, deltas, self.eps)
            output.hidden_states.append(hidden)
            output.boxes.append(boxes)
            if self.with_box_refine and index + 1 < len(self.layers):
                # The references of the next layer are computed without the norm, from detached references.
                if self.norm is not None or self.look_forward_twice:
                    deltas = deltas if self.norm is None else box_head(query)
                    boxes = offset_boxes(reference_points, deltas, self.eps)
                reference_points = boxes.detach()
                start = boxes if self.look_forward_twice else reference_points
        return output


def offset_boxes(
    reference_points: Float[Tensor, "batch queries coordinates"],
    deltas: Float[Tensor, "batch queries 4"],
    eps: float = 1e-5,
) -> Float[Tensor, "batch queries 4"]:
    """Return the boxes (cx, cy, w, h) at given offsets from references in logit space, in at least float32.

    Examples:
        >>> offset_boxes(torch.tensor([[[0.5, 0.25]]]), torch.zeros(1, 1, 4))
        tensor([[[0.5000, 0.2500, 0.5000, 0.5000]]])

    Args:
        reference_points: (cx, cy, w, h) as fractions of the image; or (x, y), where `deltas` alone give the size.
        deltas: Added to the logits of the references.
        eps: Lower bound of a coordinate, and of its distance from 1, before the logit.
    """
    logits = inverse_sigmoid(at_least_float32(reference_points), eps)
    deltas = at_least_float32(deltas)
    if fixed_size(logits.shape[-1]) == 2:
        return torch.cat([deltas[..., :2] + logits, deltas[..., 2:]], dim=-1).sigmoid()
    return (deltas + logits).sigmoid()
