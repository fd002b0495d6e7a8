"""DETR, assembled from its parts."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.models._inputs import as_batch, is_unpadded, shrink_mask
from deformdetr.models._masks import add_masks
from deformdetr.nn import MaskHead, TransformerDecoder, TransformerEncoder
from deformdetr.structures import LayerPredictions, Predictions


class DETR(nn.Module):
    """Detect objects as a set, by attention over one feature map.

    Args:
        backbone: Images to features, of which the last counts; a mask head reads those before it too.
        projection: That feature to `d_model` channels.
        position: Padding mask of the feature map to its position encoding.
        encoder: Refines the feature map.
        decoder: Turns queries into what the heads read.
        num_queries: How many objects can be found at most.
        class_head: A query's logits; under a softmax, the last one stands for "no object".
        box_head: A query's box before the sigmoid, (cx, cy, w, h).
        aux_loss: Whether to return the predictions of all decoder layers, as the auxiliary losses need them.
        mask_head: Predicts the queries' masks; None leaves them out.

    Raises:
        ValueError: If `num_queries` is not positive.

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        projection: nn.Conv2d,
        position: nn.Module,
        encoder: TransformerEncoder,
        decoder: TransformerDecoder,
        num_queries: int,
        class_head: nn.Module,
        box_head: nn.Module,
        aux_loss: bool = True,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        self.backbone = backbone
        self.projection = projection
        self.position = position
        self.encoder = encoder
        self.query_position = nn.Embedding(num_queries, projection.out_channels)
        self.decoder = decoder
        self.class_head = class_head
        self.box_head = box_head
        self.aux_loss = aux_loss
        self.mask_head = mask_head

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
            `aux_outputs` of the layers before it; `pred_masks` of the last layer and `valid_ratios` with a mask head.

        Raises:
            ValueError: If a padding mask comes with a list of images, or its shape is not that of the batch.
        """
        batch = as_batch(images, padding_mask)
        backbone_features = self.backbone(batch.images)
        features = self.projection(backbone_features[-1])
        mask = shrink_mask(batch.padding_mask, features.shape[-2], features.shape[-1])
        src = features.flatten(2).transpose(1, 2)
        position = self.position(mask).flatten(2).transpose(1, 2).to(src.dtype)
        padding = None if is_unpadded(images, padding_mask) else mask.flatten(1)

        memory = self.encoder(src, position, padding)
        query_position = self.query_position.weight.expand(src.shape[0], -1, -1)
        hidden_states = self.decoder(torch.zeros_like(query_position), query_position, memory, position, padding)
        layers = [self._predict(hidden) for hidden in hidden_states]
        last = layers[-1]
        outputs: Predictions = {"pred_logits": last["pred_logits"], "pred_boxes": last["pred_boxes"]}
        if self.aux_loss:
            outputs["aux_outputs"] = layers[:-1]
        if self.mask_head is not None:
            add_masks(
                outputs,
                self.mask_head,
                hidden_states[-1],
                memory,
                features,
                backbone_features,
                padding_mask=None if padding is None else mask,
                image_padding=batch.padding_mask,
            )
        return outputs

    def _predict(self, hidden: Tensor) -> LayerPredictions:
        boxes = at_least_float32(self.box_head(hidden)).sigmoid()
        return {"pred_logits": self.class_head(hidden), "pred_boxes": boxes}
