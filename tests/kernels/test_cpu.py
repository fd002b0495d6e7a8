"""Tests of the CPU implementations, with Numba and without; `test_kernels.py` has those of all devices."""

import functools
import itertools
import mmap
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from deformdetr.kernels import _gather, _numba, _reference, ms_deform_attn
from deformdetr.kernels._levels import Level
from deformdetr.kernels._numba import _large_pages, _launcher, _threads
from deformdetr.testing import PYRAMIDS, away_from_pixel_borders, random_inputs

SHAPES = PYRAMIDS["four_levels"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=[_numba, _gather], ids=["numba", "gather"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def place(shapes: Sequence[tuple[int, int]], repeats: Sequence[int] | None = None) -> list[Level]:
    starts = itertools.accumulate((height * width for height, width in shapes), initial=0)
    levels = [Level(*shape, start) for shape, start in zip(shapes, starts, strict=False)]
    return [level for level, count in zip(levels, repeats or [1] * len(levels), strict=True) for _ in range(count)]


def draw(rng: torch.Generator, shapes: Sequence[tuple[int, int]] = SHAPES, **sizes: int) -> list[Tensor]:
    """Return the gradient of the output, value, locations and weights in float32."""
    value, locations, weights = (tensor.float() for tensor in random_inputs(rng, shapes, **sizes))
    grad = torch.randn(*weights.shape[:2], value.shape[2] * value.shape[3], generator=rng)
    return [grad, value, locations, weights]


def run(kernel: ModuleType, inputs: Sequence[Tensor], levels: Sequence[Level]) -> list[Tensor]:
    """Return the output and all gradients."""
    grad, value, locations, weights = inputs
    out = kernel.forward(value, levels, locations, weights)
    return [out, *kernel.backward(grad, value, levels, locations, weights, (True, True, True))]


def exactly(inputs: Sequence[Tensor], levels: Sequence[Level]) -> list[Tensor]:
    return run(_reference, [tensor.double() for tensor in inputs], levels)


@pytest.mark.parametrize(("batch", "queries"), [(30, 3), (2, 60)])
@pytest.mark.parametrize("where", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_are_those_of_the_reference_in_the_same_dtype(
    dtype: torch.dtype, where: torch.dtype, batch: int, queries: int, rng: torch.Generator
):
    assert_errors_as_small(_numba, dtype, where, batch, queries, rng)


@pytest.mark.parametrize("where", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_numba_errors_are_those_of_the_reference_too(
    dtype: torch.dtype, where: torch.dtype, rng: torch.Generator
):
    assert_errors_as_small(_gather, dtype, where, 3, 30, rng)


def assert_errors_as_small(
    kernel: ModuleType, dtype: torch.dtype, where: torch.dtype, batch: int, queries: int, rng: torch.Generator
) -> None:
    grad, value, locations, weights = draw(rng, batch=batch, queries=queries, heads=4, channels=32, points=4)
    locations = away_from_pixel_borders(locations, SHAPES)
    inputs = [grad.to(dtype), value.to(dtype), locations.to(where), weights.to(dtype)]
    exact = exactly(inputs, place(SHAPES))
    results = [run(each, inputs, place(SHAPES)) for each in (kernel, _reference)]
    for got, other, wanted in zip(*results, exact, strict=True):
        assert got.dtype == other.dtype
        # The root of the mean square differs by less than 1.2 times; the largest error of a draw is a matter of luck.
        error, allowed = ((tensor.double() - wanted).square().mean().sqrt() for tensor in (got, other))
        assert error <= 1.25 * allowed


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
def test_gradients_that_are_not_needed_are_none(
    needs: tuple[bool, bool, bool], kernel: ModuleType, rng: torch.Generator
):
    inputs = draw(rng)
    _, *expected = run(kernel, inputs, place(SHAPES))
    grads = kernel.backward(inputs[0], inputs[1], place(SHAPES), *inputs[2:], needs)
    for grad, wanted, need in zip(grads, expected, needs, strict=True):
        assert torch.equal(grad, wanted) if need else grad is None


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("has_openmp", [True, False])
@pytest.mark.parametrize("samples", [1, 36, 150])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_bit_identical_for_any_number_of_threads_and_tasks(
    dtype: torch.dtype,
    samples: int,
    has_openmp: bool,
    threads: Callable[[int], None],
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    grad, value, locations, weights = draw(rng, batch=3, queries=25)
    inputs = [grad.to(dtype), value.to(dtype), locations, weights]
    threads(1)
    expected = run(_numba, inputs, place(SHAPES))
    monkeypatch.setattr(_launcher, "SAMPLES_PER_TASK", samples)
    monkeypatch.setattr(_launcher, "NUMBERS_PER_THREAD", 1)
    if not has_openmp:
        monkeypatch.setattr(_threads, "_openmp_parallel", lambda: None)
    for count in (1, 2, 3, 7):
        threads(count)
        for got, wanted in zip(run(_numba, inputs, place(SHAPES)), expected, strict=True):
            assert torch.equal(got, wanted)


def test_without_numba_results_are_bit_identical_for_any_number_of_threads(
    threads: Callable[[int], None], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    # Large enough for PyTorch to use several threads.
    inputs = draw(rng, queries=700, heads=4, channels=16)
    threads(1)
    expected = run(_gather, inputs, place(SHAPES))
    for count, samples in ((3, _gather.SAMPLES_AT_ONCE), (2, 20_000), (1, 1)):
        threads(count)
        monkeypatch.setattr(_gather, "SAMPLES_AT_ONCE", samples)
        for got, wanted in zip(run(_gather, inputs, place(SHAPES)), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_without_numba_infinity_and_nan_reach_the_queries_that_sample_them(number: float, rng: torch.Generator):
    # Samples at pixels read others with a weight of zero where those are inside, as they do in the reference.
    value = torch.randn(1, 6, 2, 4, generator=rng)
    value[0, 1, 0, 2] = value[0, 5, 1, 0] = number
    locations = torch.rand(1, 50, 2, 1, 2, 2, generator=rng) * 2 - 0.5
    weights = torch.rand(1, 50, 2, 1, 2, generator=rng)
    levels = place([(2, 3)])
    expected = _reference.forward(value.double(), levels, locations.double(), weights.double())
    torch.testing.assert_close(_gather.forward(value, levels, locations, weights), expected.float(), equal_nan=True)


def test_small_work_stays_on_one_thread(
    threads: Callable[[int], None], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    threads(8)
    plain, used = _launcher.run_on_threads, []
    monkeypatch.setattr(_launcher, "run_on_threads", lambda *args: used.append(args[2]) or plain(*args))
    # 2, 60 and 9,000 queries with 3 heads of 4 channels, 4 levels and 3 points.
    for queries in (2, 60, 9000):
        run(_numba, draw(rng, batch=1, queries=queries), place(SHAPES))
    assert used == [1, 1, 1, 1, 8, 8]


def test_python_threads_may_call_at_once(kernel: ModuleType, rng: torch.Generator):
    inputs = [draw(rng, queries=200) for _ in range(6)]
    expected = [run(kernel, each, place(SHAPES)) for each in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for tensors, wanted in zip(
                pool.map(lambda each: run(kernel, each, place(SHAPES)), inputs), expected, strict=True
            ):
                assert all(torch.equal(*pair) for pair in zip(tensors, wanted, strict=True))


def test_openmp_runtime_is_the_one_of_pytorch():
    assert ("OpenMP" in torch.__config__.parallel_info()) == (_threads._openmp_parallel() is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_is_read_exactly(dtype: torch.dtype):
    # Images of one pixel, sampled at its center: subnormal numbers, infinity and NaN are among them.
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(-1, 1, 4, 8)
    locations = torch.full((len(numbers), 1, 4, 1, 1, 2), 0.5)
    out = ms_deform_attn(numbers, [(1, 1)], locations, torch.ones(locations.shape[:-1]))
    torch.testing.assert_close(out.view_as(numbers), numbers, rtol=0, atol=0, equal_nan=True)


def test_a_value_may_have_more_than_two_to_the_31_numbers(rng: torch.Generator):
    # 4 GiB of which only the last pixels are touched: all samples lie in the last cell of the level.
    height, width = 2**12, 2**13 + 1
    value = torch.empty(1, height * width, 8, 8, dtype=torch.bfloat16)
    corner = torch.randn(4, 8, 8, generator=rng).bfloat16()
    last = height * width - 1
    value[0, [last - width - 1, last - width, last - 1, last]] = corner
    shares = torch.rand(1, 3, 8, 1, 2, 2, generator=rng) * 0.9 + 0.05
    size = torch.tensor([width, height])
    weights = torch.rand(1, 3, 8, 1, 2, generator=rng)
    out = ms_deform_attn(value, [(height, width)], (size - 1.5 + shares) / size, weights)
    at = (torch.tensor([width, height]) - 1.5 + shares) / size * size - 0.5 - (size - 2)
    expected = ms_deform_attn(corner[None].float(), [(2, 2)], (at + 0.5) / 2, weights)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("least", [1, 2**20])
def test_defaults_of_the_process_change_nothing(
    least: int, kernel: ModuleType, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_large_pages, "LARGE", least)
    shapes = [(7, 5), (3, 2)]
    inputs = draw(rng, shapes)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            results = run(kernel, inputs, place(shapes))
    finally:
        torch.set_default_dtype(torch.float32)
    for got, wanted in zip(results, run(kernel, inputs, place(shapes)), strict=True):
        assert torch.equal(got, wanted)


class PeakMemory(TorchDispatchMode):
    """Track the peak memory of all tensors that operations create, without the memory of the tensors given."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor) and result.untyped_storage()._cdata not in self.given:
                self.alive[result.untyped_storage()._cdata] = (
                    StorageWeakRef(result.untyped_storage()),
                    result.untyped_storage().nbytes(),
                )
        self.alive = {key: (weak, size) for key, (weak, size) in self.alive.items() if not weak.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "queries"), [(1, None), (1, 300), (2, 300)])
def test_the_forward_takes_at_most_a_third_of_the_memory_of_the_reference(
    batch: int, queries: int | None, dtype: torch.dtype, rng: torch.Generator
):
    shapes = [(60, 80), (30, 40), (15, 20), (8, 10)]
    queries = queries or sum(height * width for height, width in shapes)
    _, value, locations, weights = draw(rng, shapes, batch=batch, queries=queries, heads=8, channels=32, points=4)
    inputs = value.to(dtype), place(shapes), locations, weights
    peaks = []
    for kernel in (_numba, _reference):
        with PeakMemory([inputs[0], *inputs[2:]]) as memory:
            kernel.forward(*inputs)
        peaks.append(memory.peak)
    assert peaks[0] <= peaks[1] / 3


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tensor]]:
    """Allocate as for large results from a megabyte on."""
    monkeypatch.setattr(_large_pages, "LARGE", 2**20)
    _large_pages._find_madvise.cache_clear()
    yield _large_pages.empty_on_large_pages
    # What is found on a system that a test pretends must not be remembered.
    _large_pages._find_madvise.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_results_are_contiguous_and_hold_what_is_stored(dtype: torch.dtype, large: Callable[..., Tensor]):
    tensor = large((2**19 + 1, 3), dtype)
    assert tensor.is_contiguous()
    assert (tensor.shape, tensor.dtype) == ((2**19 + 1, 3), dtype)
    tensor.fill_(1)[-1, -1] = 2
    assert tensor.double().sum() == tensor.numel() + 1


def test_large_results_can_be_resized_and_pickled(rng: torch.Generator):
    # Two images of 8,192 queries with 8 heads of 32 channels: outputs and gradients of 16 MiB.
    shapes = [(64, 128)]
    grad, value, locations, weights = draw(rng, shapes, batch=2, queries=2**13, heads=8, channels=32, points=1)
    for result in run(_numba, [grad, value, locations, weights], place(shapes))[:2]:
        assert result.numel() * 4 > _large_pages.LARGE
        assert torch.equal(pickle.loads(pickle.dumps(result)), result)
        kept = result.clone()
        result.resize_(2 * result.numel())
        assert torch.equal(result[: kept.numel()].view(kept.shape), kept)
        result.untyped_storage().resize_(0)
        assert result.untyped_storage().nbytes() == 0


def test_only_pages_of_the_result_itself_become_large(large: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        _large_pages, "_find_madvise", functools.cache(lambda: lambda *arguments: calls.append(arguments))
    )
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    tensor = large((2**18 + 1,), torch.float32)
    ((begin, size, advice),) = calls
    assert tensor.data_ptr() <= begin < begin + size <= tensor.data_ptr() + 4 * tensor.numel()
    assert begin % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
    assert size > 4 * tensor.numel() - 2 * mmap.PAGESIZE
    assert advice == 14


def test_small_results_are_left_as_they_are(large: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        _large_pages, "_find_madvise", functools.cache(lambda: pytest.fail("there is nothing to advise"))
    )
    assert large((7,), torch.float32).shape == (7,)


def test_systems_may_have_no_large_pages(large: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert large((2**20,), torch.float32).fill_(1).sum() == 2**20


def test_systems_may_refuse_large_pages(large: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999, raising=False)
    assert large((2**20,), torch.float32).fill_(1).sum() == 2**20
