"""The operator on CPUs: what the kernels need to know, and how their work is cut.

They are compiled at the first call, for the number of channels and the dtype of the value; `docs/cpu.md` tells what
else was tried.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deformdetr.kernels._ms_deform_attn._cpu_job import Job
from deformdetr.kernels._ms_deform_attn._cpu_memory import empty_on_large_pages
from deformdetr.kernels._ms_deform_attn._cpu_threads import run_at_once
from deformdetr.kernels._ms_deform_attn._levels import Level

# Samples of a task of the forward: with many more, threads would wait for the last one.
SAMPLES_AT_ONCE = 2**12
# Where the backward has fewer, levels are tasks of their own.
TASKS_PER_THREAD = 2
# Numbers read per thread, so that it saves more time than it takes to wake it.
WORTH_A_THREAD = 2**16


def forward(
    value: Float[Tensor, "batch pixels heads channels"],
    levels: Sequence[Level],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Compute what the reference computes, in float32."""
    # Imported here, because numba takes longer to import than the whole of this library.
    from deformdetr.kernels._ms_deform_attn._numba import compile_forward

    batch, queries, heads, n_levels, points = attention_weights.shape
    out = empty_on_large_pages((batch, queries, heads * value.shape[3]), torch.float32)
    if not value.numel() or not attention_weights.numel():
        return out.zero_().to(value.dtype)
    fields = _describe(value, levels, sampling_locations, attention_weights, out)
    at_once = max(1, SAMPLES_AT_ONCE // (n_levels * points))
    parts = -(-queries // at_once)
    fields |= {"queries_at_once": at_once}
    _run(compile_forward(value.shape[3], value.dtype), fields, batch * heads * parts)
    return _convert(out, value.dtype)


def backward(
    grad_output: Float[Tensor, "batch queries d_model"],
    value: Float[Tensor, "batch pixels heads channels"],
    levels: Sequence[Level],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    needs: tuple[bool, bool, bool],
) -> tuple[
    Float[Tensor, "batch pixels heads channels"] | None,
    Float[Tensor, "batch queries heads levels points 2"] | None,
    Float[Tensor, "batch queries heads levels points"] | None,
]:
    """Compute what the backward of the reference computes, in float32; None for a gradient that is not needed."""
    from deformdetr.kernels._ms_deform_attn._numba import compile_backward

    inputs = (value, sampling_locations, attention_weights)
    if not value.numel() or not attention_weights.numel():
        by_value, by_locations, by_weights = (
            torch.zeros_like(like) if need else None for like, need in zip(inputs, needs, strict=True)
        )
        return by_value, by_locations, by_weights
    names = ("grad_value", "grad_locations", "grad_weights")
    grads = {
        name: empty_on_large_pages(like.shape, torch.float32)
        for name, like, need in zip(names, inputs, needs, strict=True)
        if need
    }
    images, _, heads, channels = value.shape
    # Levels are equal where one has several groups of points; they add to the same pixels.
    firsts = [index for index, level in enumerate(levels) if index == 0 or level != levels[index - 1]]
    fields = _describe(value, levels, sampling_locations, attention_weights, _as_floats(grad_output))
    parts = 1 if images * heads >= TASKS_PER_THREAD * torch.get_num_threads() else len(firsts)
    fields |= {**grads, "images": images, "runs": [*firsts, len(levels)], "runs_at_once": len(firsts) // parts}
    _run(compile_backward(channels, value.dtype), fields, images * heads * parts)
    by_value, by_locations, by_weights = (
        _convert(grads[name], like.dtype) if name in grads else None for name, like in zip(names, inputs, strict=True)
    )
    return by_value, by_locations, by_weights


def _describe(
    value: Tensor, levels: Sequence[Level], sampling_locations: Tensor, attention_weights: Tensor, output: Tensor
) -> dict[str, Any]:
    """Give the fields of a job that all kernels need."""
    _, queries, heads, n_levels, points = attention_weights.shape
    return {
        "value": _as_memory(value),
        "locations": _as_floats(sampling_locations),
        "weights": _as_floats(attention_weights),
        "output": output,
        "levels": list(itertools.chain.from_iterable(levels)),
        "pixels": value.shape[1],
        "queries": queries,
        "heads": heads,
        "n_levels": n_levels,
        "points": points,
    }


def _run(kernel: Any, fields: dict[str, Any], tasks: int) -> None:
    job = Job(tasks=tasks, next_task=[0], **fields)
    threads = 1 + fields["weights"].numel() * fields["value"].shape[3] // WORTH_A_THREAD
    run_at_once(kernel.address, job.address, min(threads, tasks, torch.get_num_threads()))


def _convert(result: Tensor, dtype: torch.dtype) -> Tensor:
    return result if result.dtype == dtype else empty_on_large_pages(result.shape, dtype).copy_(result)


def _as_floats(tensor: Tensor) -> Tensor:
    return _as_memory(tensor.to(torch.float32))


def _as_memory(tensor: Tensor) -> Tensor:
    """Return the tensor as the numbers that lie in its memory, one after the other."""
    return tensor.contiguous().resolve_neg()
