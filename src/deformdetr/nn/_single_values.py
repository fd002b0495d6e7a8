"""Group norms of maps so small that a group has a single value."""

from torch import Tensor, nn


def normalize_any_size(module: nn.Module, features: Tensor, *, values_per_group: int) -> Tensor:
    """Return the output of a module that ends in a group norm, also if its groups have a single value each.

    PyTorch normalizes single values, to the bias, unless the batch has one image. That case is computed in a batch of
    two, so that results do not depend on the size of the batch.

    Args:
        module: The module.
        features: Its input, of shape (batch, channels, height, width).
        values_per_group: Channels of a group, times height and width of the map that the norm gets.
    """
    if values_per_group > 1 or len(features) != 1:
        return module(features)  # type: ignore[no-any-return]
    return module(features.expand(2, -1, -1, -1))[:1]  # type: ignore[no-any-return]
