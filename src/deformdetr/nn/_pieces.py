"""Large inputs of layers that act on every position alone, cut into pieces."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# Rows of a thousand channels that a core's cache holds; a new tensor of all of them costs more than what fills it.
_ROWS_PER_THREAD = 512


def apply_by_pieces(
    function: Callable[..., Tensor], *tensors: Float[Tensor, "batch positions channels"]
) -> Float[Tensor, "batch positions channels"]:
    """Apply a function of every position alone, on CPUs to a piece of them at a time.

    Args:
        function: Of tensors as these, but with any batch and number of positions, to another one.
        tensors: What it is called with.
    """
    # Asked first, because a compiler cannot trace how many threads there are.
    if torch.compiler.is_compiling() or tensors[0].device.type != "cpu":
        return function(*tensors)
    shape = tensors[0].shape
    rows = _ROWS_PER_THREAD * torch.get_num_threads()
    if shape[0] * shape[1] <= rows:
        return function(*tensors)
    pieces = zip(*(torch.split(tensor.flatten(0, 1)[None], rows, dim=1) for tensor in tensors), strict=True)
    return torch.cat([function(*piece) for piece in pieces], dim=1).view(shape)
