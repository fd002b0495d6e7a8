"""Config of Deformable DETR and of the models that build on it."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from deformdetr.config._base import Count, DefaultedConfig, Layers, Points, Width
from deformdetr.config._criterion import FocalCriterionConfig
from deformdetr.config._denoising import AnyDenoisingConfig, DenoisingConfig
from deformdetr.config._masks import MASK_STAGES, DiceLossCoef, MaskLossCoef, Masks, build_mask_head
from deformdetr.config._parts import BackboneConfig, PositionConfig, ResNetConfig, SinePositionConfig, check_d_model
from deformdetr.kernels import Method
from deformdetr.losses import SetCriterion
from deformdetr.models import DeformableDETR, SigmoidPostProcess
from deformdetr.nn import (
    AnchorPosition,
    AnchorQueries,
    ChannelMapper,
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    FeatureBackbone,
    FeedForward,
    LearnedQueries,
    MSDeformAttn,
    ProposalQueries,
    box_head,
    class_head,
)

# Fields that need `anchor_queries`, in the order of messages.
_ANCHOR_FIELDS = (
    "query_scale",
    "look_forward_twice",
    "decoder_norm",
    "share_heads",
    "inverse_sigmoid_eps",
    "denoising",
)


class DeformableDETRConfig(DefaultedConfig):
    """Any variant of Deformable DETR; the defaults are the multi-scale model of the paper.

    `with_box_refine` and `two_stage` are independent: two stages without refinement keep the encoder's proposals as the
    references of all decoder layers. With `anchor_queries` the queries are boxes, as in DAB-DETR, DN-DETR and DINO. The
    other fields that these papers add require it.

    Examples:
        >>> config = DeformableDETRConfig(num_classes=3, with_box_refine=True)
        >>> config.replace(two_stage=True).two_stage
        True
    """

    kind: Literal["deformable_detr"] = "deformable_detr"
    num_classes: Count = Field(default=91, description="Number of classes; COCO's ids run to 90.")
    num_queries: Count = 300
    num_feature_levels: Annotated[int, Field(ge=1, le=6)] = Field(
        default=4, description="1 takes the last backbone stage, 3 the last three; more add coarser levels."
    )
    with_box_refine: bool = Field(
        default=False, description="Every decoder layer refines the boxes of the layer before."
    )
    two_stage: bool = Field(default=False, description="The encoder proposes the queries.")
    query_selection: Literal["pure", "mixed"] = Field(
        default="pure",
        description="Proposals become content and position of the queries (pure, Deformable DETR), or reference boxes "
        "alone, selected by their best class, with learned content (mixed, DINO, section 3.4).",
    )
    anchor_queries: bool = Field(
        default=False,
        description="Queries are boxes: every decoder layer encodes them by sines and an MLP as positions, and refines "
        "them (DAB-DETR, section 4.2).",
    )
    query_scale: bool = Field(
        default=False, description="An MLP of the content scales these positions (DAB-DETR, section 4.2)."
    )
    look_forward_twice: bool = Field(
        default=False, description="The boxes of a layer train the layer before it too (DINO, section 3.5)."
    )
    decoder_norm: bool = Field(
        default=False, description="Class and box heads get normalized hidden states (DINO's implementation)."
    )
    share_heads: bool = Field(
        default=False,
        description="All decoder layers share their heads, although they refine boxes (DINO's implementation).",
    )
    inverse_sigmoid_eps: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=1e-5, description="Lower bound of a box coordinate before the logit; 1e-3 in DN-DETR and DINO."
    )
    denoising: AnyDenoisingConfig | None = Field(
        default=None, description="Train to restore noised targets: kind dn (DN-DETR) or cdn (DINO, section 3.3)."
    )
    aux_loss: bool = Field(default=True, description="Return, and train, the predictions of every decoder layer.")
    masks: Masks = False
    mask_loss_coef: MaskLossCoef = 1.0
    dice_loss_coef: DiceLossCoef = 1.0
    d_model: Width = 256
    n_heads: Width = 8
    num_encoder_layers: Annotated[int, Field(ge=0, le=256)] = 6
    num_decoder_layers: Layers = 6
    d_ffn: Width = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    enc_n_points: Points | tuple[Points, ...] = Field(
        default=4, description="Sampling points per head and level of the encoder; a list gives them per level."
    )
    dec_n_points: Points | tuple[Points, ...] = Field(default=4, description="The same for the decoder.")
    enc_method: Method = Field(
        default="bilinear",
        description="How the encoder samples: bilinear, or discrete, which reads one pixel per point and freezes the "
        "offsets (RT-DETRv2); start it from a model trained with bilinear.",
    )
    dec_method: Method = Field(default="bilinear", description="The same for the decoder.")
    norm_groups: Width = Field(default=32, description="Groups of the neck's group norm.")
    backbone: BackboneConfig = ResNetConfig()
    position: PositionConfig = SinePositionConfig()
    criterion: FocalCriterionConfig = FocalCriterionConfig()
    top_k: PositiveInt = Field(default=100, description="Detections per image that post-processing keeps.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_d_model(self.d_model, {"n_heads": self.n_heads, "norm_groups": self.norm_groups})
        for name, points in (("enc_n_points", self.enc_n_points), ("dec_n_points", self.dec_n_points)):
            if isinstance(points, tuple) and len(points) != self.num_feature_levels:
                raise ValueError(
                    f"{name} ({points}) must have a number for each of num_feature_levels ({self.num_feature_levels})"
                )
        return self

    @model_validator(mode="after")
    def _check_anchors(self) -> Self:
        fields = type(self).model_fields
        changed = [name for name in _ANCHOR_FIELDS if getattr(self, name) != fields[name].default]
        if changed and not self.anchor_queries:
            raise ValueError(f"{', '.join(changed)} need anchor_queries=True")
        if self.anchor_queries and not self.with_box_refine:
            raise ValueError("anchor_queries=True needs with_box_refine=True: every layer refines the boxes")
        if (self.query_selection == "mixed") != (self.two_stage and self.anchor_queries):
            raise ValueError(
                "query_selection='mixed' goes with two_stage=True and anchor_queries=True, and these with it, got "
                f"{self.query_selection!r}, {self.two_stage} and {self.anchor_queries}"
            )
        if self.query_scale and self.num_decoder_layers == 1:
            raise ValueError("query_scale=True needs num_decoder_layers of at least 2: the first layer has no scale")
        return self

    def build(self, *, backbone: FeatureBackbone | None = None) -> DeformableDETR:
        """Build the model, with weights drawn from PyTorch's global generator.

        Args:
            backbone: Replaces the configured one. With masks, its last three features, or as many as there are levels,
                become levels, and the three before the last refine the masks.

        Raises:
            ValueError: If the backbone returns too many or too few features for the model.
        """
        n_features = min(3, self.num_feature_levels)
        features = backbone or self.backbone.build(out_layers=MASK_STAGES if self.masks else (2, 3, 4)[-n_features:])
        n_heads = self.num_decoder_layers if self.with_box_refine and not self.share_heads else 1
        class_heads = [class_head(self.d_model, self.num_classes) for _ in range(n_heads)]
        # References that are points need an initial size; proposals have one.
        first = 0.0 if self.two_stage else -2.0
        box_heads = [box_head(self.d_model, size_bias=0.0 if index else first) for index in range(n_heads)]
        return DeformableDETR(
            backbone=features,
            neck=ChannelMapper(
                features.channels[-n_features:] if self.masks else features.channels,
                self.d_model,
                n_levels=self.num_feature_levels,
                norm_groups=self.norm_groups,
            ),
            position=self.position.build(self.d_model),
            encoder=DeformableEncoder(self._encoder_layer() for _ in range(self.num_encoder_layers)),
            queries=self._queries(),
            decoder=self._decoder(box_heads),
            class_heads=class_heads,
            aux_loss=self.aux_loss,
            denoising=None
            if self.denoising is None
            else self.denoising.build(self.num_classes, self.d_model, eps=self.inverse_sigmoid_eps),
            mask_head=build_mask_head(self.d_model, self.n_heads, features) if self.masks else None,
        )

    def build_criterion(self) -> SetCriterion:
        """Build matcher and criterion."""
        weights = {"loss_mask": self.mask_loss_coef, "loss_dice": self.dice_loss_coef}
        return self.criterion.build(mask_weights=weights if self.masks else None)

    def build_postprocess(self, *, mask_threshold: float | None = None) -> SigmoidPostProcess:
        """Build the post-processing; `mask_threshold` is passed on to it."""
        return SigmoidPostProcess(top_k=self.top_k, mask_threshold=mask_threshold)

    def _encoder_layer(self) -> DeformableEncoderLayer:
        sizes = (self.d_model, self.num_feature_levels, self.n_heads, self.enc_n_points)
        attention = MSDeformAttn(*sizes, method=self.enc_method)
        return DeformableEncoderLayer(attention, self._feed_forward(), dropout=self.dropout)

    def _decoder_layer(self) -> DeformableDecoderLayer:
        self_attn = nn.MultiheadAttention(self.d_model, self.n_heads, dropout=self.dropout, batch_first=True)
        sizes = (self.d_model, self.num_feature_levels, self.n_heads, self.dec_n_points)
        cross_attn = MSDeformAttn(*sizes, method=self.dec_method)
        return DeformableDecoderLayer(self_attn, cross_attn, self._feed_forward(), dropout=self.dropout)

    def _feed_forward(self) -> FeedForward:
        return FeedForward(self.d_model, self.d_ffn, dropout=self.dropout)

    def _decoder(self, box_heads: Iterable[nn.Module]) -> DeformableDecoder:
        return DeformableDecoder(
            [self._decoder_layer() for _ in range(self.num_decoder_layers)],
            box_heads,
            position=AnchorPosition(self.d_model, has_scale=self.query_scale) if self.anchor_queries else None,
            norm=nn.LayerNorm(self.d_model) if self.decoder_norm else None,
            with_box_refine=self.with_box_refine,
            look_forward_twice=self.look_forward_twice,
            eps=self.inverse_sigmoid_eps,
        )

    def _queries(self) -> LearnedQueries | AnchorQueries | ProposalQueries:
        has_indicator = isinstance(self.denoising, DenoisingConfig)
        if not self.two_stage:
            if self.anchor_queries:
                return AnchorQueries(self.num_queries, self.d_model, has_indicator=has_indicator)
            return LearnedQueries(self.num_queries, self.d_model)
        scores, boxes = class_head(self.d_model, self.num_classes), box_head(self.d_model)
        if not self.anchor_queries:
            return ProposalQueries(self.num_queries, self.d_model, scores, boxes)
        content = nn.Embedding(self.num_queries, self.d_model - has_indicator)
        nn.init.xavier_uniform_(content.weight)
        return ProposalQueries(self.num_queries, self.d_model, scores, boxes, content=content, class_agnostic=False)
