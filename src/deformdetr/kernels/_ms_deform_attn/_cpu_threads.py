"""Work shared out among PyTorch's own threads."""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_at_once(kernel: int, job: int, threads: int) -> None:
    """Call the compiled function at one address with the other, on so many threads at once, and wait for all of them.

    PyTorch's threads are those of an OpenMP runtime. Other threads would have to compete with them: they keep their
    processors busy for milliseconds after every operation, waiting for the next.
    """
    if threads == 1:
        _KERNEL(kernel)(job)
    elif parallel := _openmp_parallel():
        parallel(kernel, job, threads, 0)
    else:
        others = [threading.Thread(target=_KERNEL(kernel), args=(job,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        _KERNEL(kernel)(job)
        for thread in others:
            thread.join()


@functools.cache
def _openmp_parallel() -> Callable[..., Any] | None:
    """Find what GCC and Clang call for a parallel region, in the runtime that PyTorch is linked with.

    Its arguments are a function, what to call it with, the number of threads and flags.
    """
    function = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function
