"""Deformable DETR, assembled from its parts."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr.models._denoising import noise_targets, prepend
from deformdetr.models._inputs import as_batch, is_unpadded
from deformdetr.models._masks import add_masks
from deformdetr.models._outputs import gather_layers
from deformdetr.models._pyramid import Pyramid, flatten_levels
from deformdetr.nn import (
    ChannelMapper,
    ContrastiveDenoising,
    DecoderOutput,
    DeformableDecoder,
    DeformableEncoder,
    Denoising,
    MaskHead,
    NoisedQueries,
)
from deformdetr.structures import LayerPredictions, Predictions, Target


class DeformableDETR(nn.Module):
    """Predict a set of objects by deformable attention to a pyramid of features.

    Its parts make the variant: one level or several, a refining decoder or not, learned queries or proposals of the
    encoder (two-stage), denoising, masks. `deformdetr.DeformableDETRConfig` builds them.

    Examples:
        >>> import deformdetr
        >>> model = deformdetr.preset("demo").build().eval()
        >>> with torch.no_grad():
        ...     outputs = model(torch.rand(1, 3, 64, 96))
        >>> outputs["pred_logits"].shape, outputs["pred_boxes"].shape
        (torch.Size([1, 30, 3]), torch.Size([1, 30, 4]))

    Args:
        backbone: Returns the features of images, finest first.
        neck: Maps the last features, as many as it was built for, to a pyramid of equal channels.
        position: Returns the position encoding of a level from its padding mask.
        encoder: Refines the pyramid.
        queries: Returns the decoder's queries: `LearnedQueries` or `ProposalQueries`; for a decoder with `position`,
            `AnchorQueries` or `ProposalQueries` with learned content.
        decoder: Refines the queries and predicts their boxes.
        class_heads: Return a query's logits: one head per decoder layer, or one that all share.
        aux_loss: Whether to return the predictions of all decoder layers, for auxiliary losses.
        denoising: Returns denoising queries in training, for a decoder with `position`; None leaves them out.
        mask_head: Predicts the queries' masks; None leaves them out.

    Raises:
        ValueError: If the number of class heads is neither one nor the number of decoder layers.

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
        """Return class logits and boxes of every query.

        Args:
            images: RGB, normalized by the mean and standard deviation of the backbone's training: a batch, or a list of
                images of any sizes, which are padded to a batch.
            padding_mask: True at the padded pixels of a batch, right of and below each image; None if there are none.
            targets: One per image; required in training by a model that denoises, otherwise ignored.

        Returns:
            `pred_logits` and `pred_boxes` (cx, cy, w, h as fractions of the unpadded image) of the last decoder layer;
            `aux_outputs` of the layers before it; `enc_outputs` or `interm_outputs` of a two-stage model; `dn_outputs`
            in training with denoising; `pred_masks` of the last layer and `valid_ratios` with a mask head.

        Raises:
            ValueError: If a padding mask comes with a list of images or differs in shape from the batch, or targets are
                missing or not one per image.
        """
        batch = as_batch(images, padding_mask)
        noised = self._noise(targets, batch.images.shape[0])
        features = self.backbone(batch.images)
        pyramid = Pyramid.from_levels(self.neck(features[-len(self.neck.in_channels) :]), batch.padding_mask)
        ignored = None if is_unpadded(images, padding_mask) else pyramid.padding_mask

        memory = self.encoder(
            flatten_levels(pyramid.levels),
            self._encode_position(pyramid),
            pyramid.spatial_shapes,
            pyramid.valid_ratios,
            ignored,
        )
        queries = self.queries(memory, pyramid.spatial_shapes, pyramid.padding_mask)
        decoder_queries = queries if noised is None else prepend(noised, queries)
        decoded = self.decoder(
            decoder_queries.content,
            decoder_queries.position,
            decoder_queries.reference_points,
            memory,
            pyramid.spatial_shapes,
            pyramid.valid_ratios,
            ignored,
            decoder_queries.attention_mask,
        )
        outputs = gather_layers(self._predict(decoded), aux_loss=self.aux_loss, noised=noised)
        outputs.update(queries.predictions)
        if self.mask_head is not None:
            # The level of the backbone's last feature; coarser ones follow it.
            level = len(self.neck.in_channels) - 1
            add_masks(
                outputs,
                self.mask_head,
                decoded.hidden_states[-1],
                pyramid.unflatten(memory)[level],
                pyramid.levels[level],
                features,
                padding_mask=None if ignored is None else pyramid.masks[level],
                image_padding=batch.padding_mask,
            )
        return outputs

    def _noise(self, targets: Sequence[Target] | None, num_images: int) -> NoisedQueries | None:
        if self.denoising is None or not self.training:
            return None
        return noise_targets(self.denoising, targets, num_images)

    def _encode_position(self, pyramid: Pyramid) -> Tensor:
        embeds = self.level_embed[:, :, None, None].unbind()
        encodings = [self.position(mask) + embed for mask, embed in zip(pyramid.masks, embeds, strict=True)]
        return flatten_levels(encodings).to(pyramid.levels[0].dtype)

    def _predict(self, decoded: DecoderOutput) -> list[LayerPredictions]:
        return [
            {"pred_logits": self.class_heads[index % len(self.class_heads)](hidden), "pred_boxes": boxes}
            for index, (hidden, boxes) in enumerate(zip(decoded.hidden_states, decoded.boxes, strict=True))
        ]
