"""Times: contenders take turns, so that a machine that slows down slows all of them."""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch

Call = Callable[[], object]

# Repetitions of one turn last at least so long, so that the clock and the switch do not count.
MIN_SECONDS = {"cpu": 0.02, "cuda": 0.005}
# Below, the host may not keep up with the device, and what events enclose is Python's time.
GRAPH_BELOW = 5e-3
CALLS_PER_GRAPH = 20
# Calls of so many seconds are not repeated only to learn what they take.
_SLOW = 1.0
# Larger than the second-level cache of any GPU, and so slow to fill that the host gets ahead.
FLUSH_BYTES = 2**30


class Sampler(Protocol):
    """Takes the time of one call.

    Attributes:
        clock: What took it: `wall`, `cuda_events`, `cuda_graph`, and `_cold` behind them after a flush of the caches.
        calls: How many calls a sample is the mean of.
        seconds: What a sample is expected to take.
        note: Why it is not the clock that one would expect.
    """

    clock: str
    calls: int
    seconds: float
    note: str

    def sample(self) -> float:
        """Give the seconds of one call."""


class WallSampler:
    """Time as the caller sees it, with everything that the call puts into the GPU's queue.

    Args:
        call: It must have run before, so that nothing is compiled while it is timed.
        device: Where it runs.
        estimate: What a call took before, roughly.
    """

    clock = "wall"
    note = ""

    def __init__(self, call: Call, device: str, *, estimate: float = 0.0) -> None:
        self._call = call
        self._device = device
        self.calls = 1
        self.seconds = estimate if estimate > _SLOW else self.sample()
        self.calls = max(1, math.ceil(MIN_SECONDS[device] / self.seconds))
        self.seconds *= self.calls

    def sample(self) -> float:
        synchronize(self._device)
        start = time.perf_counter()
        for _ in range(self.calls):
            self._call()
        synchronize(self._device)
        return (time.perf_counter() - start) / self.calls


class DeviceSampler:
    """Time on the GPU between two events, of calls from Python or, for short ones, of replays of a CUDA graph.

    Everything runs in the stream that is current when it is built, as capturing needs.

    Args:
        call: It must have run before, so that nothing is compiled while it is captured.
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
                self._run = captured(call, calls).replay
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
        for _ in range(self._runs if self._flush is not None else 1):
            start, end = _event(), _event()
            if self._flush is not None:
                self._flush.zero_()
            start.record()
            for _ in range(1 if self._flush is not None else self._runs):
                self._run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        milliseconds = sum(start.elapsed_time(end) for start, end in pairs)
        return float(milliseconds) / 1e3 / (self._runs * self._calls_per_run)


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # PyTorch's has no annotations.


def captured(call: Call, calls: int) -> torch.cuda.CUDAGraph:
    """Capture some calls in a CUDA graph."""
    stream = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    return graph


def interleave(
    samples: Mapping[str, Callable[[], float]], rounds: Mapping[str, int], after_round: Callable[[], object]
) -> dict[str, list[float]]:
    """Take samples in turns, every round in an order drawn anew; all contenders have the first rounds in common.

    In one order, each would always find the caches and the memory that the same other one leaves.

    Args:
        samples: Gives a sample of each.
        rounds: In how many rounds each takes part.
        after_round: Called after every round.
    """
    names = list(samples)
    taken: dict[str, list[float]] = {name: [] for name in names}
    with _without_garbage_collection():
        for index in range(max(rounds.values(), default=0)):
            for name in random.sample(names, len(names)):
                if index < rounds[name]:
                    taken[name].append(samples[name]())
            after_round()
    return taken


def synchronize(device: str) -> None:
    """Wait until a GPU has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def first_line(error: BaseException) -> str:
    """Name an error and the beginning of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
