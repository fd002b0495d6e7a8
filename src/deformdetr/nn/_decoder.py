"""The decoder of Deformable DETR."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._tracing import fixed_size
from deformdetr.boxes import inverse_sigmoid
from deformdetr.kernels import SpatialShapes
from deformdetr.kernels._layers import apply_dropout
from deformdetr.nn._attention import MSDeformAttn
from deformdetr.nn._feed_forward import FeedForward
from deformdetr.nn._geometry import at_least_float32


class DecoderOutput(NamedTuple):
    """What every decoder layer gives, first layer first."""

    hidden_states: list[Float[Tensor, "batch queries d_model"]]
    boxes: list[Float[Tensor, "batch queries 4"]]


class DeformableDecoderLayer(nn.Module):
    """Let queries attend to each other, then to the pyramid, then transform them; norms follow the residual sums.

    Args:
        self_attn: Attention among queries; must be built with `batch_first=True`.
        cross_attn: Deformable attention to the encoder's features.
        feed_forward: The layer after them.
        dropout: Probability of dropping a channel of any residual branch.

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
        if not self_attn.batch_first:
            raise ValueError("self_attn must be built with batch_first=True")
        if self_attn.embed_dim != cross_attn.d_model:
            raise ValueError(f"self_attn has {self_attn.embed_dim} channels, but cross_attn has {cross_attn.d_model}")
        self.self_attn = self_attn
        self.self_attn_norm = nn.LayerNorm(cross_attn.d_model)
        self.cross_attn = cross_attn
        self.cross_attn_norm = nn.LayerNorm(cross_attn.d_model)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(cross_attn.d_model)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self_attn.out_proj.weight)

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
        """Transform the queries; `query_position` is added wherever a query asks, not to what it carries.

        Args:
            query: Content of the queries.
            query_position: Their position encoding.
            reference_points: Fractions of each level: (x, y) or (cx, cy, w, h).
            memory: Features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            padding_mask: True at padded pixels.
            attention_mask: True where a query (row) must not see another (column).
        """
        asking = query + query_position
        attended, _ = self.self_attn(asking, asking, query, attn_mask=attention_mask, need_weights=False)
        query = self.self_attn_norm(query + apply_dropout(self.dropout, attended))
        attended = self.cross_attn(
            query + query_position, reference_points, memory, spatial_shapes, input_padding_mask=padding_mask
        )
        query = self.cross_attn_norm(query + apply_dropout(self.dropout, attended))
        out: Tensor = self.feed_forward_norm(query + apply_dropout(self.dropout, self.feed_forward(query)))
        return out


class DeformableDecoder(nn.Module):
    """A stack of decoder layers, each of which predicts boxes relative to the references it attended around.

    Args:
        layers: Built layers, which the stack owns.
        box_heads: Give four numbers for a query, added to its reference's logits: one head per layer, or a single one
            that all layers share.
        with_box_refine: Whether a layer's boxes, detached, are the references of the next; otherwise all layers attend
            around the given ones.

    Raises:
        ValueError: If the number of heads is neither one nor that of the layers.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.3 (bounding box prediction) and A.4 (refinement).
    """

    def __init__(
        self, layers: Iterable[nn.Module], box_heads: Iterable[nn.Module], *, with_box_refine: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.box_heads = nn.ModuleList(box_heads)
        self.with_box_refine = with_box_refine
        if len(self.box_heads) not in (1, len(self.layers)):
            raise ValueError(
                f"need one box head, or one for each of {len(self.layers)} layers; got {len(self.box_heads)}"
            )

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        query_position: Float[Tensor, "batch queries d_model"],
        reference_points: Float[Tensor, "batch queries coordinates"],
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: SpatialShapes,
        valid_ratios: Float[Tensor, "batch levels 2"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
        attention_mask: Bool[Tensor, "queries queries"] | None = None,
    ) -> DecoderOutput:
        """Run all layers.

        Args:
            query: Content of the queries.
            query_position: Their position encoding.
            reference_points: Fractions of the unpadded image: (x, y) or (cx, cy, w, h).
            memory: Features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            valid_ratios: Share of each level's width and height that is not padding, (x, y).
            padding_mask: True at padded pixels.
            attention_mask: True where a query (row) must not see another (column).

        Returns:
            Hidden states, and boxes (cx, cy, w, h) as fractions of the unpadded image, of every layer.
        """
        output = DecoderOutput([], [])
        for index, layer in enumerate(self.layers):
            scale = valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)
            query = layer(
                query,
                query_position,
                reference_points[:, :, None] * scale[:, None],
                memory,
                spatial_shapes,
                padding_mask,
                attention_mask,
            )
            boxes = offset_boxes(reference_points, self.box_heads[index % len(self.box_heads)](query))
            output.hidden_states.append(query)
            output.boxes.append(boxes)
            if self.with_box_refine:
                reference_points = boxes.detach()
        return output


def offset_boxes(
    reference_points: Float[Tensor, "batch queries coordinates"], deltas: Float[Tensor, "batch queries 4"]
) -> Float[Tensor, "batch queries 4"]:
    """Move references in logit space, with at least float32 precision.

    Args:
        reference_points: Fractions of the image: (x, y), whose boxes have the size that `deltas` alone gives, or
            (cx, cy, w, h).
        deltas: Added to the logits of the references.
    """
    logits = inverse_sigmoid(at_least_float32(reference_points))
    deltas = at_least_float32(deltas)
    if fixed_size(logits.shape[-1]) == 2:
        return torch.cat([deltas[..., :2] + logits, deltas[..., 2:]], dim=-1).sigmoid()
    return (deltas + logits).sigmoid()
