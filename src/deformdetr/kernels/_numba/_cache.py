"""Compilation of kernels, with Numba's cache on disk.

Numba finds compiled code by the name of a function, and by an index of the code stored under that name. Two processes
that add to one index at once can leave it with the code of one under the key of the other. So every kernel gets a name
of its own, a digest of all that its code depends on: processes that write the same file write the same code. Numba
replaces whole files: in `__pycache__` beside the sources, in the user's cache, or in `NUMBA_CACHE_DIR`.
"""

import hashlib
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
import torch
from llvmlite import binding
from numba import cfunc

from deformdetr.kernels import _levels
from deformdetr.kernels._numba import _job, _vectors

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
# Raised if nothing can be written, a disk is full, the processor is unknown, sources are missing, or files are damaged:
# unpickling a damaged file raises almost anything.
_CACHE_FAILURES = (
    OSError, RuntimeError, EOFError, pickle.PickleError,
    AttributeError, ImportError, LookupError, TypeError, ValueError,
)  # fmt: skip


def compile_kernel(function: Callable[..., None], signature: Any, channels: int, dtype: torch.dtype) -> Any:
    """Compile a kernel, or load it from the cache."""
    name = function.__qualname__
    try:
        function.__qualname__ = f"{function.__name__}_{_digest(function, channels, dtype)}"
        return cfunc(signature, cache=True, **_OPTIONS)(function)
    except _CACHE_FAILURES:
        function.__qualname__ = name
        return cfunc(signature, **_OPTIONS)(function)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in torch: kernels can take the name as a constant, but not the dtype."""
    return str(dtype).removeprefix("torch.")


def _digest(function: Callable[..., None], channels: int, dtype: torch.dtype) -> str:
    """Return a digest of all that the code of a kernel depends on."""
    sources = [inspect.getsource(module) for module in (sys.modules[function.__module__], _vectors, _job, _levels)]
    config: Any = numba.config
    processor = (
        binding.get_process_triple(),
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
        config.CPU_NAME,
        config.CPU_FEATURES,
        config.OPT,
    )
    parts = (sources, _OPTIONS, processor, numba.__version__, llvmlite.__version__, channels, name_of(dtype))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
