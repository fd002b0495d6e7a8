"""Config of DETR."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from deformdetr.config._base import Count, DefaultedConfig, Layers, Width
from deformdetr.config._criterion import AnyCriterionConfig, SoftmaxCriterionConfig
from deformdetr.config._masks import MASK_STAGES, DiceLossCoef, MaskLossCoef, Masks, build_mask_head
from deformdetr.config._parts import BackboneConfig, PositionConfig, ResNetConfig, SinePositionConfig, check_d_model
from deformdetr.losses import SetCriterion
from deformdetr.models import DETR, SigmoidPostProcess, SoftmaxPostProcess
from deformdetr.nn import (
    MLP,
    FeatureBackbone,
    FeedForward,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    class_head,
)


class DETRConfig(DefaultedConfig):
    """DETR; the defaults are those of the published model with a ResNet-50.

    Examples:
        >>> DETRConfig(num_classes=3).build_criterion().weights
        {'loss_ce': 1.0, 'loss_bbox': 5.0, 'loss_giou': 2.0}
    """

    kind: Literal["detr"] = "detr"
    num_classes: Count = Field(
        default=91,
        description="Number of classes; COCO's ids run to 90. With a softmax criterion, queries have one logit more, "
        "the last, for no object.",
    )
    num_queries: Count = 100
    aux_loss: bool = Field(default=True, description="Return, and train, the predictions of every decoder layer.")
    masks: Masks = False
    mask_loss_coef: MaskLossCoef = 1.0
    dice_loss_coef: DiceLossCoef = 1.0
    d_model: Width = 256
    n_heads: Width = 8
    num_encoder_layers: Annotated[int, Field(ge=0, le=256)] = 6
    num_decoder_layers: Layers = 6
    d_ffn: Width = 2048
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    backbone: BackboneConfig = ResNetConfig()
    position: PositionConfig = SinePositionConfig(offset=0.0)
    criterion: AnyCriterionConfig = Field(
        default=SoftmaxCriterionConfig(), description="Softmax as in DETR, or focal as in Deformable DETR."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_d_model(self.d_model, {"n_heads": self.n_heads})
        return self

    def build(self, *, backbone: FeatureBackbone | None = None) -> DETR:
        """Build the model, with weights drawn from PyTorch's global generator.

        Args:
            backbone: Replaces the configured one. Its last feature is encoded, and with masks up to three before it
                refine them.

        Raises:
            ValueError: If masks need finer features than the backbone returns.
        """
        features = backbone or self.backbone.build(out_layers=MASK_STAGES if self.masks else (4,))
        return DETR(
            backbone=features,
            projection=nn.Conv2d(features.channels[-1], self.d_model, 1),
            position=self.position.build(self.d_model),
            encoder=TransformerEncoder(self._encoder_layer() for _ in range(self.num_encoder_layers)),
            decoder=TransformerDecoder(
                (self._decoder_layer() for _ in range(self.num_decoder_layers)), nn.LayerNorm(self.d_model)
            ),
            num_queries=self.num_queries,
            class_head=nn.Linear(self.d_model, self.num_classes + 1)
            if self.criterion.kind == "softmax"
            else class_head(self.d_model, self.num_classes),
            box_head=MLP(self.d_model, self.d_model, 4, 3),
            aux_loss=self.aux_loss,
            mask_head=build_mask_head(self.d_model, self.n_heads, features) if self.masks else None,
        )

    def build_criterion(self) -> SetCriterion:
        """Build matcher and criterion."""
        weights = {"loss_mask": self.mask_loss_coef, "loss_dice": self.dice_loss_coef}
        return self.criterion.build(mask_weights=weights if self.masks else None)

    def build_postprocess(self, *, mask_threshold: float | None = None) -> SoftmaxPostProcess | SigmoidPostProcess:
        """Build the post-processing; `mask_threshold` is passed on to it."""
        if self.criterion.kind == "softmax":
            return SoftmaxPostProcess(mask_threshold=mask_threshold)
        return SigmoidPostProcess(mask_threshold=mask_threshold)

    def _encoder_layer(self) -> TransformerEncoderLayer:
        return TransformerEncoderLayer(self._attention(), self._feed_forward(), dropout=self.dropout)

    def _decoder_layer(self) -> TransformerDecoderLayer:
        return TransformerDecoderLayer(self._attention(), self._attention(), self._feed_forward(), dropout=self.dropout)

    def _attention(self) -> nn.MultiheadAttention:
        return nn.MultiheadAttention(self.d_model, self.n_heads, dropout=self.dropout, batch_first=True)

    def _feed_forward(self) -> FeedForward:
        return FeedForward(self.d_model, self.d_ffn, dropout=self.dropout)
