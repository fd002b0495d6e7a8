"""Descriptions of DETR and of its criterion."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, model_validator
from torch import nn

from deformdetr.config._base import Config
from deformdetr.config._deformable_detr import CriterionConfig
from deformdetr.config._masks import DICE_LOSS_COEF, MASK_LOSS_COEF, MASK_STAGES, MASKS, build_mask_head
from deformdetr.config._parts import BackboneConfig, PositionConfig, ResNetConfig, SinePositionConfig
from deformdetr.losses import SetCriterion, SoftmaxClassification
from deformdetr.matching import HungarianMatcher, SoftmaxClassCost
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


class SoftmaxCriterionConfig(Config):
    """Costs of the matching and weights of the losses, and what "no object" counts among the classes."""

    kind: Literal["softmax"] = "softmax"
    cost_class: NonNegativeFloat = 1.0
    cost_bbox: NonNegativeFloat = 5.0
    cost_giou: NonNegativeFloat = 2.0
    loss_class: NonNegativeFloat = 1.0
    loss_bbox: NonNegativeFloat = 5.0
    loss_giou: NonNegativeFloat = 2.0
    no_object_weight: NonNegativeFloat = 0.1

    def build(self, *, mask_weights: Mapping[str, float] | None = None) -> SetCriterion:
        """Build matcher and criterion; `mask_weights` are those of the losses of masks, where there are any."""
        matcher = HungarianMatcher(
            cost_class=self.cost_class,
            cost_bbox=self.cost_bbox,
            cost_giou=self.cost_giou,
            class_cost=SoftmaxClassCost(),
        )
        return SetCriterion(
            matcher,
            classification=SoftmaxClassification(no_object_weight=self.no_object_weight),
            weights={
                "loss_ce": self.loss_class,
                "loss_bbox": self.loss_bbox,
                "loss_giou": self.loss_giou,
                **(mask_weights or {}),
            },
        )


def _usually_softmax(criterion: Any) -> Any:
    return {"kind": "softmax", **criterion} if isinstance(criterion, Mapping) else criterion


AnyCriterionConfig = Annotated[
    SoftmaxCriterionConfig | CriterionConfig, Field(discriminator="kind"), BeforeValidator(_usually_softmax)
]


class DETRConfig(Config):
    """DETR; the defaults are those of the published model with a ResNet-50."""

    kind: Literal["detr"] = "detr"
    num_classes: PositiveInt = Field(
        default=91,
        description="Classes; COCO's ids run to 90. A query has one more logit, the last, for no object, unless the "
        "criterion is focal.",
    )
    num_queries: PositiveInt = 100
    aux_loss: bool = Field(default=True, description="Return, and train, the predictions of every decoder layer.")
    masks: bool = Field(default=False, description=MASKS)
    mask_loss_coef: NonNegativeFloat = Field(default=1.0, description=MASK_LOSS_COEF)
    dice_loss_coef: NonNegativeFloat = Field(default=1.0, description=DICE_LOSS_COEF)
    d_model: PositiveInt = 256
    n_heads: PositiveInt = 8
    num_encoder_layers: Annotated[int, Field(ge=0)] = 6
    num_decoder_layers: PositiveInt = 6
    d_ffn: PositiveInt = 2048
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    backbone: BackboneConfig = ResNetConfig()
    position: PositionConfig = SinePositionConfig(offset=0.0)
    criterion: AnyCriterionConfig = Field(
        default=SoftmaxCriterionConfig(), description="Softmax as in DETR, or focal as in Deformable DETR."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, divisor in ((f"n_heads ({self.n_heads})", self.n_heads), ("4", 4)):
            if self.d_model % divisor:
                raise ValueError(f"d_model ({self.d_model}) must be divisible by {name}")
        return self

    def build(self, *, backbone: FeatureBackbone | None = None) -> DETR:
        """Build the model, with weights drawn from PyTorch's global generator.

        Args:
            backbone: Takes the place of the one that is described; its last output counts, and with masks the three
                before it too.

        Raises:
            ValueError: If masks need finer features than the backbone gives.
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
            class_head=self._class_head(),
            box_head=MLP(self.d_model, self.d_model, 4, 3),
            aux_loss=self.aux_loss,
            mask_head=build_mask_head(self.d_model, self.n_heads, features) if self.masks else None,
        )

    def build_criterion(self) -> SetCriterion:
        """Build matcher and criterion."""
        weights = {"loss_mask": self.mask_loss_coef, "loss_dice": self.dice_loss_coef}
        return self.criterion.build(mask_weights=weights if self.masks else None)

    def build_postprocess(self, *, mask_threshold: float | None = None) -> SoftmaxPostProcess | SigmoidPostProcess:
        """Build what turns outputs into detections; `mask_threshold` is that of `SigmoidPostProcess`."""
        if self.criterion.kind == "softmax":
            return SoftmaxPostProcess(mask_threshold=mask_threshold)
        return SigmoidPostProcess(mask_threshold=mask_threshold)

    def _class_head(self) -> nn.Module:
        if self.criterion.kind == "softmax":
            return nn.Linear(self.d_model, self.num_classes + 1)
        return class_head(self.d_model, self.num_classes)

    def _encoder_layer(self) -> TransformerEncoderLayer:
        return TransformerEncoderLayer(self._attention(), self._feed_forward(), dropout=self.dropout)

    def _decoder_layer(self) -> TransformerDecoderLayer:
        return TransformerDecoderLayer(self._attention(), self._attention(), self._feed_forward(), dropout=self.dropout)

    def _attention(self) -> nn.MultiheadAttention:
        return nn.MultiheadAttention(self.d_model, self.n_heads, dropout=self.dropout, batch_first=True)

    def _feed_forward(self) -> FeedForward:
        return FeedForward(self.d_model, self.d_ffn, dropout=self.dropout)
