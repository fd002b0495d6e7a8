"""Clocks and turns: contenders alternate in one process, so that a machine that slows down slows all of them."""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch.nn import functional as F

from benchmarks.cases import Dtype

Call = Callable[[], object]

# One sample lasts at least this long, so that the clock's resolution does not matter.
MIN_SECONDS = {"cpu": 0.02, "cuda": 0.005}
# Python may dispatch calls shorter than this more slowly than the GPU runs them.
GRAPH_BELOW = 5e-3
CALLS_PER_GRAPH = 20
# Calls estimated to take this many seconds are not run again only to time them.
SLOW = 1.0
# More than the second-level cache of any GPU, and slow enough to fill that the host gets ahead.
FLUSH_BYTES = 2**30
# Rows and columns of the square matrices whose products show what a device can do.
PRODUCT_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


class WallSampler:
    """Time as the caller sees it, including the work that the call queues on the GPU.

    Args:
        call: A call that has run before, so that no compilation is timed.
        estimate: Seconds of a call, roughly.

    Attributes:
        clock: `wall`, or on GPUs `cuda_events` or `cuda_graph`, with `_cold` appended if caches are overwritten.
        calls: Number of calls that a sample is the mean of.
        seconds: Expected duration of a sample.
        note: Why the clock is not the expected one.
    """

    clock = "wall"
    note = ""

    def __init__(self, call: Call, device: str, *, estimate: float = 0.0) -> None:
        self._call = call
        self._device = device
        self.calls = 1
        seconds = estimate if estimate > SLOW else self.sample()
        self.calls = max(1, math.ceil(MIN_SECONDS[device] / seconds))
        self.seconds = seconds * self.calls

    def sample(self) -> float:
        _synchronize(self._device)
        start = time.perf_counter()
        for _ in range(self.calls):
            self._call()
        _synchronize(self._device)
        return (time.perf_counter() - start) / self.calls


class DeviceSampler:
    """Time on the GPU between two events: of calls from Python or, if they are short, of replays of a CUDA graph.

    All work runs in the stream that is current at construction, as capturing requires.

    Args:
        call: A call that has run before, so that no compilation is captured.
        cold: Whether to overwrite the caches before every call.
    """

    def __init__(self, call: Call, *, cold: bool) -> None:
        self._run = call
        self._flush = _flush_buffer() if cold else None
        self.clock, self.note = "cuda_events", ""
        self._calls_per_run = self._runs = 1
        self.sample()
        seconds = self.sample()
        if seconds < GRAPH_BELOW:
            calls = 1 if cold else CALLS_PER_GRAPH
            try:
                self._run = _capture(call, calls).replay
            except RuntimeError as error:
                self.note = f"timed with Python's dispatch, because capturing a CUDA graph failed: {first_line(error)}"
            else:
                self.clock, self._calls_per_run = "cuda_graph", calls
                self.sample()
                seconds = self.sample()
        if cold:
            self.clock += "_cold"
        self._runs = max(1, math.ceil(MIN_SECONDS["cuda"] / (seconds * self._calls_per_run)))
        self.calls = self._runs * self._calls_per_run
        self.seconds = seconds * self.calls

    def sample(self) -> float:
        pairs = []
        timings, runs = (1, self._runs) if self._flush is None else (self._runs, 1)
        for _ in range(timings):
            start, end = _event(), _event()
            if self._flush is not None:
                self._flush.zero_()
            start.record()
            for _ in range(runs):
                self._run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        milliseconds = sum(start.elapsed_time(end) for start, end in pairs)
        return float(milliseconds) / 1e3 / (self._runs * self._calls_per_run)


def interleave(samples: Mapping[str, Callable[[], float]], rounds: Mapping[str, int]) -> dict[str, list[float]]:
    """Take samples in turns; contenders with fewer rounds take part in the first ones.

    Every round has an order of its own: in a fixed one, each contender would always find the caches and the memory that
    the same other one left.

    Args:
        samples: Functions that return one sample, by contender.
        rounds: Number of rounds of each contender.
    """
    names = list(samples)
    taken: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(max(rounds.values(), default=0)):
            for name in random.sample(names, len(names)):
                if index < rounds[name]:
                    taken[name].append(samples[name]())
    finally:
        if was_enabled:
            gc.enable()
    return taken


def matrix_products(device: str) -> list[tuple[Dtype, int, Call]]:
    """Return large matrix products with their dtype and their number of floating-point operations.

    Each product comes twice, as a linear layer and as a 1x1 convolution: on CPUs, PyTorch computes them by different
    libraries.
    """
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    products: list[tuple[Dtype, int, Call]] = []
    for dtype in dtypes:
        for size in PRODUCT_SIZES[device]:
            a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
            products.append((dtype, 2 * size**3, lambda a=a, b=b: F.linear(a, b)))
            image, kernel = a.view(1, size, 32, size // 32), b.view(size, size, 1, 1)
            products.append((dtype, 2 * size**3, lambda image=image, kernel=kernel: F.conv2d(image, kernel)))
    return products


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _capture(call: Call, calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(calls):
            call()
    return graph


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
