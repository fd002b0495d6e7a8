"""Queries that are selected from boxes that the encoder proposes, one for every pixel."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr._grids import pixel_indices
from deformdetr._tracing import smaller
from deformdetr.kernels._layers import apply_linear
from deformdetr.nn._geometry import LevelShapes, valid_sizes
from deformdetr.nn._position import sine_features
from deformdetr.nn._queries import EncoderPredictions, Queries, check_num_queries, repeat_content
from deformdetr.structures import LayerPredictions


class ProposalQueries(nn.Module):
    """Two-stage queries, whose reference boxes are the best proposals of the encoder.

    Content and position are projected from the sine encoding of the selected boxes (Deformable DETR), or the content is
    learned and the decoder encodes the boxes (DINO's mixed query selection).

    Examples:
        >>> heads = {"class_head": nn.Linear(64, 3), "box_head": nn.Linear(64, 4)}
        >>> memory, padding_mask = torch.rand(1, 8 * 8, 64), torch.zeros(1, 8 * 8, dtype=torch.bool)
        >>> queries = ProposalQueries(30, 64, **heads)(memory, [(8, 8)], padding_mask)
        >>> queries.reference_points.shape, queries.position.shape
        (torch.Size([1, 30, 4]), torch.Size([1, 30, 64]))
        >>> mixed = ProposalQueries(30, 64, **heads, content=nn.Embedding(30, 64), class_agnostic=False)
        >>> mixed(memory, [(8, 8)], padding_mask).predictions["interm_outputs"]["pred_logits"].shape
        torch.Size([1, 30, 3])

    Args:
        num_queries: Number of proposals to select; a pyramid of fewer pixels gives fewer queries.
        d_model: Channels of content and of position, a multiple of 4 without learned content.
        class_head: Returns a pixel's logits.
        box_head: Returns four numbers, added to the logits of a pixel's box.
        content: Learned content, a row per query; channels that it lacks are 0. None computes content and position from
            the boxes.
        class_agnostic: Whether a proposal's score is its first logit, for "object", and all proposals are predictions,
            `enc_outputs`. Otherwise its score is its largest logit, and the selected proposals are predictions,
            `interm_outputs`.

    Raises:
        ValueError: If `num_queries` is not positive, `content` has another number of rows, or `d_model` is not a
            multiple of 4 without it.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4; Zhang et al., "DINO: DETR with Improved DeNoising Anchor
        Boxes for End-to-End Object Detection", ICLR 2023, section 3.4 (mixed query selection).
    """

    def __init__(
        self,
        num_queries: int,
        d_model: int,
        class_head: nn.Module,
        box_head: nn.Module,
        *,
        content: nn.Embedding | None = None,
        class_agnostic: bool = True,
    ) -> None:
        super().__init__()
        check_num_queries(num_queries)
        if content is None and d_model % 4:
            raise ValueError(f"d_model must be a multiple of 4, got {d_model}")
        if content is not None and content.num_embeddings != num_queries:
            raise ValueError(f"content must have num_queries ({num_queries}) rows, got {content.num_embeddings}")
        self.num_queries = num_queries
        self.d_model = d_model
        self.class_agnostic = class_agnostic
        self.content = content
        self.memory_projection = nn.Linear(d_model, d_model)
        self.memory_norm = nn.LayerNorm(d_model)
        nn.init.xavier_uniform_(self.memory_projection.weight)
        if content is None:
            self.position_projection = nn.Linear(2 * d_model, 2 * d_model)
            self.position_norm = nn.LayerNorm(2 * d_model)
            nn.init.xavier_uniform_(self.position_projection.weight)
        self.class_head = class_head
        self.box_head = box_head

    def forward(
        self,
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        padding_mask: Bool[Tensor, "batch pixels"],
    ) -> Queries:
        """Return the queries, and the predictions of all or of the selected proposals.

        Args:
            memory: The encoder's features of all levels, flattened.
            spatial_shapes: (height, width) of every level.
            padding_mask: True at padded pixels.
        """
        proposals = self._propose(memory, proposal_logits(spatial_shapes, padding_mask))
        predictions: EncoderPredictions
        if self.class_agnostic:
            proposals = proposals.refine(self.box_head)
            selected = proposals.select(proposals.class_logits[..., 0], self.num_queries)
            predictions = {"enc_outputs": proposals.predictions()}
        else:
            # Refined after the selection: the box head has three layers, and most pixels are not selected.
            selected = proposals.select(proposals.class_logits.amax(-1), self.num_queries).refine(self.box_head)
            predictions = {"interm_outputs": selected.predictions()}
        box_logits = selected.box_logits.detach()
        content, position = self._embed(box_logits)
        return Queries(content, position, box_logits.sigmoid(), predictions)

    def _propose(
        self, memory: Float[Tensor, "batch pixels d_model"], boxes: Float[Tensor, "batch pixels 4"]
    ) -> "Proposals":
        """Return the proposals of all pixels, not yet refined; features of unusable pixels count as 0."""
        usable = boxes.isfinite().all(-1, keepdim=True)
        features = self.memory_norm(apply_linear(self.memory_projection, memory.masked_fill(~usable, 0)))
        return Proposals(features, apply_linear(self.class_head, features), boxes)

    def _embed(
        self, box_logits: Float[Tensor, "batch queries 4"]
    ) -> tuple[Float[Tensor, "batch queries d_model"], Float[Tensor, "batch queries d_model"] | None]:
        """Return content and position of the queries with these boxes."""
        if self.content is not None:
            weight = self.content.weight[: box_logits.shape[1]]
            return repeat_content(weight, box_logits.shape[0], self.d_model), None
        embedding = proposal_embedding(box_logits, self.d_model)
        projected = apply_linear(self.position_projection, embedding.to(self.position_norm.weight.dtype))
        position, content = self.position_norm(projected).chunk(2, dim=-1)
        return content, position


class Proposals(NamedTuple):
    """Boxes that pixels propose, and their logits."""

    features: Float[Tensor, "batch pixels d_model"]
    class_logits: Float[Tensor, "batch pixels classes"]
    box_logits: Float[Tensor, "batch pixels 4"]

    def refine(self, box_head: nn.Module) -> "Proposals":
        """Add the output of a box head to the logits of the boxes."""
        box_logits = at_least_float32(box_head(self.features)) + self.box_logits
        return Proposals(self.features, self.class_logits, box_logits)

    def select(self, scores: Float[Tensor, "batch pixels"], count: int) -> "Proposals":
        """Return the proposals of the `count` highest scores, best first."""
        best = scores.topk(smaller(count, scores.shape[1]), dim=1).indices[..., None]
        return Proposals(*(tensor.gather(1, best.expand(-1, -1, tensor.shape[-1])) for tensor in self))

    def predictions(self) -> LayerPredictions:
        """Return class logits and boxes as a model's predictions."""
        return {"pred_logits": self.class_logits, "pred_boxes": self.box_logits.sigmoid()}


def proposal_logits(
    spatial_shapes: LevelShapes, padding_mask: Bool[Tensor, "batch pixels"]
) -> Float[Tensor, "batch pixels 4"]:
    """Return the logits of a box (cx, cy, w, h) around every pixel, as fractions of the unpadded image.

    Boxes of level l measure `0.05 * 2^l` on both sides. The logits of unusable pixels are infinite: padded ones, and
    those whose box has a coordinate outside (0.01, 0.99).

    Examples:
        >>> proposal_logits([(1, 2)], torch.zeros(1, 2, dtype=torch.bool)).sigmoid()
        tensor([[[0.2500, 0.5000, 0.0500, 0.0500],
                 [0.7500, 0.5000, 0.0500, 0.0500]]])
    """
    boxes = []
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        mask = padding_mask[:, start : start + height * width].view(padding_mask.shape[0], height, width)
        centers = pixel_indices(height, width, device=mask.device) / valid_sizes(mask)[:, None]
        boxes.append(torch.cat([centers, torch.full_like(centers, 0.05 * 2.0**level)], dim=-1))
        start = start + height * width
    proposals = torch.cat(boxes, dim=1)
    usable = ((proposals > 0.01) & (proposals < 0.99)).all(-1) & ~padding_mask
    return torch.log(proposals / (1 - proposals)).masked_fill(~usable[..., None], torch.inf)


def proposal_embedding(
    box_logits: Float[Tensor, "batch queries 4"], d_model: int
) -> Float[Tensor, "batch queries 2*{d_model}"]:
    """Return the sine encoding of boxes, `d_model / 2` channels for each of (cx, cy, w, h).

    Examples:
        >>> proposal_embedding(torch.zeros(1, 300, 4), d_model=64).shape
        torch.Size([1, 300, 128])
    """
    return sine_features(box_logits.sigmoid() * (2 * math.pi), d_model // 2).flatten(-2)
