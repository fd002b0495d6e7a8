"""Convolutions that sample where they have learned to."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.nn._backbone import torchvision_ops


class DeformConv2d(nn.Module):
    """A convolution whose taps are moved, and in version 2 weighted, by what another convolution predicts.

    `conv_offset` predicts for every tap its offset (y, x) in pixels of the input and, in version 2, after all offsets,
    the logit of its weight. It starts from zero, as published: version 1 is a plain convolution then, and version 2
    one of half the size, because the sigmoid of zero is a half. The published training gives `conv_offset` the learning
    rate of the other layers in version 1 and a tenth of it in version 2. Parameters are named as in mmcv.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: (height, width) of the kernel, or one number for both; so are the following three.
        version: 1 moves the taps; 2 weighs them too, each by a number from 0 to 1.
        stride: Pixels of the input from one output to the next.
        padding: Zeros around the input.
        dilation: Pixels of the input from one tap to the next, before they are moved.
        groups: Groups of channels that are convolved apart.
        offset_groups: Groups of input channels that have their own offsets and weights.
        bias: Whether the output has a learned bias.

    Raises:
        ValueError: If the version is unknown, or channels are not divisible by their groups.

    References:
        Dai et al., "Deformable Convolutional Networks", ICCV 2017, for version 1; Zhu et al., "Deformable ConvNets v2:
        More Deformable, Better Results", CVPR 2019, section 3.2, for version 2.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        version: Literal[1, 2] = 2,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {version}")
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(f"in_channels ({in_channels}) must be divisible by offset_groups ({offset_groups})")
        self.version = version
        self.offset_groups = offset_groups
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.weight = plain.get_parameter("weight")
        self.bias = plain.get_parameter("bias") if bias else None
        taps = offset_groups * self.weight[0, 0].numel()
        numbers = 2 * taps if version == 1 else 3 * taps
        self.conv_offset = nn.Conv2d(in_channels, numbers, kernel_size, stride, padding, dilation)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "batch in_channels _height _width"]
    ) -> Float[Tensor, "batch out_channels _new_height _new_width"]:
        """Convolve; the sampling runs in float32 or better, whatever the precision of the rest."""
        predicted = self.conv_offset(x)
        taps = at_least_float32(predicted)
        n_offsets = 2 * self.offset_groups * self.weight[0, 0].numel()
        out: Tensor = torchvision_ops().deform_conv2d(
            at_least_float32(x),
            taps[:, :n_offsets],
            at_least_float32(self.weight),
            None if self.bias is None else at_least_float32(self.bias),
            stride=self.conv_offset.stride,
            padding=self.conv_offset.padding,
            dilation=self.conv_offset.dilation,
            mask=taps[:, n_offsets:].sigmoid() if self.version == 2 else None,
        )
        return out.to(predicted.dtype)

    def extra_repr(self) -> str:
        """Name what `conv_offset` does not show."""
        channels, rest = self.weight.shape[:2]
        return (
            f"out_channels={channels}, version={self.version}, groups={self.conv_offset.in_channels // rest}, "
            f"offset_groups={self.offset_groups}, bias={self.bias is not None}"
        )
