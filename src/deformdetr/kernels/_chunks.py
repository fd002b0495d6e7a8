"""Functions of single rows, applied to as many rows at a time as fit the caches."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from deformdetr._tracing import is_tracing
from deformdetr.kernels._layer_kernels import is_selected

# Rows of about 1,000 channels that fit the cache of one core. Beyond 32 MB, glibc maps every new tensor into memory
# again, which costs more than computing it.
_ROWS_PER_THREAD = 512
# Each chunk is compiled on its own.
_MAX_COMPILED_CHUNKS = 32


def apply_in_chunks(
    function: Callable[..., Tensor], *tensors: Float[Tensor, "batch positions channels"]
) -> Float[Tensor, "batch positions channels"]:
    """Return `function(*tensors)`, computed in chunks of positions on CPUs where that is faster.

    Args:
        function: Maps tensors of any batch and number of positions to one, each position independent of the others.
        tensors: Its arguments, of equal batch and positions.
    """
    shape = tensors[0].shape
    size = _chunk_size(shape[0] * shape[1]) if tensors[0].device.type == "cpu" else 0
    if not size:
        return function(*tensors)
    chunks = zip(*(torch.split(tensor.flatten(0, 1)[None], size, dim=1) for tensor in tensors), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks], dim=1).view(shape)


def _chunk_size(rows: int) -> int:
    """Return the number of rows per chunk; 0 for a single chunk, as in a graph that has to serve other sizes too."""
    if is_tracing():
        return 0
    if not torch.compiler.is_compiling():
        size = _ROWS_PER_THREAD * torch.get_num_threads()
        return size if rows > size and is_selected("chunks") else 0
    from deformdetr.kernels import _compiling

    if not (_compiling.is_selected("chunks") and _compiling.has_static_value(rows)):
        return 0
    size = _ROWS_PER_THREAD * _compiling.num_threads()
    return size if size < rows <= _MAX_COMPILED_CHUNKS * size else 0
