"""Typed descriptions of models, which build them, and the presets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn

from deformdetr.losses import FocalClassification, SetCriterion
from deformdetr.matching import FocalClassCost, HungarianMatcher
from deformdetr.models import DeformableDETR, SigmoidPostProcess
from deformdetr.nn import (
    ChannelMapper,
    ConvBackbone,
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    FeedForward,
    LearnedPositionEncoding,
    LearnedQueries,
    MSDeformAttn,
    ProposalQueries,
    ResNetBackbone,
    SinePositionEncoding,
    box_head,
    class_head,
)


class Config(BaseModel):
    """A frozen description that knows all of its fields: an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def replace(self, **changes: Any) -> Self:
        """Give a copy with some fields changed, validated as a whole.

        Nested descriptions may be given as such or as mappings, which replace the whole of them.

        Raises:
            pydantic.ValidationError: If the changed description is not valid.
        """
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(fields | changes)


class ResNetConfig(Config):
    """A torchvision ResNet; see `deformdetr.nn.ResNetBackbone`."""

    kind: Literal["resnet"] = "resnet"
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    dilation: bool = Field(default=False, description="Keep stride 16 in the last stage (DC5).")
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    trainable_layers: Annotated[int, Field(ge=0, le=5)] = Field(
        default=3, description="Stages that train, counted from the last; 5 includes the stem."
    )
    weights: str | None = Field(
        default=None, description="None: random; DEFAULT: torchvision's ImageNet weights; else the path of a state dict."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dilation and self.name in ("resnet18", "resnet34"):
            raise ValueError(f"{self.name} has no dilated form; dilation needs resnet50 or resnet101")
        if self.weights is not None and self.norm == "group":
            raise ValueError(f"weights ({self.weights}) are of batch-norm networks and do not fit norm='group'")
        return self

    def build(self, out_layers: tuple[int, ...]) -> ResNetBackbone:
        """Build the backbone with the outputs of some of its four stages."""
        return ResNetBackbone(
            self.name,
            out_layers=out_layers,
            norm=self.norm,
            dilation=self.dilation,
            trainable_layers=self.trainable_layers,
            weights=self.weights,
        )


class ConvBackboneConfig(Config):
    """A small residual network for demonstrations and tests; see `deformdetr.nn.ConvBackbone`."""

    kind: Literal["conv"] = "conv"
    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128, 256)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(width % 8 for width in self.channels):
            raise ValueError(f"channels must be multiples of 8, got {self.channels}")
        return self

    def build(self, out_layers: tuple[int, ...]) -> ConvBackbone:
        """Build the backbone with the outputs of some of its four stages."""
        return ConvBackbone(self.channels, out_layers=out_layers)


class SinePositionConfig(Config):
    """Fixed position encodings; see `deformdetr.nn.SinePositionEncoding`."""

    kind: Literal["sine"] = "sine"
    temperature: PositiveFloat = 10000.0
    normalize: bool = True
    offset: float = Field(default=-0.5, description="-0.5: pixel centres, as Deformable DETR; 0: as DETR.")

    def build(self, d_model: int) -> SinePositionEncoding:
        """Build the encoding."""
        return SinePositionEncoding(
            d_model, temperature=self.temperature, normalize=self.normalize, offset=self.offset
        )


class LearnedPositionConfig(Config):
    """Learned position encodings; see `deformdetr.nn.LearnedPositionEncoding`."""

    kind: Literal["learned"] = "learned"
    max_size: PositiveInt = Field(default=50, description="Largest height and width of a feature map, in pixels.")

    def build(self, d_model: int) -> LearnedPositionEncoding:
        """Build the encoding."""
        return LearnedPositionEncoding(d_model, max_size=self.max_size)


BackboneConfig = Annotated[ResNetConfig | ConvBackboneConfig, Field(discriminator="kind")]
PositionConfig = Annotated[SinePositionConfig | LearnedPositionConfig, Field(discriminator="kind")]


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

    `with_box_refine` and `two_stage` may be combined freely: two stages without refinement keep the encoder's proposals as the
    references of every decoder layer.
    """

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
            box_head(self.d_model, size_bias=-2.0 if index == 0 and not self.two_stage else 0.0) for index in range(n_heads)
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


_SINGLE_SCALE = DeformableDETRConfig(num_feature_levels=1)

PRESETS: Mapping[str, DeformableDETRConfig] = {
    "deformable_detr_r50_single_scale": _SINGLE_SCALE,
    "deformable_detr_r50_single_scale_dc5": _SINGLE_SCALE.replace(backbone=ResNetConfig(dilation=True)),
    "deformable_detr_r50": DeformableDETRConfig(),
    "deformable_detr_r50_refine": DeformableDETRConfig(with_box_refine=True),
    "deformable_detr_r50_two_stage": DeformableDETRConfig(with_box_refine=True, two_stage=True),
    "demo": DeformableDETRConfig(
        num_classes=3,
        num_queries=30,
        with_box_refine=True,
        two_stage=True,
        d_model=64,
        n_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        d_ffn=128,
        dropout=0.0,
        norm_groups=8,
        backbone=ConvBackboneConfig(channels=(16, 32, 64, 128)),
    ),
}


def preset(name: str) -> DeformableDETRConfig:
    """Give the description of a published model by its name.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_names() -> list[str]:
    """List the presets."""
    return list(PRESETS)
