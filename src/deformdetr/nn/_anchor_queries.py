"""Queries that are boxes with learned content; every decoder layer computes their positions."""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._tracing import smaller
from deformdetr.kernels._layers import apply_linear
from deformdetr.nn._geometry import LevelShapes, at_least_float32
from deformdetr.nn._queries import Queries, proposal_logits


class AnchorQueries(nn.Module):
    """Queries that are parameters: anchor boxes and content.

    Args:
        num_queries: How many.
        d_model: Channels of the content.
        has_indicator: Whether the last channel of the content is 0, which tells it from noised targets, where it is 1.

    Raises:
        ValueError: If `num_queries` is not positive.

    References:
        Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022, section 4.2.
    """

    def __init__(self, num_queries: int, d_model: int, *, has_indicator: bool = False) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.content = nn.Embedding(num_queries, d_model - has_indicator)
        self.anchors = nn.Embedding(num_queries, 4)
        self.has_indicator = has_indicator

    def forward(
        self,
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        padding_mask: Bool[Tensor, "batch pixels"],
    ) -> Queries:
        """Give the same queries to every image; of the arguments only the batch size counts."""
        content = F.pad(self.content.weight, (0, int(self.has_indicator))).expand(memory.shape[0], -1, -1)
        anchors = at_least_float32(self.anchors.weight).sigmoid().expand(memory.shape[0], -1, -1)
        return Queries(content, None, anchors, None)


class MixedQueries(nn.Module):
    """Queries whose boxes are the encoder's best proposals, while their content is learned.

    Every pixel of the pyramid proposes a box around itself; those of the highest score, of whichever class, are kept.

    Args:
        num_queries: How many proposals to keep; fewer come where the pyramid has fewer pixels.
        d_model: Channels of the content.
        class_head: Scores a pixel.
        box_head: Four numbers added to the logits of a pixel's proposal.
        has_indicator: Whether the last channel of the content is 0, which tells it from noised targets, where it is 1.

    Raises:
        ValueError: If `num_queries` is not positive.

    References:
        Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection", ICLR 2023,
        section 3.4 (mixed query selection).
    """

    def __init__(
        self,
        num_queries: int,
        d_model: int,
        class_head: nn.Module,
        box_head: nn.Module,
        *,
        has_indicator: bool = False,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.num_queries = num_queries
        self.content = nn.Embedding(num_queries, d_model - has_indicator)
        self.memory_projection = nn.Linear(d_model, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        self.class_head = class_head
        self.box_head = box_head
        self.has_indicator = has_indicator
        nn.init.xavier_uniform_(self.content.weight)
        nn.init.xavier_uniform_(self.memory_projection.weight)

    def forward(
        self,
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        padding_mask: Bool[Tensor, "batch pixels"],
    ) -> Queries:
        """Choose the best proposals of every image; they alone are judged by the encoder's loss.

        Args:
            memory: The encoder's features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            padding_mask: True at padded pixels, which propose nothing.
        """
        grid = proposal_logits(spatial_shapes, padding_mask)
        usable = grid.isfinite().all(-1, keepdim=True)
        memory = self.memory_norm(apply_linear(self.memory_projection, memory.masked_fill(~usable, 0)))
        logits = apply_linear(self.class_head, memory)
        best = logits.amax(-1).topk(smaller(self.num_queries, logits.shape[1]), dim=1).indices[..., None]

        # The head of three layers sees the chosen pixels alone, a fraction of all.
        deltas = at_least_float32(self.box_head(_take(memory, best)))
        boxes = (deltas + _take(grid, best)).sigmoid()
        content = F.pad(self.content.weight[: best.shape[1]], (0, int(self.has_indicator)))
        return Queries(
            content.expand(memory.shape[0], -1, -1),
            None,
            boxes.detach(),
            None,
            {"pred_logits": _take(logits, best), "pred_boxes": boxes},
        )


def _take(pixels: Tensor, indices: Tensor) -> Tensor:
    return pixels.gather(1, indices.expand(-1, -1, pixels.shape[-1]))
