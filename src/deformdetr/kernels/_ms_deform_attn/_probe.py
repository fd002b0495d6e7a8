"""Whether Numba can compile the kernels for CPUs here, which is found out once, when they are first needed."""

import threading
import warnings

import torch

# What is raised by imports of Numba and llvmlite that are missing or broken, or made for another NumPy than is
# installed, and by compilation where their interfaces have changed.
_NOT_USABLE = (ImportError, OSError, AttributeError, TypeError, ValueError, RuntimeError, SystemError)

_lock = threading.Lock()
# One item once it is known: why Numba cannot, or None.
_found: list[str | None] = []


def has_kernels(channels: int, dtype: torch.dtype) -> bool:
    """Return whether Numba compiles the kernels; the first call tries those of its arguments, and warns if it does not.

    What fails after that is a fault and is raised.
    """
    if not _found:
        with _lock:
            if not _found:
                reason = _try(max(1, channels), dtype)
                _found.append(reason)
                if reason is not None:
                    warnings.warn(_describe(reason), RuntimeWarning, stacklevel=2)
    return _found[0] is None


def _try(channels: int, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot be compiled, if they cannot."""
    try:
        # Imported here, because numba takes longer to import than the whole of this library.
        from deformdetr.kernels._ms_deform_attn._numba import NumbaError, compile_backward, compile_forward
    except _NOT_USABLE as error:
        return f"{type(error).__name__}: {error}"
    try:
        compile_forward(channels, dtype)
        compile_backward(channels, dtype)
    except (NumbaError, *_NOT_USABLE) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _describe(reason: str) -> str:
    return (
        "multi-scale deformable attention runs by PyTorch's own operations on this CPU, several times as slow as by "
        f"kernels that Numba compiles, which does not work here ({reason}). `pip install --upgrade numba` installs it "
        "with a NumPy that fits"
    )
