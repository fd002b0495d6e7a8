"""Where the decoder's queries come from."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._tracing import smaller
from deformdetr.kernels._layers import apply_linear
from deformdetr.nn._geometry import LevelShapes, at_least_float32, pixel_indices, valid_sizes
from deformdetr.nn._position import sine_features
from deformdetr.structures import LayerPredictions


class Queries(NamedTuple):
    """What a decoder starts from.

    `position` is `None` where the decoder computes it. `reference_points` are fractions of the unpadded image, (x, y)
    or (cx, cy, w, h). Where queries were chosen among predictions, the encoder's loss needs either `proposals`, all of
    them, whose first class stands for "an object", or `chosen`, the best, which have classes of their own.
    """

    content: Float[Tensor, "batch queries d_model"]
    position: Float[Tensor, "batch queries d_model"] | None
    reference_points: Float[Tensor, "batch queries coordinates"]
    proposals: LayerPredictions | None
    chosen: LayerPredictions | None = None


class LearnedQueries(nn.Module):
    """Queries that are parameters: content and position, and a reference point computed from the position.

    Args:
        num_queries: How many.
        d_model: Channels of content and of position.

    Raises:
        ValueError: If `num_queries` is not positive.
    """

    def __init__(self, num_queries: int, d_model: int) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.embedding = nn.Embedding(num_queries, 2 * d_model)
        self.reference_points = nn.Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self,
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        padding_mask: Bool[Tensor, "batch pixels"],
    ) -> Queries:
        """Give the same queries to every image; of the arguments only the batch size counts."""
        position, content = self.embedding.weight.expand(memory.shape[0], -1, -1).chunk(2, dim=-1)
        # Parameters go in, and geometry comes out: autocast would round a place by a pixel of a large image.
        # The meta device has no autocast.
        with torch.autocast("cpu" if position.is_meta else position.device.type, enabled=False):
            points = at_least_float32(self.reference_points(position)).sigmoid()
        return Queries(content, position, points, None)


class ProposalQueries(nn.Module):
    """Queries made from the encoder's best proposals, the first of two stages.

    Every pixel of the pyramid proposes a box around itself, scored by the first class channel; the best become
    reference boxes, and their position encodings, projected, become content and position of the queries.

    Args:
        num_queries: How many proposals to keep; fewer come where the pyramid has fewer pixels.
        d_model: Channels of content and of position, a multiple of 4.
        class_head: Scores a pixel; its first channel stands for "an object".
        box_head: Four numbers added to the logits of a pixel's proposal.

    Raises:
        ValueError: If `num_queries` is not positive, or `d_model` not a multiple of 4.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4.
    """

    def __init__(self, num_queries: int, d_model: int, class_head: nn.Module, box_head: nn.Module) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        if d_model % 4:
            raise ValueError(f"d_model must be a multiple of 4, got {d_model}")
        self.num_queries = num_queries
        self.memory_projection = nn.Linear(d_model, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.position_projection = nn.Linear(2 * d_model, 2 * d_model)
        self.position_norm = nn.LayerNorm(2 * d_model)
        self.class_head = class_head
        self.box_head = box_head
        nn.init.xavier_uniform_(self.memory_projection.weight)
        nn.init.xavier_uniform_(self.position_projection.weight)

    def forward(
        self,
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        padding_mask: Bool[Tensor, "batch pixels"],
    ) -> Queries:
        """Choose the best proposals of every image.

        Args:
            memory: The encoder's features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            padding_mask: True at padded pixels, which propose nothing.
        """
        proposals = proposal_logits(spatial_shapes, padding_mask)
        usable = proposals.isfinite().all(-1, keepdim=True)
        memory = self.memory_norm(apply_linear(self.memory_projection, memory.masked_fill(~usable, 0)))
        logits = apply_linear(self.class_head, memory)
        deltas = self.box_head(memory)
        box_logits = at_least_float32(deltas) + proposals

        best = logits[..., 0].topk(smaller(self.num_queries, logits.shape[1]), dim=1).indices
        chosen = box_logits.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        embedding = proposal_embedding(chosen, self.memory_projection.out_features)
        projected = apply_linear(self.position_projection, embedding.to(self.position_norm.weight.dtype))
        position, content = self.position_norm(projected).chunk(2, dim=-1)
        boxes: Tensor = box_logits.sigmoid()
        return Queries(content, position, chosen.sigmoid(), {"pred_logits": logits, "pred_boxes": boxes})


def proposal_logits(
    spatial_shapes: LevelShapes, padding_mask: Bool[Tensor, "batch pixels"]
) -> Float[Tensor, "batch pixels 4"]:
    """Give the logits of a box (cx, cy, w, h) around every pixel, as fractions of the unpadded image.

    Boxes of level l measure `0.05 * 2^l` on both sides. Padded pixels, and pixels whose box has a number outside
    (0.01, 0.99), get infinity.
    """
    boxes = []
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        mask = padding_mask[:, start : start + height * width].view(-1, height, width)
        centers = pixel_indices(height, width, device=mask.device) / valid_sizes(mask)[:, None]
        boxes.append(torch.cat([centers, torch.full_like(centers, 0.05 * 2.0**level)], dim=-1))
        start = start + height * width
    proposals = torch.cat(boxes, dim=1)
    usable = ((proposals > 0.01) & (proposals < 0.99)).all(-1) & ~padding_mask
    return torch.log(proposals / (1 - proposals)).masked_fill(~usable[..., None], torch.inf)


def proposal_embedding(
    box_logits: Float[Tensor, "batch queries 4"], d_model: int
) -> Float[Tensor, "batch queries 2*{d_model}"]:
    """Encode boxes by sines, `d_model / 2` channels for each of (cx, cy, w, h)."""
    return sine_features(box_logits.sigmoid() * (2 * math.pi), d_model // 2).flatten(-2)
