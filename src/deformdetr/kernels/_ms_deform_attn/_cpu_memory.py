"""Memory for large results."""

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

# About from here on, the C library takes memory from the system every time, and the system gives it page by page.
LARGE = 32 * 2**20


def empty_on_large_pages(like: Tensor) -> Tensor:
    """Allocate a contiguous tensor of that shape and dtype; a large one on large pages, where the system has them.

    Linux takes several times as long to hand out memory in pages of 4 KiB as it takes to fill it, and a fraction of
    that in pages of 2 MiB.
    """
    tensor = torch.empty_like(like, memory_format=torch.contiguous_format)
    size = tensor.numel() * tensor.element_size()
    advise = _find_advice() if size >= LARGE else None
    if advise is not None:
        skipped = -tensor.data_ptr() % mmap.PAGESIZE
        # Advice that is not taken changes nothing, so nobody looks at the answer.
        advise(tensor.data_ptr() + skipped, (size - skipped) // mmap.PAGESIZE * mmap.PAGESIZE)
    return tensor


@functools.cache
def _find_advice() -> Callable[[int, int], object] | None:
    """Find the function that asks for large pages from an address on, which Linux alone has."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, size: madvise(address, size, mmap.MADV_HUGEPAGE)
