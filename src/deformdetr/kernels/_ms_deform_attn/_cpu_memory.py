"""Memory for large results."""

import mmap
import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

# From here on, the C library takes memory from the system every time, and the system hands it out page by page.
LARGE = 32 * 2**20
# Up to here, the memory of the last large result is kept for the next one.
MOST_KEPT = 256 * 2**20

_lock = threading.Lock()
_kept: list[mmap.mmap] = []


def empty_on_large_pages(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate a contiguous tensor of that shape; a large one on large pages, where the system has them.

    Linux takes several times as long to hand out memory in pages of 4 KiB as it takes to fill it, and a fraction of
    that in pages of 2 MiB. The memory of the last large result, once no tensor is left of it, serves the next of its
    size.
    """
    size = like.numel() * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.frombuffer(_take(size), dtype=dtype).view(like.shape)


def _take(size: int) -> mmap.mmap:
    """Give memory that lives as long as what is made of it."""
    with _lock:
        if _kept and len(_kept[0]) == size and _references(_kept) == _UNUSED:
            return _kept[0]
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        _kept[:] = [memory] if size <= MOST_KEPT else []
        return memory


def _references(objects: Sequence[object]) -> int:
    """Count who refers to the first one."""
    return sys.getrefcount(objects[0])


# Versions of Python count differently.
_UNUSED = _references([object()])
