"""Support for `torch.jit.trace`: while it records, sizes are tensors, and comparing them warns."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def is_tracing() -> bool:
    """Return whether `torch.jit.trace` records."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def compares_sizes(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function without warnings about comparisons of sizes, which `torch.jit.trace` does not record.

    Use it for functions whose result does not depend on sizes that may change: checks, and sizes that belong to the
    layer, such as channels.
    """

    @functools.wraps(function)
    def quiet(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not is_tracing():
            return function(*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            return function(*args, **kwargs)

    return quiet


@compares_sizes
def fixed_size(size: int) -> int:
    """Return a size that is the same for all inputs as an int, even while `torch.jit.trace` records."""
    return int(size)


def smaller(count: int, size: int) -> int:
    """Return the smaller of a number and a size. What `torch.jit.trace` records computes it anew for every size."""
    traced: Any = size
    bounded: int = traced.clamp(max=count) if is_tracing() else min(count, size)
    return bounded
