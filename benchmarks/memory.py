"""How much memory a call needs at its worst, beyond what is allocated before it."""

import os
import sys
import warnings
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from deformdetr.kernels._numba import _large_pages


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Give the largest sum of allocations that live at once during the call, its results included."""
    return _peak_on_gpu(call) if device == "cuda" else _peak_on_host(call)


def _peak_on_gpu(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_host(call: Callable[[], object]) -> int:
    """Follow every allocation of PyTorch's allocator, those inside of its operations included.

    It is made to serve our large results as well, which otherwise have memory that it does not see.
    """
    # The profiler's library complains on standard error where there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with (
        patch.object(_large_pages, "LARGE", sys.maxsize),
        warnings.catch_warnings(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        # That memory is freed which was allocated before.
        warnings.simplefilter("ignore")
        call()
    if profiler.profiler is None or profiler.profiler.kineto_results is None:
        raise RuntimeError("PyTorch's profiler gave no results")
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak
