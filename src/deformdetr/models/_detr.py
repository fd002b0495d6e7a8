"""DETR, assembled from its parts."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.models._inputs import as_batch, is_unpadded, shrink_mask
from deformdetr.models._masks import add_masks
from deformdetr.models._outputs import gather_layers
from deformdetr.models._pyramid import flatten_levels
from deformdetr.nn import MaskHead, TransformerDecoder, TransformerEncoder
from deformdetr.structures import LayerPredictions, Predictions


class DETR(nn.Module):
    """Predict a set of objects by attention to one feature map.

    Examples:
        >>> import deformdetr
        >>> config = deformdetr.preset("detr_r50").replace(backbone={"kind": "conv"}, num_encoder_layers=1)
        >>> with torch.no_grad():
        ...     outputs = config.build().eval()(torch.rand(1, 3, 64, 96))
        >>> outputs["pred_logits"].shape, outputs["pred_boxes"].shape
        (torch.Size([1, 100, 92]), torch.Size([1, 100, 4]))

    Args:
        backbone: Returns the features of images; the last one is encoded, those before it refine masks.
        projection: Projects that feature to `d_model` channels.
        position: Returns the position encoding of the feature map from its padding mask.
        encoder: Refines the feature map.
        decoder: Refines the queries.
        num_queries: Number of queries.
        class_head: Returns a query's logits; under a softmax the last one stands for "no object".
        box_head: Returns the logits of a query's box (cx, cy, w, h).
        aux_loss: Whether to return the predictions of all decoder layers, for auxiliary losses.
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
        """Return class logits and boxes of every query.

        Args:
            images: RGB, normalized by the mean and standard deviation of the backbone's training: a batch, or a list of
                images of any sizes, which are padded to a batch.
            padding_mask: True at the padded pixels of a batch, right of and below each image; None if there are none.

        Returns:
            `pred_logits` and `pred_boxes` (cx, cy, w, h as fractions of the unpadded image) of the last decoder layer;
            `aux_outputs` of the layers before it; `pred_masks` of the last layer and `valid_ratios` with a mask head.

        Raises:
            ValueError: If a padding mask comes with a list of images or differs in shape from the batch.
        """
        batch = as_batch(images, padding_mask)
        backbone_features = self.backbone(batch.images)
        features = self.projection(backbone_features[-1])
        mask = shrink_mask(batch.padding_mask, features.shape[-2], features.shape[-1])
        position = flatten_levels([self.position(mask)]).to(features.dtype)
        ignored = None if is_unpadded(images, padding_mask) else mask.flatten(1)

        memory = self.encoder(flatten_levels([features]), position, ignored)
        query_position = self.query_position.weight.expand(features.shape[0], -1, -1)
        hidden_states = self.decoder(torch.zeros_like(query_position), query_position, memory, position, ignored)
        outputs = gather_layers([self._predict(hidden) for hidden in hidden_states], aux_loss=self.aux_loss)
        if self.mask_head is not None:
            add_masks(
                outputs,
                self.mask_head,
                hidden_states[-1],
                memory.transpose(1, 2).view(features.shape),
                features,
                backbone_features,
                padding_mask=None if ignored is None else mask,
                image_padding=batch.padding_mask,
            )
        return outputs

    def _predict(self, hidden: Tensor) -> LayerPredictions:
        boxes = at_least_float32(self.box_head(hidden)).sigmoid()
        return {"pred_logits": self.class_head(hidden), "pred_boxes": boxes}
