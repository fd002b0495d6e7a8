"""Whether Numba can compile the CPU kernels here, found out once, at the first call that needs them."""

import threading
import warnings

import torch

# Raised by imports of Numba and llvmlite if they are missing, broken, or built for another NumPy, and by compilation if
# their interfaces have changed.
_NOT_USABLE = (ImportError, OSError, AttributeError, TypeError, ValueError, RuntimeError, SystemError)

_lock = threading.Lock()
# Empty until it is known; then one item: the reason why Numba is not usable, or None.
_found: list[str | None] = []


def is_usable(channels: int, dtype: torch.dtype) -> bool:
    """Return whether Numba compiles the kernels. The first call compiles those of its arguments, and warns on failure.

    Failures after that are errors, and raised.
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
    """Return why the kernels cannot be compiled, or None if they can."""
    try:
        # Imported here, because numba takes longer to import than the whole of this library.
        from numba.core.errors import NumbaError

        from deformdetr.kernels._numba._kernels import compile_backward, compile_forward
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
