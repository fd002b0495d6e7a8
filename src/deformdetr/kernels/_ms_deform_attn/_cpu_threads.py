"""Work shared out among PyTorch's own threads."""

import ctypes
import functools
import threading

from deformdetr import _compat

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


_openmp_parallel = functools.cache(_compat.find_openmp)
