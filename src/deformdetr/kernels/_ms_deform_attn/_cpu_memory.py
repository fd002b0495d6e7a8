"""Memory for large results."""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Results of at least this many bytes hold whole pages of 2 MiB wherever they begin.
LARGE = 2**22


def empty_on_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor on the CPU, PyTorch's own; a large one on large pages, where the system has them.

    Linux takes several times as long to hand out memory in pages of 4 KiB as it takes to fill it, and a fraction of
    that in pages of 2 MiB.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    size = tensor.numel() * dtype.itemsize
    advise = _advise() if size >= LARGE else None
    if advise is not None:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        # A system that was built without large pages refuses, which changes nothing.
        advise(first, end - first, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Find the function of the C library that advises the system, or None where there are no large pages to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    return advise
