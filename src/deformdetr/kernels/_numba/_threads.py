"""Running a compiled kernel on PyTorch's own threads."""

import ctypes
import functools
import threading

from deformdetr import _compat

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_on_threads(kernel: int, job: ctypes.Structure, threads: int) -> None:
    """Run the compiled function at address `kernel` on `threads` threads, each with argument `job`; wait for them all.

    PyTorch's threads are those of an OpenMP runtime. After every operation they keep their processors busy for
    milliseconds, waiting for the next one, and other threads would compete with them.
    """
    address = ctypes.addressof(job)
    if threads == 1:
        _KERNEL(kernel)(address)
    elif parallel := _openmp_parallel():
        parallel(kernel, address, threads, 0)
    else:
        others = [threading.Thread(target=_KERNEL(kernel), args=(address,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        _KERNEL(kernel)(address)
        for thread in others:
            thread.join()


_openmp_parallel = functools.cache(_compat.find_openmp)
