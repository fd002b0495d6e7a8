"""Memory for large results."""

import contextlib
import math
import mmap
import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

# From here on, memory is taken from the system. So does the C library, unless it has some left, but page by page.
LARGE = 2**20
# So much is kept for results to come.
MOST_KEPT = 256 * 2**20

_lock = threading.Lock()
_kept: list[mmap.mmap] = []


def empty_on_large_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate a tensor; a large one on large pages, where the system has them.

    Linux takes several times as long to hand out memory in pages of 4 KiB as it takes to fill it, and a fraction of
    that in pages of 2 MiB. The memory of the last large results, once no tensor is left of them, serves others of their
    size.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(_take(size), dtype=dtype).view(*shape)


def _take(size: int) -> mmap.mmap:
    """Give memory that lives as long as what is made of it."""
    with _lock:
        # By index, because who iterates refers to what is found.
        fit = (at for at in range(len(_kept)) if len(_kept[at]) == size and _references(_kept, at) == _UNUSED)
        found = next(fit, None)
        memory = _map(size) if found is None else _kept.pop(found)
        _kept.append(memory)
        while sum(map(len, _kept)) > MOST_KEPT:
            del _kept[0]
        return memory


def _map(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A system that was built without large pages refuses to be asked for them.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _references(objects: Sequence[object], index: int) -> int:
    """Count who refers to one of them."""
    return sys.getrefcount(objects[index])


# Versions of Python count differently.
_UNUSED = _references([object()], 0)
