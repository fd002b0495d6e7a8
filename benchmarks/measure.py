"""Clocks, turns and peak memory."""

import gc
import itertools
import json
import math
import os
import random
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils import benchmark

from benchmarks.cases import Dtype

Call = Callable[[], object]

# One sample lasts at least this long, so that the clock's resolution does not matter.
MIN_SECONDS = 0.02
CALLS_PER_GRAPH = 20
# Calls estimated to take this many seconds are not run again only to time them.
SLOW = 1.0
# Rows and columns of the square matrices whose products show what a device can do.
PRODUCT_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
PRODUCT_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


class WallClock:
    """Time as the caller sees it, including the work that the call queues on the GPU.

    Args:
        call: A call that has run before, so that no compilation is timed.
        estimate: Seconds of a call, roughly.
        name: `wall`, or `processor` for the processor time of this process.

    Attributes:
        calls: Number of calls that a sample is the mean of.
        seconds: Expected duration of a sample.
    """

    def __init__(self, call: Call, *, estimate: float = 0.0, name: Literal["wall", "processor"] = "wall") -> None:
        self.name = name
        # PyTorch's timer waits for the GPU, if there is one, before it reads the clock.
        self._timer = timeit.Timer(call, timer=benchmark.timer if name == "wall" else time.process_time)
        self.calls = 1
        seconds = estimate if estimate > SLOW else self.sample()
        self.calls = math.ceil(MIN_SECONDS / seconds)
        self.seconds = seconds * self.calls

    def sample(self) -> float:
        return self._timer.timeit(self.calls) / self.calls


class DeviceClock:
    """Time on the GPU of calls that a CUDA graph replays, because Python may dispatch short calls more slowly.

    All work runs in the stream that is current at construction, as capturing requires. The attributes are those of
    `WallClock`.

    Args:
        call: A call that has run before, so that no compilation is captured.
    """

    name = "cuda_graph"

    def __init__(self, call: Call) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            for _ in range(CALLS_PER_GRAPH):
                call()
        self.calls = CALLS_PER_GRAPH
        # The first replay is slower.
        self.sample()
        seconds = self.sample()
        self.calls *= math.ceil(MIN_SECONDS / (seconds * self.calls))
        self.seconds = seconds * self.calls

    def sample(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self.calls // CALLS_PER_GRAPH):
            self._graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / self.calls


Clock: TypeAlias = WallClock | DeviceClock


def interleave(samples: Mapping[str, Callable[[], float]], rounds: Mapping[str, int]) -> dict[str, list[float]]:
    """Take samples in turns; contenders with fewer rounds take part in the first ones, those without a number in all.

    Every round has an order of its own: in a fixed one, each contender would always find the caches and the memory that
    the same other one left.
    """
    taken: dict[str, list[float]] = {name: [] for name in samples}
    most = max(rounds.values())
    gc.collect()
    gc.disable()
    try:
        for index in range(most):
            for name in random.sample(list(samples), len(samples)):
                if index < rounds.get(name, most):
                    taken[name].append(samples[name]())
    finally:
        gc.enable()
    return taken


def matrix_products(device: str) -> dict[str, Callable[[], float]]:
    """Return functions that compute a large matrix product, and return its floating-point operations per second.

    Names start with the dtype. Each product comes twice, as a linear layer and as a 1x1 convolution: on CPUs, PyTorch
    computes them by different libraries.
    """
    products: dict[str, Callable[[], float]] = {}
    for dtype, size in itertools.product(PRODUCT_DTYPES, PRODUCT_SIZES[device]):
        a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
        image, kernel = a.view(1, size, 32, size // 32), b.view(size, size, 1, 1)
        for call in (partial(F.linear, a, b), partial(F.conv2d, image, kernel)):
            call()
            clock = WallClock(call)
            products[f"{dtype} product {len(products)}"] = lambda clock=clock, size=size: 2 * size**3 / clock.sample()
    return products


def peak_bytes(call: Call, device: str) -> int:
    """Return the largest sum of allocations alive at once during the call, beyond what was allocated before."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Without a GPU, the profiler's library complains on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        # It warns of frees of memory that was allocated earlier.
        warnings.simplefilter("ignore")
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    # Every allocation and every free of PyTorch's allocator, those inside of operations included.
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak
