"""Memory for large results."""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A result of at least this many bytes contains whole pages of 2 MiB, wherever it begins.
LARGE = 2**22


def empty_on_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized CPU tensor, on pages of 2 MiB if it is large and the system has them.

    Linux takes several times as long to provide memory in pages of 4 KiB as it takes to fill it, and a fraction of that
    in pages of 2 MiB.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    size = tensor.numel() * dtype.itemsize
    advise = _find_madvise() if size >= LARGE else None
    if advise is not None:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        # Systems built without large pages refuse, and the tensor stays on small ones.
        advise(first, end - first, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _find_madvise() -> Callable[[int, int, int], int] | None:
    """Return the C library's `madvise`, or None if the system has no large pages to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    return advise
