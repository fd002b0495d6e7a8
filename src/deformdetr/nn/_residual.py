"""Residual blocks whose frozen norms are folded into the convolutions before them."""

from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr import _compat


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics, scale and shift, named as in `nn.BatchNorm2d`.

    Args:
        num_features: Channels.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_load_state_dict_pre_hook(_drop_count)  # type: ignore[no-untyped-call]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Return every channel scaled and shifted."""
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def scale_and_shift(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Return the factor of every channel, and the number added to the product."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def extra_repr(self) -> str:
        """Return the settings, since there are no parameters to show."""
        return f"{len(self.weight)}, eps={self.eps}"


def _drop_count(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    # `nn.BatchNorm2d` counts batches, which a frozen norm does not use.
    state_dict.pop(f"{prefix}num_batches_tracked", None)


class ResidualBlock(nn.Module):
    """One of torchvision's residual blocks, with its norms folded where they are frozen.

    Args:
        block: A `BasicBlock` or a `Bottleneck`, whose layers and their names the new block keeps.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2, self.bn2 = block.conv2, block.bn2
        self.is_bottleneck = hasattr(block, "conv3")
        if self.is_bottleneck:
            self.conv3, self.bn3 = block.conv3, block.bn3
        self.relu = block.relu
        self.downsample = block.downsample

    def forward(self, x: Float[Tensor, "batch _channels _height _width"]) -> Float[Tensor, "batch _d_out _h _w"]:
        """Return the sum of the convolved input and the input or its projection, after ReLU."""
        out = self.relu(convolve_and_normalize(x, self.conv1, self.bn1))
        out = convolve_and_normalize(out, self.conv2, self.bn2)
        if self.is_bottleneck:
            out = convolve_and_normalize(self.relu(out), self.conv3, self.bn3)
        out += x if self.downsample is None else convolve_and_normalize(x, *self.downsample)
        result: Tensor = self.relu(out)
        return result


def convolve_and_normalize(
    x: Float[Tensor, "batch _channels _height _width"], conv: nn.Module, norm: nn.Module
) -> Float[Tensor, "batch _d_out _h _w"]:
    """Return `norm(conv(x))`, with a frozen norm folded into the kernel.

    That saves a pass over the feature map: about 50 ms of 1.2 s for a Deformable DETR with ResNet-50, on an Intel Xeon.
    """
    if not (_is_bare(conv) and _compat.is_plain(norm, FrozenBatchNorm2d)):
        out: Tensor = norm(conv(x))
        return out
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _is_bare(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a layer is an unchanged convolution without a bias, with numeric padding by zeros."""
    return (
        _compat.is_plain(conv, nn.Conv2d)
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
