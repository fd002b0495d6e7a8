"""Configs of the parts that models have in common: backbones and position encodings."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from deformdetr.config._base import DefaultedConfig, Source, Width
from deformdetr.config._timm import TimmConfig
from deformdetr.nn import (
    ConvBackbone,
    DATBackbone,
    DeformConv2d,
    LearnedPositionEncoding,
    ResNetBackbone,
    SinePositionEncoding,
)


class DeformConvConfig(DefaultedConfig):
    """Deformable convolutions instead of 3x3 convolutions; see `deformdetr.nn.DeformConv2d`.

    Examples:
        >>> ResNetConfig(deform_conv=DeformConvConfig(layers=(4,))).deform_conv.version
        2
    """

    version: Literal[1, 2] = Field(default=2, description="1 offsets the sampling points; 2 modulates them too.")
    layers: tuple[Annotated[int, Field(ge=1, le=4)], ...] = Field(
        default=(2, 3, 4),
        min_length=1,
        description="Stages that have them, 1 to 4; published are 2 to 4 (conv3 to conv5) for version 2, and 4 for 1.",
    )
    offset_groups: Width = Field(default=1, description="Groups of channels with offsets of their own.")


class ResNetConfig(DefaultedConfig):
    """A torchvision ResNet; see `deformdetr.nn.ResNetBackbone`.

    Examples:
        >>> ResNetConfig(name="resnet18").build(out_layers=(3, 4)).channels
        (256, 512)
    """

    kind: Literal["resnet"] = "resnet"
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    dilation: bool = Field(default=False, description="Keep stride 16 in the last stage (DC5).")
    norm: Literal["frozen_batch", "batch", "group"] = "frozen_batch"
    trainable_layers: Annotated[int, Field(ge=0, le=5)] = Field(
        default=3, description="Stages that train, counted from the last; 5 includes the stem."
    )
    weights: Source | None = Field(
        default=None,
        description="None: random; DEFAULT: torchvision's ImageNet weights; otherwise a state dict: a path, a URL or a "
        "name on the Hugging Face Hub.",
    )
    deform_conv: DeformConvConfig | None = Field(
        default=None, description="Deformable convolutions in the bottlenecks; weights of plain ones fit."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dilation and self.name in ("resnet18", "resnet34"):
            raise ValueError(f"{self.name} has no dilated form; dilation needs resnet50 or resnet101")
        if self.deform_conv is not None and self.name in ("resnet18", "resnet34"):
            raise ValueError(f"{self.name} has no bottlenecks; deform_conv needs resnet50 or resnet101")
        if self.weights is not None and self.norm == "group":
            raise ValueError(f"weights ({self.weights}) are of batch-norm networks and do not fit norm='group'")
        return self

    def build(self, out_layers: tuple[int, ...]) -> ResNetBackbone:
        """Build the backbone, which returns the features of the given stages, of 1 to 4."""
        convolutions = {}
        if self.deform_conv is not None:
            deform_conv = partial(
                DeformConv2d, version=self.deform_conv.version, offset_groups=self.deform_conv.offset_groups
            )
            convolutions = dict.fromkeys(self.deform_conv.layers, deform_conv)
        return ResNetBackbone(
            self.name,
            out_layers=out_layers,
            norm=self.norm,
            dilation=self.dilation,
            trainable_layers=self.trainable_layers,
            weights=self.weights,
            convolutions=convolutions,
        )


class ConvBackboneConfig(DefaultedConfig):
    """A small residual network for demonstrations and tests; see `deformdetr.nn.ConvBackbone`.

    Examples:
        >>> ConvBackboneConfig().build(out_layers=(3, 4)).channels
        (128, 256)
    """

    kind: Literal["conv"] = "conv"
    channels: tuple[Width, Width, Width, Width] = (32, 64, 128, 256)
    dilation: bool = Field(default=False, description="Keep stride 16 in the last stage (DC5).")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(width % 8 for width in self.channels):
            raise ValueError(f"channels must be multiples of 8, got {self.channels}")
        return self

    def build(self, out_layers: tuple[int, ...]) -> ConvBackbone:
        """Build the backbone, which returns the features of the given stages, of 1 to 4."""
        return ConvBackbone(self.channels, out_layers=out_layers, dilation=self.dilation)


class DATConfig(DefaultedConfig):
    """A Vision Transformer with Deformable Attention as in CVPR 2022, not DAT++; see `deformdetr.nn.DATBackbone`.

    Examples:
        >>> DATConfig(name="dat_tiny").build(out_layers=(3, 4)).channels
        (384, 768)
    """

    kind: Literal["dat"] = "dat"
    name: Literal["dat_tiny", "dat_small", "dat_base"] = "dat_tiny"
    image_size: Annotated[int, Field(ge=32, multiple_of=32)] = Field(
        default=224,
        description="Side of the images, in pixels, that the weights are made for; images may have any size.",
    )
    window_size: Annotated[int, Field(ge=2)] = Field(
        default=7, description="Side of windows; 7 for weights of 224 pixels, and 12 for 384."
    )
    drop_path: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Probability of leaving out a branch of the last block in training."
    )
    trainable_layers: Annotated[int, Field(ge=0, le=5)] = Field(
        default=5, description="Stages that train, counted from the last; 5 includes the stem."
    )
    weights: Source | None = Field(
        default=None,
        description="None: random; otherwise a checkpoint of the original implementation: a path, a URL or a name on "
        "the Hugging Face Hub.",
    )

    def build(self, out_layers: tuple[int, ...]) -> DATBackbone:
        """Build the backbone, which returns the features of the given stages, of 1 to 4."""
        return DATBackbone(out_layers=out_layers, **self.model_dump(exclude={"kind"}))


class SinePositionConfig(DefaultedConfig):
    """Fixed position encodings; see `deformdetr.nn.SinePositionEncoding`.

    Examples:
        >>> SinePositionConfig(offset=0.0).build(d_model=64).offset
        0.0
    """

    kind: Literal["sine"] = "sine"
    temperature: PositiveFloat = 10000.0
    normalize: bool = True
    offset: float = Field(default=-0.5, description="-0.5: pixel centers, as in Deformable DETR; 0: as in DETR.")

    def build(self, d_model: int) -> SinePositionEncoding:
        """Build the encoding."""
        return SinePositionEncoding(d_model, temperature=self.temperature, normalize=self.normalize, offset=self.offset)


class LearnedPositionConfig(DefaultedConfig):
    """Learned position encodings; see `deformdetr.nn.LearnedPositionEncoding`.

    Examples:
        >>> sum(parameter.numel() for parameter in LearnedPositionConfig(max_size=40).build(d_model=64).parameters())
        2560
    """

    kind: Literal["learned"] = "learned"
    max_size: Width = Field(default=50, description="Largest height and width of a feature map, in pixels.")

    def build(self, d_model: int) -> LearnedPositionEncoding:
        """Build the encoding."""
        return LearnedPositionEncoding(d_model, max_size=self.max_size)


BackboneConfig = Annotated[ResNetConfig | ConvBackboneConfig | DATConfig | TimmConfig, Field(discriminator="kind")]
PositionConfig = Annotated[SinePositionConfig | LearnedPositionConfig, Field(discriminator="kind")]


def check_d_model(d_model: int, divisors: Mapping[str, int]) -> None:
    """Raise `ValueError` unless `d_model` is divisible by all divisors, given by name, and by 4."""
    for name, divisor in divisors.items():
        if d_model % divisor:
            raise ValueError(f"d_model ({d_model}) must be divisible by {name} ({divisor})")
    # Position encodings have a sine and a cosine for each of x and y.
    if d_model % 4:
        raise ValueError(f"d_model ({d_model}) must be divisible by 4")
