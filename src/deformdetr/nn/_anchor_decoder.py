"""The decoder of queries that are boxes."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.boxes import inverse_sigmoid
from deformdetr.kernels import SpatialShapes
from deformdetr.nn._decoder import DecoderOutput
from deformdetr.nn._feed_forward import MLP
from deformdetr.nn._position import sine_features


class AnchorPosition(nn.Module):
    """Encode boxes by sines, then by a perceptron: the position of queries that are boxes.

    Args:
        d_model: Channels of the encoding, a multiple of 4.
        has_scale: Whether a second perceptron, of the queries' content, scales the encoding where content is given.

    Raises:
        ValueError: If `d_model` is not a multiple of 4.

    References:
        Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022, section 4.2; the scale is
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
        """Encode boxes.

        Args:
            boxes: (cx, cy, w, h) as fractions of the padded image.
            content: Of the same queries; None leaves the scale out.
        """
        x, y, width, height = at_least_float32(boxes).unbind(-1)
        # The order of the published models, whose first half is y as in a feature map's encoding.
        angles = torch.stack([y, x, width, height], dim=-1) * (2 * math.pi)
        sines = sine_features(angles, self.d_model // 2).flatten(-2)
        like, *_ = *self.encoding.parameters(), sines
        position: Tensor = self.encoding(sines.to(like.dtype))
        return position if self.scale is None or content is None else position * self.scale(content)


class AnchorDecoder(nn.Module):
    """A stack of decoder layers, each of which encodes the boxes it attends around and refines them.

    Args:
        layers: Built layers, which the stack owns.
        box_heads: Give four numbers for a query, added to its reference's logits: one head per layer, or a single one
            that all layers share.
        position: Gives the queries' positions, from their references and, from the second layer on, their content.
        norm: Of the hidden states that are returned and that the predicted boxes come from; the next layer's content
            and references come from states without it.
        look_forward_twice: Whether a layer's boxes train the layer before too, through the references they start from.
        eps: Smallest coordinate told from 0, and its complement from 1, where references become logits.

    Raises:
        ValueError: If the number of heads is neither one nor that of the layers.

    References:
        Liu et al., "DAB-DETR", ICLR 2022, sections 4.2 and 4.3; Zhang et al., "DINO", ICLR 2023, section 3.5 and
        equation 2 (look forward twice).
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        box_heads: Iterable[nn.Module],
        position: AnchorPosition,
        *,
        norm: nn.Module | None = None,
        look_forward_twice: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.box_heads = nn.ModuleList(box_heads)
        self.position = position
        self.norm = norm
        self.look_forward_twice = look_forward_twice
        self.eps = eps
        if len(self.box_heads) not in (1, len(self.layers)):
            raise ValueError(
                f"need one box head, or one for each of {len(self.layers)} layers; got {len(self.box_heads)}"
            )

    def forward(
        self,
        query: Float[Tensor, "batch queries d_model"],
        query_position: None,
        reference_points: Float[Tensor, "batch queries 4"],
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: SpatialShapes,
        valid_ratios: Float[Tensor, "batch levels 2"],
        padding_mask: Bool[Tensor, "batch pixels"] | None = None,
        attention_mask: Bool[Tensor, "queries queries"] | None = None,
    ) -> DecoderOutput:
        """Run all layers.

        Args:
            query: Content of the queries.
            query_position: None; it stands for what `DeformableDecoder` takes there.
            reference_points: (cx, cy, w, h) as fractions of the unpadded image.
            memory: Features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            valid_ratios: Share of each level's width and height that is not padding, (x, y).
            padding_mask: True at padded pixels.
            attention_mask: True where a query (row) must not see another (column).

        Returns:
            Hidden states, and boxes (cx, cy, w, h) as fractions of the unpadded image, of every layer.
        """
        output = DecoderOutput([], [])
        scale = valid_ratios.repeat(1, 1, 2)[:, None]
        start = reference_points
        for index, layer in enumerate(self.layers):
            on_levels = reference_points[:, :, None] * scale
            position = self.position(on_levels[:, :, 0], query if index else None)
            query = layer(query, position, on_levels, memory, spatial_shapes, padding_mask, attention_mask)
            head = self.box_heads[index % len(self.box_heads)]
            hidden = query if self.norm is None else self.norm(query)
            deltas = head(hidden)
            output.hidden_states.append(hidden)
            output.boxes.append(self._offset(start, deltas))
            if index + 1 < len(self.layers):
                moved = self._offset(reference_points, deltas if self.norm is None else head(query))
                reference_points = moved.detach()
                start = moved if self.look_forward_twice else reference_points
        return output

    def _offset(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        return (inverse_sigmoid(at_least_float32(boxes), self.eps) + at_least_float32(deltas)).sigmoid()
