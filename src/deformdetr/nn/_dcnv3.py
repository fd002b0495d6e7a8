"""Deformable convolution version 3, which is deformable attention around every pixel of one map."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr._dtypes import at_least_float32
from deformdetr._grids import level_size, pixel_indices
from deformdetr.kernels import fused_ms_deform_attn
from deformdetr.kernels._layers import apply_linear, split_channels


class DCNv3(nn.Module):
    """Sum features at the moved taps of a kernel around every pixel, with weights from a softmax over the taps.

    Offsets and weights come from a depthwise convolution of the input. A tap has no matrix of its own: projections
    before and after the sum mix the channels. The sum is the operator of `MSDeformAttn` on one level, with a group of
    channels as a head and a tap as a point. Constructor, call, initialization and parameter names are those of the
    original layer.

    Args:
        channels: Channels in and out; a multiple of `group`.
        kernel_size: Side of the kernel.
        dw_kernel_size: Side of the depthwise convolution's kernel; `kernel_size` by default.
        stride: Pixels of the input between neighboring outputs.
        pad: Pixels by which the kernel may reach over each edge of the input, where features are zero.
        dilation: Pixels of the input between neighboring taps, before their offsets.
        group: Groups of channels, each with offsets and weights of its own.
        offset_scale: Factor of the taps' positions and their offsets.
        act_layer: Activation after the depthwise convolution.
        norm_layer: Its norm, LayerNorm or BatchNorm.
        center_feature_scale: Whether each group mixes in the projected feature of the pixel itself, by a predicted
            share.
        remove_center: Whether the kernel has no tap at its center.

    Raises:
        ValueError: If a count is not positive, `channels` is not a multiple of `group`, `remove_center` is used with an
            even kernel or one of a single tap, the depthwise convolution cannot have the kernel's centers,
            `center_feature_scale` is used with outputs at other places than the inputs, or a layer's name is unknown.

    References:
        Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions", CVPR
        2023, section 3.1 and equation 2.

    Examples:
        >>> import torch
        >>> DCNv3(channels=32, group=4)(torch.rand(1, 8, 12, 32)).shape
        torch.Size([1, 8, 12, 32])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        *,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: Literal["GELU", "ReLU", "SiLU"] = "GELU",
        norm_layer: Literal["LN", "BN"] = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__()
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        if min(channels, kernel_size, dw_kernel_size, stride, dilation, group) < 1:
            raise ValueError(
                "channels, kernel_size, dw_kernel_size, stride, dilation and group must be positive, got "
                f"{channels}, {kernel_size}, {dw_kernel_size}, {stride}, {dilation} and {group}"
            )
        if channels % group:
            raise ValueError(f"channels ({channels}) must be divisible by group ({group})")
        if remove_center and (kernel_size == 1 or kernel_size % 2 == 0):
            raise ValueError(f"remove_center needs an odd kernel_size above 1, got {kernel_size}")
        reach = dilation * (kernel_size - 1)
        if center_feature_scale and (stride != 1 or 2 * pad != reach):
            raise ValueError(
                "center_feature_scale needs one output for every pixel, got "
                f"kernel_size {kernel_size}, stride {stride}, pad {pad} and dilation {dilation}"
            )
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.reach = reach
        self.group = group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.taps: Tensor
        self.register_buffer("taps", _taps(kernel_size, dilation, remove_center=remove_center), persistent=False)
        dw_pad = _same_centers(reach, pad, dw_kernel_size)
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, dw_kernel_size, stride, dw_pad, groups=channels),
            _norm_layer(norm_layer, channels),
            _activation(act_layer),
        )
        self.offset = nn.Linear(channels, group * len(self.taps) * 2)
        self.mask = nn.Linear(channels, group * len(self.taps))
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set offsets to zero and weights to equal shares, and initialize the projections by Xavier's distribution."""
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.offset, self.mask, self.input_proj, self.output_proj):
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch _new_height _new_width channels"]:
        """Return the features at the kernel's places; positions are computed in float32 or wider."""
        height, width = x.shape[1:3]
        value = split_channels(apply_linear(self.input_proj, x), self.group)
        local = self.dw_conv(x.permute(0, 3, 1, 2))
        points = (local.shape[0], local.shape[1] * local.shape[2], self.group, 1, self.taps.shape[0])
        offsets = at_least_float32(apply_linear(self.offset, local)).view(*points, 2)
        logits = apply_linear(self.mask, local).view(points)
        references = self._centers(local.shape[1:3], (height, width), offsets)
        moved = (self.taps + offsets) * self.offset_scale
        out = fused_ms_deform_attn(value.flatten(1, 2), [(height, width)], references, moved, logits)
        out = split_channels(out.view(local.shape), self.group)
        if self.center_feature_scale:
            weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            out = torch.lerp(out, value, F.linear(local, weight, bias).sigmoid()[..., None])
        return apply_linear(self.output_proj, out.flatten(3))

    def _centers(self, outputs: Sequence[int], inputs: tuple[int, int], like: Tensor) -> Tensor:
        """Return the center of the kernel for every output, (1, outputs, 1, 2), as fractions of the input."""
        first = 0.5 + self.reach // 2 - self.pad
        pixels = (pixel_indices(*outputs, device=like.device) - 0.5) * self.stride + first
        return (pixels.to(like.dtype) / level_size(*inputs, like=like).to(like.dtype))[None, :, None]

    def extra_repr(self) -> str:
        """Return the settings that the layers do not show."""
        return (
            f"group={self.group}, stride={self.stride}, pad={self.pad}, taps={self.taps.shape[0]}, "
            f"offset_scale={self.offset_scale}, center_feature_scale={self.center_feature_scale}"
        )


class _ChannelsLast(nn.Module):
    """Move channels from the second axis to the last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def _norm_layer(name: str, channels: int) -> nn.Sequential:
    """Return the norm, with the channels last after it. Its names are those of the original."""
    if name == "LN":
        return nn.Sequential(_ChannelsLast(), nn.LayerNorm(channels, eps=1e-6))
    if name == "BN":
        return nn.Sequential(nn.BatchNorm2d(channels), _ChannelsLast())
    raise ValueError(f"norm_layer must be LN or BN, got {name!r}")


def _activation(name: str) -> nn.Module:
    activations: dict[str, Callable[[], nn.Module]] = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}
    if name not in activations:
        raise ValueError(f"act_layer must be one of {', '.join(activations)}; got {name!r}")
    return activations[name]()


def _same_centers(reach: int, pad: int, dw_kernel_size: int) -> int:
    """Return the padding with which the depthwise kernel has the centers of the deformable one."""
    excess = dw_kernel_size - 1 - reach
    if excess % 2 or pad + excess // 2 < 0:
        raise ValueError(
            f"a depthwise kernel of dw_kernel_size {dw_kernel_size} cannot have the centers of a kernel that is "
            f"{reach + 1} pixels wide, with pad {pad}"
        )
    return pad + excess // 2


def _taps(kernel_size: int, dilation: int, *, remove_center: bool) -> Int[Tensor, "taps 2"]:
    """Return the positions (x, y) of the taps around the kernel's center, in pixels, column by column."""
    steps = torch.arange(kernel_size) * dilation - dilation * (kernel_size - 1) // 2
    taps = torch.cartesian_prod(steps, steps)
    return taps[(taps != 0).any(-1)] if remove_center else taps
