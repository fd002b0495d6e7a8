"""Large inputs of layers that act on every position alone, cut into pieces."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from deformdetr._tracing import is_tracing

# Rows of a thousand channels that a core's cache holds; a new tensor of all of them costs more than what fills it.
_ROWS_PER_THREAD = 512
# Pieces that a compiler has to compile.
_MOST_UNROLLED = 32


def apply_by_pieces(
    function: Callable[..., Tensor], *tensors: Float[Tensor, "batch positions channels"]
) -> Float[Tensor, "batch positions channels"]:
    """Apply a function of every position alone, on CPUs to a piece of them at a time.

    Args:
        function: Of tensors as these, but with any batch and number of positions, to another one.
        tensors: What it is called with.
    """
    shape = tensors[0].shape
    size = _piece_size(shape[0] * shape[1]) if tensors[0].device.type == "cpu" else 0
    if not size:
        return function(*tensors)
    pieces = zip(*(torch.split(tensor.flatten(0, 1)[None], size, dim=1) for tensor in tensors), strict=True)
    return torch.cat([function(*piece) for piece in pieces], dim=1).view(shape)


def _piece_size(rows: int) -> int:
    """Return the rows of a piece, or 0 where one piece holds all or a graph has to serve other sizes too."""
    if is_tracing():
        return 0
    if not torch.compiler.is_compiling():
        return rows_at_once() if rows > rows_at_once() else 0
    # Imported here, because it needs what compilers have loaded.
    from deformdetr.nn import _compiling

    size: int = _compiling.rows_at_once()
    return size if _compiling.has_static_value(rows) and size < rows <= _MOST_UNROLLED * size else 0


def rows_at_once() -> int:
    """Return how many rows the caches of all threads hold."""
    return _ROWS_PER_THREAD * torch.get_num_threads()
