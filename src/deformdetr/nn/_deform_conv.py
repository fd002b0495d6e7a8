"""Deformable convolutions."""

from types import ModuleType
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32


class DeformConv2d(nn.Module):
    """A convolution whose taps have predicted offsets and, in version 2, predicted weights.

    Another convolution, `conv_offset`, predicts the offset (y, x) of every tap in pixels of the input. In version 2 it
    also predicts, after all offsets, the logit of every tap's weight. It is initialized to zero, as published. Version
    1 then equals a plain convolution, and version 2 half of one, because the sigmoid of zero is 0.5. The published
    training uses the same learning rate for `conv_offset` as for other layers in version 1, and a tenth in version 2.
    Parameters are named as in mmcv.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: (height, width) of the kernel, or one number for both; so are the following three.
        version: 1 for offsets alone, 2 for offsets and weights between 0 and 1.
        stride: Pixels of the input between neighboring outputs.
        padding: Zeros around the input.
        dilation: Pixels of the input between neighboring taps, before their offsets.
        groups: Groups of channels that are convolved separately.
        offset_groups: Groups of input channels with offsets and weights of their own.
        bias: Whether the output has a learned bias.

    Raises:
        ValueError: If the version is unknown, or channels are not divisible by their groups.

    References:
        Dai et al., "Deformable Convolutional Networks", ICCV 2017, for version 1; Zhu et al., "Deformable ConvNets v2:
        More Deformable, Better Results", CVPR 2019, section 3.2, for version 2.

    Examples:
        >>> import torch
        >>> DeformConv2d(8, 16, kernel_size=3, padding=1)(torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 16, 5, 7])
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
        """Return the convolved input, in its dtype; sampling runs in float32 or wider."""
        predicted = self.conv_offset(x)
        taps = at_least_float32(predicted)
        n_offsets = 2 * self.offset_groups * self.weight[0, 0].numel()
        out: Tensor = _torchvision_ops().deform_conv2d(
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
        """Return the settings that `conv_offset` does not show."""
        channels, rest = self.weight.shape[:2]
        return (
            f"out_channels={channels}, version={self.version}, groups={self.conv_offset.in_channels // rest}, "
            f"offset_groups={self.offset_groups}, bias={self.bias is not None}"
        )


def _torchvision_ops() -> ModuleType:
    """Return torchvision's operators, imported at the first call."""
    import torchvision.ops

    ops: ModuleType = torchvision.ops
    return ops
