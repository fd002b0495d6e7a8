"""Queries that are parameters, the same for every image."""

from typing import NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._dtypes import at_least_float32
from deformdetr.nn._geometry import LevelShapes
from deformdetr.structures import LayerPredictions


class EncoderPredictions(TypedDict, total=False):
    """Predictions of the encoder for its loss, under the keys of `deformdetr.structures.Predictions`."""

    enc_outputs: LayerPredictions
    """All proposals; class 0 stands for "object"."""
    interm_outputs: LayerPredictions
    """The selected proposals, with logits of all classes."""


class Queries(NamedTuple):
    """Inputs of a decoder.

    Examples:
        >>> content, boxes = torch.rand(1, 300, 64), torch.rand(1, 300, 4)
        >>> queries = Queries(content, position=None, reference_points=boxes, predictions={})
    """

    content: Float[Tensor, "batch queries d_model"]
    position: Float[Tensor, "batch queries d_model"] | None
    """Position encoding; None if the decoder computes it from the reference points."""
    reference_points: Float[Tensor, "batch queries coordinates"]
    """(x, y) or (cx, cy, w, h) as fractions of the unpadded image."""
    predictions: EncoderPredictions
    """Predictions that the queries were selected from; empty if there were none."""
    attention_mask: Bool[Tensor, "queries queries"] | None = None
    """True where a query (row) must not attend to another (column); None allows all."""


class LearnedQueries(nn.Module):
    """Queries with learned content and position, and a reference point computed from the position.

    Examples:
        >>> queries = LearnedQueries(300, d_model=64)
        >>> queries(torch.rand(1, 8 * 8, 64), [(8, 8)], torch.zeros(1, 8 * 8, dtype=torch.bool)).content.shape
        torch.Size([1, 300, 64])

    Args:
        num_queries: Number of queries.
        d_model: Channels of content and of position.

    Raises:
        ValueError: If `num_queries` is not positive.
    """

    def __init__(self, num_queries: int, d_model: int) -> None:
        super().__init__()
        check_num_queries(num_queries)
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
        """Return the queries, once per image; only the batch size of the arguments matters."""
        position, content = self.embedding.weight.expand(memory.shape[0], -1, -1).chunk(2, dim=-1)
        # In the half precision of autocast a reference point would move by a pixel of a large image.
        # The meta device has no autocast.
        with torch.autocast("cpu" if position.is_meta else position.device.type, enabled=False):
            points = at_least_float32(self.reference_points(position)).sigmoid()
        return Queries(content, position, points, {})


class AnchorQueries(nn.Module):
    """Queries with learned content and learned reference boxes.

    Examples:
        >>> queries = AnchorQueries(300, d_model=64)
        >>> memory, padding_mask = torch.rand(1, 8 * 8, 64), torch.zeros(1, 8 * 8, dtype=torch.bool)
        >>> queries(memory, [(8, 8)], padding_mask).reference_points.shape
        torch.Size([1, 300, 4])

    Args:
        num_queries: Number of queries.
        d_model: Channels of the content.
        has_indicator: Whether the last content channel is an indicator: 0 for matched queries, 1 for denoising queries.

    Raises:
        ValueError: If `num_queries` is not positive.

    References:
        Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022, section 4.2.
    """

    def __init__(self, num_queries: int, d_model: int, *, has_indicator: bool = False) -> None:
        super().__init__()
        check_num_queries(num_queries)
        self.content = nn.Embedding(num_queries, d_model - has_indicator)
        self.anchors = nn.Embedding(num_queries, 4)
        self.d_model = d_model

    def forward(
        self,
        memory: Float[Tensor, "batch pixels d_model"],
        spatial_shapes: LevelShapes,
        padding_mask: Bool[Tensor, "batch pixels"],
    ) -> Queries:
        """Return the queries, once per image; only the batch size of the arguments matters."""
        content = repeat_content(self.content.weight, memory.shape[0], self.d_model)
        anchors = at_least_float32(self.anchors.weight).sigmoid().expand(memory.shape[0], -1, -1)
        return Queries(content, None, anchors, {})


def repeat_content(
    content: Float[Tensor, "queries channels"], batch: int, d_model: int
) -> Float[Tensor, "batch queries d_model"]:
    """Return learned content once per image; channels that it lacks, such as an indicator, are 0."""
    return F.pad(content, (0, d_model - content.shape[1])).expand(batch, -1, -1)


def check_num_queries(num_queries: int) -> None:
    """Raise `ValueError` if there are no queries."""
    if num_queries < 1:
        raise ValueError(f"num_queries must be at least 1, got {num_queries}")
