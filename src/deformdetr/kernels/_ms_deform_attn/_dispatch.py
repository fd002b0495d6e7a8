"""Which kernel runs where: Triton's on GPUs, on CPUs Numba's or what replaces them, the reference for the rest."""

import os

import torch
from torch import Tensor

from deformdetr._memory import check_storages
from deformdetr.kernels._ms_deform_attn import _cpu, _gather, _reference
from deformdetr.kernels._ms_deform_attn._levels import Pyramid, place_levels, settle
from deformdetr.kernels._ms_deform_attn._probe import has_kernels


def forward(value: Tensor, pyramid: Pyramid, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Run the forward on the device of the value."""
    check_storages(value, sampling_locations, attention_weights)
    if runs_triton(value, sampling_locations, attention_weights):
        # Imported here, because triton takes longer to import than the whole of this library.
        from deformdetr.kernels._ms_deform_attn import _gpu

        return _gpu.forward(value, pyramid, _gpu.Sampling(sampling_locations, attention_weights))
    levels = place_levels(settle(pyramid, value.shape[1]), value.shape[1])
    if _runs_on_cpu(value, sampling_locations, attention_weights):
        run = _cpu.forward if has_kernels(value.shape[3], value.dtype) else _gather.forward
        return run(value, levels, sampling_locations, attention_weights)
    return _reference.forward(value, levels, sampling_locations, attention_weights)


def backward(
    grad_output: Tensor,
    value: Tensor,
    pyramid: Pyramid,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    needs: tuple[bool, bool, bool],
    *,
    deterministic: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run the backward; gradients of value, locations and weights that are not needed are None."""
    check_storages(grad_output, value, sampling_locations, attention_weights)
    if runs_triton(value, sampling_locations, attention_weights):
        from deformdetr.kernels._ms_deform_attn import _gpu

        sampling = _gpu.Sampling(sampling_locations, attention_weights)
        return _gpu.backward(
            grad_output, None, value, pyramid, sampling, _gpu.Needs(*needs), deterministic=deterministic
        )[:3]
    levels = place_levels(settle(pyramid, value.shape[1]), value.shape[1])
    if _runs_on_cpu(value, sampling_locations, attention_weights):
        run = _cpu.backward if has_kernels(value.shape[3], value.dtype) else _gather.backward
        return run(grad_output, value, levels, sampling_locations, attention_weights, needs)
    grads = _reference.backward(grad_output, value, levels, sampling_locations, attention_weights)
    by_value, by_locations, by_weights = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return by_value, by_locations, by_weights


def runs_triton(*tensors: Tensor) -> bool:
    """Tell whether Triton's kernels serve these tensors: on GPUs, in no more precision than float32.

    Where `TRITON_INTERPRET=1` is set, which runs kernels without a GPU, they serve CPU tensors too.
    """
    home = tensors[0].device.type
    return (home == "cuda" or (home == "cpu" and _is_interpreted())) and not _has_float64(*tensors)


def _runs_on_cpu(*tensors: Tensor) -> bool:
    return tensors[0].device.type == "cpu" and not _has_float64(*tensors)


def _has_float64(*tensors: Tensor) -> bool:
    return any(tensor.dtype == torch.float64 for tensor in tensors)


def _is_interpreted() -> bool:
    # Not cached: torch.compile warns of caches, and looking it up takes a microsecond.
    return os.environ.get("TRITON_INTERPRET") == "1"
