"""Calls of the operator drawn at random: those that fit equal the reference in float64, and no other one gets through.

`pytest --examples 20000 tests/kernels/test_fuzz.py` looks longer than usual. With `TRITON_INTERPRET=1` the calls go to
Triton's kernels.
"""

import multiprocessing
import os
import random
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from deformdetr.kernels import _numba, fused_ms_deform_attn, ms_deform_attn, ms_deform_attn_backward, sampling_locations
from deformdetr.testing import check_problem, random_problem
from sampling import WITH_INTS

# These tests are about arguments that checked annotations would refuse.
pytestmark = pytest.mark.unchecked

# The interpreter takes a hundred times as long, and computes with NumPy, which warns of what is meant to overflow.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter belongs to one thread, and needs no Numba")
warns = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SEEDS = st.integers(0, 2**63 - 1)


def compare(seed: int) -> None:
    """Compare a random call with the reference in float64; the sizes of its levels are ints or in a tensor."""
    convention = WITH_INTS if seed % 2 else None
    check_problem(ms_deform_attn, random_problem(seed), convention=convention).raise_for_failures()


@warns
@given(SEEDS)
def test_a_call_that_fits_equals_the_reference(seed: int):
    compare(seed)


@compiled
@given(SEEDS)
def test_a_call_that_fits_equals_the_reference_without_numba(seed: int):
    with patch.object(_numba, "is_usable", lambda channels, dtype: False):
        compare(seed)


def _compare_all(seeds: list[int], threads: int) -> None:
    torch.set_num_threads(threads)
    for seed in seeds:
        compare(seed)


def _compare_in_fork(seeds: list[int]) -> None:
    # This process has called, and so has threads and compiled kernels, before it forks. What OpenMP knows of its
    # threads is lost then: one thread is what PyTorch itself can use after that.
    _compare_all(seeds[:2], 2)
    _run("fork", _compare_all, seeds, 1)


def _run(method: str, function: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context(method).Process(target=function, args=arguments)
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


@compiled
def test_calls_in_another_process_equal_the_reference(seed: int):
    _run("spawn", _compare_all, [seed + offset for offset in range(20)], 2)


@compiled
def test_calls_in_a_forked_process_equal_the_reference(seed: int):
    # Forked from a new process: PyTorch allows no backward in a fork of one that has used autograd's threads, as other
    # tests do.
    _run("spawn", _compare_in_fork, [seed + offset for offset in range(20)])


@compiled
@given(st.lists(SEEDS, min_size=2, max_size=4))
@settings(max_examples=10)
def test_calls_in_several_threads_equal_the_reference(seeds: list[int]):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(seeds)) as pool:
        list(pool.map(compare, seeds))


NO_TENSORS = [None, "a tensor", 3, [1.0, 2.0], torch.float32]
ANY_DTYPE = [
    *DTYPES, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def break_tensor(tensor: Tensor, choose: random.Random) -> Any:
    """Replace a tensor by something that may not fit the others."""
    kind = choose.choice(["shape", "axis", "ndim", "dtype", "device", "sparse", "other"])
    if kind == "shape":
        return torch.randn([choose.choice([0, 1, 2, size, size + 1]) for size in tensor.shape]).to(tensor.dtype)
    if kind == "axis":
        axis = choose.randrange(tensor.ndim)
        return tensor.narrow(axis, 0, choose.randint(0, tensor.shape[axis]))
    if kind == "ndim":
        return choose.choice([tensor[None], tensor.flatten(), tensor.sum()])
    if kind == "dtype":
        return tensor.to(choose.choice(ANY_DTYPE))
    if kind == "device":
        return tensor.to("meta")
    if kind == "sparse":
        return tensor.to_sparse()
    return choose.choice(NO_TENSORS)


def break_shapes(shapes: list[tuple[int, int]], choose: random.Random) -> Any:
    """Replace sizes by some that may not fit, also such whose sum does."""
    kind = choose.choice(["sum", "huge", "more", "fewer", "nothing", "floats", "flat", "tensor"])
    pixels = sum(height * width for height, width in shapes)
    if kind == "sum":
        return [(100, 100), (pixels - 10000, 1)][: len(shapes)] + [(0, 5)] * (len(shapes) - 2)
    if kind == "huge":
        return [(choose.choice([2**24, 2**31, 2**32, 2**63, 2**70]), choose.choice([0, 1, 2**31]))] * len(shapes)
    if kind == "more":
        return [*shapes, (choose.randint(-3, 3), choose.randint(-3, 3))]
    if kind == "fewer":
        return shapes[:-1]
    if kind == "floats":
        return [(float(height), float(width)) for height, width in shapes]
    if kind == "flat":
        return [size for shape in shapes for size in shape]
    if kind == "tensor":
        home = choose.choice(["cpu", "cpu", "meta"])
        return (torch.tensor(shapes) - choose.randint(-1, 3)).to(home, choose.choice(ANY_DTYPE))
    return choose.choice(NO_TENSORS)


def draw_broken(seed: int) -> dict[str, Any]:
    """Draw the arguments of all forms of the operator, one to three of which may not fit the others."""
    choose = random.Random(seed)
    call = random_problem(seed)
    value, locations, weights, grad = (
        tensor.to(choose.choice((torch.float32, torch.bfloat16)))
        for tensor in (call.value, call.sampling_locations, call.attention_weights, call.grad_output)
    )
    references = torch.rand(*weights.shape[:2], weights.shape[3], choose.choice([2, 4]))
    padding = torch.rand(value.shape[:2]) < 0.3
    arguments: dict[str, Any] = {
        "value": value, "shapes": call.spatial_shapes, "locations": locations, "weights": weights, "grad": grad,
        "references": references, "padding": padding,
    }  # fmt: skip
    for name in choose.sample(sorted(arguments), choose.randint(1, 3)):
        broken = break_shapes if name == "shapes" else break_tensor
        arguments[name] = broken(arguments[name], choose)
    return arguments


def shrink_storage(tensor: Any, choose: random.Random) -> None:
    """Take memory from below a tensor, at times; operations of PyTorch itself do not look."""
    if isinstance(tensor, Tensor) and tensor.layout == torch.strided and choose.random() < 0.2:
        tensor.untyped_storage().resize_(choose.randint(0, tensor.untyped_storage().nbytes()))


REFUSALS = (TypeError, ValueError)


@warns
@given(SEEDS, st.sampled_from(["auto", "reference"]))
def test_any_other_call_is_refused_or_has_a_result(seed: int, backend: str):
    given = draw_broken(seed)
    value, shapes, locations, weights = given["value"], given["shapes"], given["locations"], given["weights"]
    calls: list[Callable[[], Any]] = [
        lambda: ms_deform_attn(value, shapes, locations, weights, backend),
        lambda: ms_deform_attn_backward(given["grad"], value, shapes, locations, weights),
        lambda: fused_ms_deform_attn(
            value, shapes, given["references"], locations, weights, given["padding"], backend=backend
        ),
        lambda: sampling_locations(given["references"], locations, shapes),
    ]
    for call in calls:
        try:
            result = call()
        except REFUSALS as error:
            note(f"{type(error).__name__}: {error}")
        else:
            assert all(isinstance(each, Tensor) for each in (result if isinstance(result, tuple) else (result,)))


@warns
@given(SEEDS)
def test_any_call_of_a_registered_op_is_refused_or_has_a_result(seed: int):
    given = draw_broken(seed)
    choose = random.Random(seed)
    shapes = given["shapes"]
    homes: tuple[Any, ...] = (shapes, []) if isinstance(shapes, Tensor) else (None, shapes)
    if isinstance(homes[1], list) and choose.random() < 0.9:
        homes = (homes[0], [size for pair in homes[1] for size in (pair if isinstance(pair, tuple) else (pair,))])
    repeats = choose.choice([[], [], [1], [2, 1], [0], [-1, 4], [10**12]])
    value, locations, weights = given["value"], given["locations"], given["weights"]
    for tensor in given.values():
        shrink_storage(tensor, choose)
    ops = torch.ops.deformdetr
    needs = tuple(choose.random() < 0.7 for _ in range(4))
    grad, deterministic = given["grad"], choose.random() < 0.3
    plain = (value, *homes, repeats, locations, weights, None, None, deterministic)
    fused = (value, *homes, repeats, locations, weights, given["references"], given["padding"], deterministic)
    calls: list[Callable[[], Any]] = [
        lambda: ops.ms_deform_attn(*plain),
        lambda: ops.ms_deform_attn_backward(grad, None, *plain, *needs),
        lambda: ops.ms_deform_attn(*fused),
        lambda: ops.ms_deform_attn_backward(grad, grad, *fused, *needs),
    ]
    for call in calls:
        try:
            call()
        # Arguments of another kind than the op's are PyTorch's to refuse, as are sparse ones.
        except (*REFUSALS, RuntimeError, OverflowError) as error:
            note(f"{type(error).__name__}: {error}")


@warns
@given(SEEDS)
def test_tensors_that_change_before_the_backward_are_refused_or_have_gradients(seed: int):
    choose = random.Random(seed)
    call = random_problem(seed)
    tensors = (call.value, call.sampling_locations, call.attention_weights)
    leaves = [tensor.float().requires_grad_() for tensor in tensors]
    shapes = torch.tensor(call.spatial_shapes)
    out = ms_deform_attn(leaves[0], shapes, *leaves[1:])
    for leaf in choose.sample(leaves, choose.randint(1, 2)):
        changed = break_tensor(leaf.detach(), choose)
        # PyTorch lets no other kind of tensor take the place of one.
        is_dense = isinstance(changed, Tensor) and changed.layout == torch.strided
        if is_dense and changed.is_floating_point() and changed.device == leaf.device:
            leaf.data = changed
        shrink_storage(leaf.data, choose)
    if choose.random() < 0.3:
        broken = break_shapes(call.spatial_shapes, choose)
        if isinstance(broken, Tensor) and (broken.dtype, broken.device) == (shapes.dtype, shapes.device):
            shapes.data = broken
    try:
        torch.autograd.grad(out, leaves, call.grad_output.float())
    # PyTorch itself refuses tensors of another kind than was saved.
    except (*REFUSALS, RuntimeError) as error:
        note(f"{type(error).__name__}: {error}")
