"""Forward and backward on CPUs: tensors in, a kernel run on several threads, tensors out.

Kernels are compiled at the first call, for the number of channels and the dtype of the value.
`docs/performance_experiments.md` compares the choices made here with others.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deformdetr.kernels._levels import Level
from deformdetr.kernels._numba._job import Job
from deformdetr.kernels._numba._large_pages import empty_on_large_pages
from deformdetr.kernels._numba._threads import run_on_threads
from deformdetr.kernels._reference import Locations, Output, Value, Weights

# Samples per task of the forward. With many more, threads would wait for the last one.
SAMPLES_PER_TASK = 2**12
# Below this many (image, head) tasks per thread, the backward also splits by level.
TASKS_PER_THREAD = 2
# Numbers read per thread, below which waking it takes longer than it saves.
NUMBERS_PER_THREAD = 2**16


def forward(value: Value, levels: Sequence[Level], sampling_locations: Locations, attention_weights: Weights) -> Output:
    """Compute what the reference computes, in float32."""
    # Imported here, because numba takes longer to import than the whole of this library.
    from deformdetr.kernels._numba._kernels import compile_forward

    batch, queries, heads, n_levels, points = attention_weights.shape
    channels = value.shape[3]
    out = empty_on_large_pages((batch, queries, heads * channels), torch.float32)
    if not value.numel() or not attention_weights.numel():
        return out.zero_().to(value.dtype)
    queries_per_task = max(1, SAMPLES_PER_TASK // (n_levels * points))
    job = Job(
        **_shared_fields(value, levels, sampling_locations, attention_weights),
        output=out,
        queries_per_task=queries_per_task,
        tasks=batch * heads * -(-queries // queries_per_task),
    )
    kernel = compile_forward(channels, value.dtype)
    run_on_threads(kernel.address, job, _count_threads(attention_weights.numel() * channels, job.tasks))
    return _convert(out, value.dtype)


def backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Value,
    levels: Sequence[Level],
    sampling_locations: Locations,
    attention_weights: Weights,
    needs: tuple[bool, bool, bool],
) -> tuple[Value | None, Locations | None, Weights | None]:
    """Compute what the backward of the reference computes, in float32; None for a gradient that is not needed."""
    from deformdetr.kernels._numba._kernels import compile_backward

    inputs = (value, sampling_locations, attention_weights)
    if not value.numel() or not attention_weights.numel():
        grad_value, grad_locations, grad_weights = (
            torch.zeros_like(like) if need else None for like, need in zip(inputs, needs, strict=True)
        )
        return grad_value, grad_locations, grad_weights
    images, _, heads, channels = value.shape
    # A level with several groups of points is there several times in a row. All of them add to the same pixels.
    firsts = [index for index, level in enumerate(levels) if index == 0 or level != levels[index - 1]]
    parts = 1 if images * heads >= TASKS_PER_THREAD * torch.get_num_threads() else len(firsts)
    grads = [
        empty_on_large_pages(like.shape, torch.float32) if need else None
        for like, need in zip(inputs, needs, strict=True)
    ]
    job = Job(
        **_shared_fields(value, levels, sampling_locations, attention_weights),
        output=grad_output.float().contiguous().resolve_neg(),
        images=images,
        runs=[*firsts, len(levels)],
        runs_per_task=len(firsts) // parts,
        grad_value=grads[0],
        grad_locations=grads[1],
        grad_weights=grads[2],
        tasks=images * heads * parts,
    )
    kernel = compile_backward(channels, value.dtype)
    run_on_threads(kernel.address, job, _count_threads(attention_weights.numel() * channels, job.tasks))
    grad_value, grad_locations, grad_weights = (
        None if grad is None else _convert(grad, like.dtype) for grad, like in zip(grads, inputs, strict=True)
    )
    return grad_value, grad_locations, grad_weights


def _shared_fields(
    value: Tensor, levels: Sequence[Level], sampling_locations: Tensor, attention_weights: Tensor
) -> dict[str, Any]:
    """Return the fields of a job that forward and backward share. Kernels read contiguous memory."""
    _, queries, heads, n_levels, points = attention_weights.shape
    return {
        "next_task": [0],
        "value": value.contiguous().resolve_neg(),
        "locations": sampling_locations.float().contiguous().resolve_neg(),
        "weights": attention_weights.float().contiguous().resolve_neg(),
        "levels": list(itertools.chain.from_iterable(levels)),
        "pixels": value.shape[1],
        "queries": queries,
        "heads": heads,
        "n_levels": n_levels,
        "points": points,
    }


def _count_threads(numbers: int, tasks: int) -> int:
    """Return the number of threads for `tasks` tasks that read `numbers` numbers in all."""
    return min(1 + numbers // NUMBERS_PER_THREAD, tasks, torch.get_num_threads())


def _convert(result: Tensor, dtype: torch.dtype) -> Tensor:
    return result if result.dtype == dtype else empty_on_large_pages(result.shape, dtype).copy_(result)
