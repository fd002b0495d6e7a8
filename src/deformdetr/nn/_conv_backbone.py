"""A small backbone that needs no torchvision."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr.nn._group_norm import GroupNorm
from deformdetr.nn._stages import ascending_stages, run_stages, strides_of


class ConvBackbone(nn.Module):
    """A small residual network with group norm, for demonstrations and tests, without torchvision.

    Args:
        channels: Channels at strides 4, 8, 16 and 32, each a multiple of 8.
        out_layers: Stages to return, ascending out of 1 to 4.
        dilation: Whether the last stage keeps stride 16 and dilates its second convolution instead (DC5).

    Attributes:
        channels: Channels of each output.
        strides: Stride of each output, in pixels of the image.
        blocks: The stages, each of which can be recomputed in the backward pass.

    Raises:
        ValueError: If a width is not a positive multiple of 8, or the stages are not ascending out of 1 to 4.

    Examples:
        >>> import torch
        >>> backbone = ConvBackbone(channels=(8, 16, 32, 64), out_layers=(3, 4))
        >>> [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 4, 6), (1, 64, 2, 3)]
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        *,
        out_layers: Sequence[int] = (2, 3, 4),
        dilation: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != 4 or any(width < 8 or width % 8 for width in channels):
            raise ValueError(f"channels must be four positive multiples of 8, got {tuple(channels)}")
        self.out_layers = ascending_stages(out_layers)
        stem = nn.Conv2d(3, channels[0], 3, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(stem, _group_norm(channels[0]))
        widths = [channels[0], *channels]
        self.stages = nn.ModuleList(
            _ResidualStage(a, b, keeps_stride=dilation and stage == 4)
            for stage, (a, b) in enumerate(zip(widths, channels, strict=False), start=1)
        )
        self.channels = tuple(channels[layer - 1] for layer in self.out_layers)
        self.strides = strides_of(self.out_layers, dilation=dilation)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _channels _height _width"]]:
        """Return the outputs of the chosen stages, finest first."""
        return run_stages(self.stages, self.stem(images).relu(), self.out_layers)

    @property
    def blocks(self) -> list[nn.Module]:
        """Return the stages, in order."""
        return list(self.stages)


class _ResidualStage(nn.Module):
    """A strided convolution, then a residual one. A stage that keeps its stride dilates the second instead."""

    def __init__(self, d_in: int, d_out: int, *, keeps_stride: bool) -> None:
        super().__init__()
        self.down = nn.Conv2d(d_in, d_out, 3, stride=1 if keeps_stride else 2, padding=1, bias=False)
        self.down_norm = _group_norm(d_out)
        dilation = 2 if keeps_stride else 1
        self.conv = nn.Conv2d(d_out, d_out, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv_norm = _group_norm(d_out)
        for layer in (self.down, self.conv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.down_norm(self.down(x)).relu()
        out: Tensor = (x + self.conv_norm(self.conv(x))).relu()
        return out


def _group_norm(channels: int) -> GroupNorm:
    return GroupNorm(8, channels)
