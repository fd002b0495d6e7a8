"""Turns, clocks and peak memory."""

import gc

import pytest
import torch
from benchmarks import measure
from benchmarks.measure import DeviceSampler, WallSampler, interleave
from benchmarks.memory import peak_bytes


def test_contenders_take_turns_in_random_order():
    order = []
    names = ("a", "b", "c")
    samples = {name: lambda name=name: order.append(name) or float(len(order)) for name in names}
    times = interleave(samples, dict.fromkeys(names, 40))
    rounds = ["".join(order[start : start + 3]) for start in range(0, 120, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    # At most two of the six orders in forty rounds: once in 10^18 runs.
    assert len(set(rounds)) > 2
    assert times == {name: [index for index, each in enumerate(order, 1) if each == name] for name in names}


def test_slow_contenders_take_part_in_the_first_rounds():
    order = []
    samples = {name: lambda name=name: order.append(name) or 1.0 for name in ("slow", "fast")}
    times = interleave(samples, {"slow": 2, "fast": 4})
    assert sorted(order[:4]) == ["fast", "fast", "slow", "slow"]
    assert order[4:] == ["fast", "fast"]
    assert [len(times[name]) for name in ("slow", "fast")] == [2, 4]


def test_garbage_is_not_collected_while_times_are_taken():
    states = []
    interleave({"a": lambda: states.append(gc.isenabled()) or 1.0}, {"a": 2})
    assert states == [False, False]
    assert gc.isenabled()


def test_short_calls_are_repeated_until_the_clock_can_measure_them(monkeypatch):
    now = 0.0

    def call():
        nonlocal now
        now += 0.003

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    sampler = WallSampler(call, "cpu")
    assert sampler.calls == 7
    assert sampler.sample() == pytest.approx(0.003)
    assert sampler.seconds == pytest.approx(0.021)


def test_slow_calls_are_not_repeated_for_an_estimate():
    calls = []
    sampler = WallSampler(lambda: calls.append(1), "cpu", estimate=2.5)
    assert (calls, sampler.calls, sampler.seconds) == ([], 1, 2.5)


class FakeGPU:
    """A clock that calls advance, instead of CUDA's events and graphs."""

    def __init__(self, monkeypatch, *, can_capture: bool) -> None:
        self.now = 0.0
        self.can_capture = can_capture
        self.flushes = 0
        monkeypatch.setattr(measure, "_event", lambda: FakeEvent(self))
        monkeypatch.setattr(measure, "_capture", self.capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(measure, "_flush_buffer", lambda: self)

    def sampler(self, seconds: float, *, cold: bool = False) -> DeviceSampler:
        def call():
            self.now += seconds

        return DeviceSampler(call, cold=cold)

    def zero_(self) -> None:
        self.flushes += 1
        self.now += 1.0

    def capture(self, call, calls):
        if not self.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        graph = type("Graph", (), {})()
        graph.replay = lambda: [call() for _ in range(calls)]
        return graph


class FakeEvent:
    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.time = self.gpu.now

    def elapsed_time(self, end: "FakeEvent") -> float:
        return (end.time - self.time) * 1e3


def test_short_calls_on_a_gpu_are_replayed_in_a_graph(monkeypatch):
    sampler = FakeGPU(monkeypatch, can_capture=True).sampler(30e-6)
    assert sampler.clock == "cuda_graph"
    # Nine replays of twenty calls last five milliseconds.
    assert sampler.calls == 180
    assert sampler.sample() == pytest.approx(30e-6)
    assert sampler.note == ""


def test_long_calls_on_a_gpu_are_timed_between_events(monkeypatch):
    sampler = FakeGPU(monkeypatch, can_capture=True).sampler(7e-3)
    assert (sampler.clock, sampler.calls) == ("cuda_events", 1)
    assert sampler.sample() == pytest.approx(7e-3)


def test_calls_that_cannot_be_captured_have_a_note(monkeypatch):
    sampler = FakeGPU(monkeypatch, can_capture=False).sampler(30e-6)
    assert sampler.clock == "cuda_events"
    assert "failed: RuntimeError: operation not permitted when stream is capturing" in sampler.note
    assert "more" not in sampler.note


def test_the_flush_before_a_cold_call_is_not_timed(monkeypatch):
    gpu = FakeGPU(monkeypatch, can_capture=True)
    sampler = gpu.sampler(30e-6, cold=True)
    assert sampler.clock == "cuda_graph_cold"
    gpu.flushes = 0
    assert sampler.sample() == pytest.approx(30e-6)
    assert gpu.flushes == sampler.calls > 1


@pytest.mark.gpu
@pytest.mark.parametrize("cold", [False, True])
def test_a_copy_on_a_gpu_has_a_plausible_bandwidth(cold):
    source = torch.randn(2**26, device="cuda")
    target = torch.empty_like(source)
    with torch.cuda.stream(torch.cuda.Stream()):
        target.copy_(source)
        sampler = DeviceSampler(lambda: target.copy_(source), cold=cold)
        bandwidth = 2 * 4 * len(source) / sampler.sample()
    assert 1e11 < bandwidth < 2e13


def test_peak_memory_counts_tensors_alive_at_once():
    given = torch.ones(1000, 1000)
    megabytes = 4.0

    def call():
        first = given + 1
        second = first * 2
        del first
        third = second + second
        del second
        return third.sum()

    assert peak_bytes(call, "cpu") / 1e6 == pytest.approx(2 * megabytes, rel=0.01)


def test_peak_memory_counts_allocations_inside_of_operations():
    given = torch.randn(300, 300)
    # The operation works on a copy of its input.
    assert peak_bytes(lambda: torch.linalg.svdvals(given), "cpu") > given.nbytes
