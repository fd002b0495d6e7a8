"""Calls of layers that use a faster CPU kernel where one is selected and nothing can tell the difference.

Layers of this library hold `nn.Linear` and `nn.Dropout` themselves, so that tools find what they hook, adapt, prune,
quantize or replace. A layer that was changed in such a way is called as usual.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformdetr import _compat
from deformdetr._tracing import fixed_size
from deformdetr.kernels import _dropout, _linear
from deformdetr.kernels._layer_kernels import is_selected


def apply_linear(layer: nn.Module, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    """Return `layer(x)`; an unchanged `nn.Linear` may multiply by oneDNN."""
    if _compat.is_plain(layer, nn.Linear) and _linear.uses_onednn(x, layer.weight, layer.bias):
        return _linear.linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def split_channels(x: Float[Tensor, "*batch channels"], parts: int) -> Float[Tensor, "*batch parts channels_of_part"]:
    """Return `x` with its last axis split into equal parts. `view` cannot infer a size where the batch is empty."""
    return x.view(*x.shape[:-1], parts, fixed_size(x.shape[-1]) // parts)


def apply_dropout(layer: nn.Module, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `layer(x)`; an unchanged `nn.Dropout` may draw fewer random bits."""
    if (
        _compat.is_plain(layer, nn.Dropout)
        and layer.training
        and not layer.inplace
        and _dropout.uses_16_bits(x, layer.p)
    ):
        return _dropout.dropout(x, layer.p)
    out: Tensor = layer(x)
    return out


def to_fast_format(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return the images in the memory format whose convolutions are faster; compilers choose it themselves."""
    if images.device.type != "cpu" or torch.compiler.is_compiling() or not is_selected("channels_last"):
        return images
    return images.contiguous(memory_format=torch.channels_last)
