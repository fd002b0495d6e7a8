"""Descriptions of Deformable DETR and of its criterion."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import nn

from deformdetr.config._base import Config
from deformdetr.config._parts import BackboneConfig, PositionConfig, ResNetConfig, SinePositionConfig
from deformdetr.losses import FocalClassification, SetCriterion
from deformdetr.matching import FocalClassCost, HungarianMatcher
from deformdetr.models import DeformableDETR, SigmoidPostProcess
from deformdetr.nn import (
    ChannelMapper,
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    FeedForward,
    LearnedQueries,
    MSDeformAttn,
    ProposalQueries,
    box_head,
    class_head,
)


class CriterionConfig(Config):
    """Costs of the matching and weights of the losses, which the paper sets alike; and the focal loss's two numbers."""

    cost_class: NonNegativeFloat = 2.0
    cost_bbox: NonNegativeFloat = 5.0
    cost_giou: NonNegativeFloat = 2.0
    loss_class: NonNegativeFloat = 2.0
    loss_bbox: NonNegativeFloat = 5.0
    loss_giou: NonNegativeFloat = 2.0
    focal_alpha: Annotated[float, Field(ge=0, le=1)] = 0.25
    focal_gamma: NonNegativeFloat = 2.0

    def build(self) -> SetCriterion:
        """Build matcher and criterion."""
        matcher = HungarianMatcher(
            cost_class=self.cost_class,
            cost_bbox=self.cost_bbox,
            cost_giou=self.cost_giou,
            class_cost=FocalClassCost(alpha=self.focal_alpha, gamma=self.focal_gamma),
        )
        return SetCriterion(
            matcher,
            classification=FocalClassification(alpha=self.focal_alpha, gamma=self.focal_gamma),
            weights={"loss_ce": self.loss_class, "loss_bbox": self.loss_bbox, "loss_giou": self.loss_giou},
        )


class DeformableDETRConfig(Config):
    """Any variant of Deformable DETR; the defaults are the multi-scale model of the paper.

    `with_box_refine` and `two_stage` may be combined freely: two stages without refinement keep the encoder's proposals
    as the references of every decoder layer.
    """

    kind: Literal["deformable_detr"] = "deformable_detr"
    num_classes: PositiveInt = Field(default=91, description="Logits per query; COCO's ids run to 90.")
    num_queries: PositiveInt = 300
    num_feature_levels: Annotated[int, Field(ge=1, le=6)] = Field(
        default=4, description="1 uses the last backbone stage, 3 the last three, more add coarser ones."
    )
    with_box_refine: bool = Field(default=False, description="Each decoder layer refines the boxes of the one before.")
    two_stage: bool = Field(default=False, description="The encoder proposes the queries.")
    aux_loss: bool = Field(default=True, description="Return, and train, the predictions of every decoder layer.")
    d_model: PositiveInt = 256
    n_heads: PositiveInt = 8
    num_encoder_layers: Annotated[int, Field(ge=0)] = 6
    num_decoder_layers: PositiveInt = 6
    d_ffn: PositiveInt = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    enc_n_points: PositiveInt = 4
    dec_n_points: PositiveInt = 4
    norm_groups: PositiveInt = Field(default=32, description="Groups of the neck's group norm.")
    backbone: BackboneConfig = ResNetConfig()
    position: PositionConfig = SinePositionConfig()
    criterion: CriterionConfig = CriterionConfig()
    top_k: PositiveInt = Field(default=100, description="Detections per image that post-processing keeps.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Position encodings give a sine and a cosine for x and for y.
        for name, divisor in (("n_heads", self.n_heads), ("norm_groups", self.norm_groups), ("4", 4)):
            if self.d_model % divisor:
                named = name if name == str(divisor) else f"{name} ({divisor})"
                raise ValueError(f"d_model ({self.d_model}) must be divisible by {named}")
        return self

    def build(self) -> DeformableDETR:
        """Build the model, with weights drawn from PyTorch's global generator."""
        backbone = self.backbone.build(out_layers=(2, 3, 4)[-min(3, self.num_feature_levels) :])
        n_layers = self.num_decoder_layers
        n_heads = n_layers if self.with_box_refine else 1
        class_heads = [class_head(self.d_model, self.num_classes) for _ in range(n_heads)]
        # References that are points need a first guess of the size; proposals bring one.
        box_heads = [
            box_head(self.d_model, size_bias=-2.0 if index == 0 and not self.two_stage else 0.0)
            for index in range(n_heads)
        ]
        return DeformableDETR(
            backbone=backbone,
            neck=ChannelMapper(
                backbone.channels, self.d_model, n_levels=self.num_feature_levels, norm_groups=self.norm_groups
            ),
            position=self.position.build(self.d_model),
            encoder=DeformableEncoder(self._encoder_layer() for _ in range(self.num_encoder_layers)),
            queries=self._queries(),
            decoder=DeformableDecoder(
                (self._decoder_layer() for _ in range(n_layers)), box_heads, with_box_refine=self.with_box_refine
            ),
            class_heads=class_heads,
            aux_loss=self.aux_loss,
        )

    def build_criterion(self) -> SetCriterion:
        """Build matcher and criterion."""
        return self.criterion.build()

    def build_postprocess(self) -> SigmoidPostProcess:
        """Build what turns outputs into detections."""
        return SigmoidPostProcess(top_k=self.top_k)

    def _encoder_layer(self) -> DeformableEncoderLayer:
        attention = MSDeformAttn(self.d_model, self.num_feature_levels, self.n_heads, self.enc_n_points)
        return DeformableEncoderLayer(attention, self._feed_forward(), dropout=self.dropout)

    def _decoder_layer(self) -> DeformableDecoderLayer:
        self_attn = nn.MultiheadAttention(self.d_model, self.n_heads, dropout=self.dropout, batch_first=True)
        cross_attn = MSDeformAttn(self.d_model, self.num_feature_levels, self.n_heads, self.dec_n_points)
        return DeformableDecoderLayer(self_attn, cross_attn, self._feed_forward(), dropout=self.dropout)

    def _feed_forward(self) -> FeedForward:
        return FeedForward(self.d_model, self.d_ffn, dropout=self.dropout)

    def _queries(self) -> LearnedQueries | ProposalQueries:
        if not self.two_stage:
            return LearnedQueries(self.num_queries, self.d_model)
        scores = class_head(self.d_model, self.num_classes)
        return ProposalQueries(self.num_queries, self.d_model, scores, box_head(self.d_model))
