"""Deformable DETR, assembled from its parts."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.models._inputs import as_batch, shrink_mask
from deformdetr.nn import ChannelMapper, DeformableDecoder, DeformableEncoder, valid_ratios
from deformdetr.structures import LayerPredictions, Predictions


class DeformableDETR(nn.Module):
    """Detect objects as a set, by deformable attention over a feature pyramid.

    All variants are this one module with other parts: one level or several, refining decoder or not, learned queries or
    the encoder's proposals (two-stage). `deformdetr.DeformableDETRConfig` builds them.

    Args:
        backbone: Images to features, finest first.
        neck: Features to a pyramid of equal channels.
        position: Padding mask of a level to its position encoding.
        encoder: Refines the pyramid.
        queries: Gives the decoder's queries: `LearnedQueries` or `ProposalQueries`.
        decoder: Refines the queries and predicts their boxes.
        class_heads: Give a query's logits: one head per decoder layer, or a single one that all share.
        aux_loss: Whether to return the predictions of all decoder layers, as the auxiliary losses need them.

    Raises:
        ValueError: If the number of class heads is neither one nor that of the decoder layers.

    References:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: ChannelMapper,
        position: nn.Module,
        encoder: DeformableEncoder,
        queries: nn.Module,
        decoder: DeformableDecoder,
        class_heads: Iterable[nn.Module],
        aux_loss: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.position = position
        self.level_embed = nn.Parameter(torch.randn(len(neck.levels), neck.d_model))
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.class_heads = nn.ModuleList(class_heads)
        self.aux_loss = aux_loss
        if len(self.class_heads) not in (1, len(decoder.layers)):
            raise ValueError(
                f"need one class head, or one for each of {len(decoder.layers)} layers; got {len(self.class_heads)}"
            )

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"] | Sequence[Float[Tensor, "3 _ _"]],
        padding_mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Predictions:
        """Predict classes and boxes for every query.

        Args:
            images: RGB, normalised by the mean and deviation that the backbone was trained with: a batch, or a list of
                images of any sizes, which are padded to a batch.
            padding_mask: True at the padded pixels of a batch, which lie right of and below each image; None means
                none.

        Returns:
            `pred_logits` and `pred_boxes` (cx, cy, w, h as fractions of the unpadded image) of the last decoder layer;
            `aux_outputs` of the layers before it, and `enc_outputs` where the encoder proposes.

        Raises:
            ValueError: If a padding mask comes with a list of images, or its shape is not that of the batch.
        """
        batch = as_batch(images, padding_mask)
        pyramid = self.neck(self.backbone(batch.images))
        masks = [shrink_mask(batch.padding_mask, level.shape[-2], level.shape[-1]) for level in pyramid]
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        ratios = valid_ratios(masks)
        src = _flatten(pyramid)
        position = _flatten(
            [self.position(mask) + embed[:, None, None] for mask, embed in zip(masks, self.level_embed, strict=True)]
        )
        padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)

        memory = self.encoder(src, position.to(src.dtype), spatial_shapes, ratios, padding)
        queries = self.queries(memory, spatial_shapes, padding)
        decoded = self.decoder(
            queries.content, queries.position, queries.reference_points, memory, spatial_shapes, ratios, padding
        )
        layers: list[LayerPredictions] = [
            {"pred_logits": self.class_heads[index % len(self.class_heads)](hidden), "pred_boxes": boxes}
            for index, (hidden, boxes) in enumerate(zip(decoded.hidden_states, decoded.boxes, strict=True))
        ]
        last = layers[-1]
        outputs: Predictions = {"pred_logits": last["pred_logits"], "pred_boxes": last["pred_boxes"]}
        if self.aux_loss:
            outputs["aux_outputs"] = layers[:-1]
        if queries.proposals is not None:
            outputs["enc_outputs"] = queries.proposals
        return outputs


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """Turn levels (batch, channels, height, width) into (batch, pixels of all levels, channels)."""
    return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)
