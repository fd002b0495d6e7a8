"""Group norms of maps so small that a group has a single value."""

import torch
from torch import Tensor, nn


def normalize_any_size(module: nn.Module, features: Tensor, *, channels_per_group: int, stride: int = 1) -> Tensor:
    """Return the output of a module that ends in a group norm, also if its groups have a single value each.

    PyTorch normalizes single values, to the bias, unless the batch has one image. That case is computed in a batch of
    two, so that results do not depend on the size of the batch.

    Args:
        module: The module.
        features: Its input, of shape (batch, channels, height, width).
        channels_per_group: Channels of a group of the norm.
        stride: Pixels of the input per pixel that the norm gets, along each axis.
    """
    # Compilers and exporters would turn these comparisons into limits of variable sizes.
    may_be_single = channels_per_group == 1 and not torch.compiler.is_compiling()
    is_single = may_be_single and len(features) == 1 and max(features.shape[2:]) <= stride
    normalized: Tensor = module(features.expand(2, -1, -1, -1))[:1] if is_single else module(features)
    return normalized
