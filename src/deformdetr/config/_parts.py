"""Descriptions of the parts that models choose from: backbones and position encodings."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from deformdetr.config._base import Config
from deformdetr.nn import ConvBackbone, LearnedPositionEncoding, ResNetBackbone, SinePositionEncoding


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
        default=None,
        description="None: random; DEFAULT: torchvision's ImageNet weights; else the path of a state dict.",
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
        return SinePositionEncoding(d_model, temperature=self.temperature, normalize=self.normalize, offset=self.offset)


class LearnedPositionConfig(Config):
    """Learned position encodings; see `deformdetr.nn.LearnedPositionEncoding`."""

    kind: Literal["learned"] = "learned"
    max_size: PositiveInt = Field(default=50, description="Largest height and width of a feature map, in pixels.")

    def build(self, d_model: int) -> LearnedPositionEncoding:
        """Build the encoding."""
        return LearnedPositionEncoding(d_model, max_size=self.max_size)


BackboneConfig = Annotated[ResNetConfig | ConvBackboneConfig, Field(discriminator="kind")]
PositionConfig = Annotated[SinePositionConfig | LearnedPositionConfig, Field(discriminator="kind")]
