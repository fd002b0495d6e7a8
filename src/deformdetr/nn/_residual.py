"""The blocks of a ResNet, with frozen norms folded into the convolutions before them."""

from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from deformdetr import _compat


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics, scale and shift, in the names that `nn.BatchNorm2d` has for them.

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
        """Scale and shift every channel."""
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])

    def scale_and_shift(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Give what channels are multiplied by, and what is added to them then."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def extra_repr(self) -> str:
        """Name the settings, since there are no parameters to show."""
        return f"{len(self.weight)}, eps={self.eps}"


def _drop_count(norm: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    # Batch norm counts batches, which nothing here depends on.
    state_dict.pop(f"{prefix}num_batches_tracked", None)


class ResidualBlock(nn.Module):
    """The layers of one of torchvision's residual blocks, run faster.

    Args:
        block: A `BasicBlock` or a `Bottleneck`, whose layers this takes over with their names.
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
        """Add what the convolutions make of the input to the input, or to its projection."""
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
    """Apply a convolution and a norm; a frozen norm becomes part of the kernel, which is smaller than feature maps."""
    if not (_is_bare(conv) and _compat.is_plain(norm, FrozenBatchNorm2d)):
        out: Tensor = norm(conv(x))
        return out
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _is_bare(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a convolution does nothing but multiply, on a map with zeros around it."""
    return (
        _compat.is_plain(conv, nn.Conv2d)
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
