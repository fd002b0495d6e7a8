"""Deformable DETR, assembled from its parts."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.models._denoising import put_before, restored_outputs, split_layers
from deformdetr.models._inputs import as_batch, is_unpadded, shrink_mask
from deformdetr.models._masks import add_masks
from deformdetr.nn import (
    AnchorDecoder,
    ChannelMapper,
    ContrastiveDenoising,
    DeformableDecoder,
    DeformableEncoder,
    Denoising,
    MaskHead,
    NoisedQueries,
    valid_ratios,
)
from deformdetr.structures import LayerPredictions, Predictions, Target


class DeformableDETR(nn.Module):
    """Detect objects as a set, by deformable attention over a feature pyramid.

    All variants are this one module with other parts: one level or several, refining decoder or not, learned queries or
    the encoder's proposals (two-stage). `deformdetr.DeformableDETRConfig` builds them.

    Args:
        backbone: Images to features, finest first.
        neck: Features to a pyramid of equal channels; with a mask head, the last features alone, as many as it takes.
        position: Padding mask of a level to its position encoding.
        encoder: Refines the pyramid.
        queries: Gives the decoder's queries: `LearnedQueries` or `ProposalQueries`; for an `AnchorDecoder`,
            `AnchorQueries` or `MixedQueries`.
        decoder: Refines the queries and predicts their boxes.
        class_heads: Give a query's logits: one head per decoder layer, or a single one that all share.
        aux_loss: Whether to return the predictions of all decoder layers, as the auxiliary losses need them.
        denoising: Gives an `AnchorDecoder` noised targets to restore, in training; None leaves them out.
        mask_head: Predicts the queries' masks; None leaves them out.

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
        decoder: DeformableDecoder | AnchorDecoder,
        class_heads: Iterable[nn.Module],
        aux_loss: bool = True,
        denoising: Denoising | ContrastiveDenoising | None = None,
        mask_head: MaskHead | None = None,
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
        self.denoising = denoising
        self.mask_head = mask_head
        if len(self.class_heads) not in (1, len(decoder.layers)):
            raise ValueError(
                f"need one class head, or one for each of {len(decoder.layers)} layers; got {len(self.class_heads)}"
            )

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"] | Sequence[Float[Tensor, "3 _ _"]],
        padding_mask: Bool[Tensor, "batch height width"] | None = None,
        targets: Sequence[Target] | None = None,
    ) -> Predictions:
        """Predict classes and boxes for every query.

        Args:
            images: RGB, normalised by the mean and deviation that the backbone was trained with: a batch, or a list of
                images of any sizes, which are padded to a batch.
            padding_mask: True at the padded pixels of a batch, which lie right of and below each image; None means
                none.
            targets: One per image; needed in training by a model that denoises, and otherwise ignored.

        Returns:
            `pred_logits` and `pred_boxes` (cx, cy, w, h as fractions of the unpadded image) of the last decoder layer;
            `aux_outputs` of the layers before it, and `enc_outputs` or `interm_outputs` where the encoder proposes;
            `dn_outputs` where targets were noised; `pred_masks` of the last layer and `valid_ratios` with a mask head.

        Raises:
            ValueError: If a padding mask comes with a list of images, its shape is not that of the batch, or targets
                are missing, or are not one per image.
        """
        batch = as_batch(images, padding_mask)
        noised = self._noise(targets, batch.images.shape[0])
        features = self.backbone(batch.images)
        pyramid = self.neck(features if self.mask_head is None else features[-len(self.neck.in_channels) :])
        masks = [shrink_mask(batch.padding_mask, level.shape[-2], level.shape[-1]) for level in pyramid]
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        ratios = valid_ratios(masks)
        src = _flatten(pyramid)
        embeds = self.level_embed.unbind()
        position = _flatten(
            [self.position(mask) + embed[:, None, None] for mask, embed in zip(masks, embeds, strict=True)]
        )
        padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        ignored = None if is_unpadded(images, padding_mask) else padding

        memory = self.encoder(src, position.to(src.dtype), spatial_shapes, ratios, ignored)
        queries = self.queries(memory, spatial_shapes, padding)
        mask = None
        if noised is not None:
            mask = noised.attention_mask(queries.content.shape[1])
            queries = put_before(noised, queries)
        decoded = self.decoder(
            queries.content, queries.position, queries.reference_points, memory, spatial_shapes, ratios, ignored, mask
        )
        layers: list[LayerPredictions] = [
            {"pred_logits": self.class_heads[index % len(self.class_heads)](hidden), "pred_boxes": boxes}
            for index, (hidden, boxes) in enumerate(zip(decoded.hidden_states, decoded.boxes, strict=True))
        ]
        restored: list[LayerPredictions] = []
        if noised is not None:
            restored, layers = split_layers(layers, noised.content.shape[1])
        last = layers[-1]
        outputs: Predictions = {"pred_logits": last["pred_logits"], "pred_boxes": last["pred_boxes"]}
        if self.aux_loss:
            outputs["aux_outputs"] = layers[:-1]
        if queries.proposals is not None:
            outputs["enc_outputs"] = queries.proposals
        if queries.chosen is not None:
            outputs["interm_outputs"] = queries.chosen
        if noised is not None:
            outputs["dn_outputs"] = restored_outputs(restored, noised, aux_loss=self.aux_loss)
        if self.mask_head is not None:
            # The level of the backbone's last feature; coarser ones come after it.
            level = len(self.neck.in_channels) - 1
            add_masks(
                outputs,
                self.mask_head,
                decoded.hidden_states[-1][:, -last["pred_logits"].shape[1] :],
                memory.split([height * width for height, width in spatial_shapes], dim=1)[level],
                pyramid[level],
                features,
                padding_mask=None if ignored is None else masks[level],
                image_padding=batch.padding_mask,
            )
        return outputs

    def _noise(self, targets: Sequence[Target] | None, num_images: int) -> NoisedQueries | None:
        if self.denoising is None or not self.training:
            return None
        if targets is None:
            raise ValueError("targets must be given in training to a model that denoises them")
        if len(targets) != num_images:
            raise ValueError(f"there are {num_images} images, but targets for {len(targets)}")
        noised: NoisedQueries = self.denoising(targets)
        return noised


def _flatten(levels: Sequence[Tensor]) -> Tensor:
    """Turn levels (batch, channels, height, width) into (batch, pixels of all levels, channels)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
