"""Large inputs of layers that act on every position alone, cut into pieces."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

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
    if tensors[0].device.type != "cpu" or not _can_be_cut(shape[0] * shape[1]):
        return function(*tensors)
    pieces = zip(*(torch.split(tensor.flatten(0, 1)[None], _rows_at_once(), dim=1) for tensor in tensors), strict=True)
    return torch.cat([function(*piece) for piece in pieces], dim=1).view(shape)


def _can_be_cut(rows: int) -> bool:
    """Tell whether there are more rows than one piece has; for compilers, so many more as they can unroll."""
    at_once: int = _rows_at_once()
    if not torch.compiler.is_compiling():
        return rows > at_once
    # Imported here, because it needs sympy, which compilers have loaded.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return has_static_value(rows) and at_once < rows <= _MOST_UNROLLED * at_once


# A compiler asks once, since it cannot trace this.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _rows_at_once() -> int:
    """Give the size of a piece, or 0 if nothing may be cut: exported programs run elsewhere."""
    return 0 if torch.compiler.is_exporting() else _ROWS_PER_THREAD * torch.get_num_threads()
