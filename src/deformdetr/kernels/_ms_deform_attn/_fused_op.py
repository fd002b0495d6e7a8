"""The fused operator as PyTorch knows it, where kernels fuse: custom ops, and a short way for eager calls."""

from typing import Any

import torch
from torch import Tensor

from deformdetr._memory import check_storages
from deformdetr.kernels._ms_deform_attn._checks import (
    check_levels,
    check_output,
    check_padding,
    check_references,
    check_samples,
)
from deformdetr.kernels._ms_deform_attn._dispatch import runs_triton
from deformdetr.kernels._ms_deform_attn._levels import MOST_POINTS, Pyramid
from deformdetr.kernels._ms_deform_attn._op import choose_way, eager_function

# What locations and weights are called where they are made inside.
NAMES = ("sampling_offsets", "attention_logits")


def attend(
    value: Tensor,
    pyramid: Pyramid,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
) -> Tensor:
    """Call the fused operator, with as little in between as the tensors allow."""
    tensors = (reference_points, sampling_offsets, attention_logits)
    # Transforms of `torch.func` take the parts instead.
    call = choose_way((value, *tensors), _Forward, _Forward, fused_forward_op)
    out: Tensor = call(value, pyramid.on_device, pyramid.on_host, *tensors, padding_mask)
    return out


def _run_forward(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
) -> Tensor:
    """Run the forward kernel with all that it fuses, on arguments that have been checked."""
    # Imported here, because triton takes longer to import than the whole of this library.
    from deformdetr.kernels._ms_deform_attn import _gpu

    check_storages(value, reference_points, sampling_offsets, attention_logits, padding_mask)
    pyramid = Pyramid(spatial_shapes, spatial_shapes_on_host or [], [])
    sampling = _gpu.Sampling(sampling_offsets, attention_logits, reference_points, padding_mask)
    return _gpu.forward(value, pyramid, sampling)


def _check_and_run_forward(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
) -> Tensor:
    """Run the forward for whoever calls the op itself."""
    tensors = (reference_points, sampling_offsets, attention_logits, padding_mask)
    _check(value, Pyramid(spatial_shapes, spatial_shapes_on_host or [], []), *tensors)
    return _run_forward(value, spatial_shapes, spatial_shapes_on_host, *tensors)


def _check_tensors(
    value: Tensor, pyramid: Pyramid, references: Tensor, offsets: Tensor, logits: Tensor, padding_mask: Tensor | None
) -> None:
    check_samples(value, offsets, logits, names=NAMES)
    check_levels(pyramid, value, logits.shape[3])
    check_references(references, logits)
    check_padding(padding_mask, value)


def _check(
    value: Tensor, pyramid: Pyramid, references: Tensor, offsets: Tensor, logits: Tensor, padding_mask: Tensor | None
) -> None:
    _check_tensors(value, pyramid, references, offsets, logits, padding_mask)
    if logits.shape[4] > MOST_POINTS:
        raise ValueError(f"the fused op takes at most {MOST_POINTS} points per level, got {logits.shape[4]}")
    if not runs_triton(value, references, offsets, logits):
        raise ValueError(f"the fused op runs on GPUs and not in float64, got {value.dtype} on {value.device}")


def _run_backward(
    grad_output: Tensor,
    output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
    needs_value: bool,  # noqa: FBT001  # Ops take arguments by position.
    needs_references: bool,  # noqa: FBT001
    needs_offsets: bool,  # noqa: FBT001
    needs_logits: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernel; a gradient that is not needed is empty."""
    from deformdetr.kernels._ms_deform_attn import _gpu

    pyramid = Pyramid(spatial_shapes, spatial_shapes_on_host or [], [])
    _check(value, pyramid, reference_points, sampling_offsets, attention_logits, padding_mask)
    check_output("output", output, value, attention_logits)
    check_output("grad_output", grad_output, value, attention_logits)
    check_storages(grad_output, output, value, reference_points, sampling_offsets, attention_logits, padding_mask)
    sampling = _gpu.Sampling(sampling_offsets, attention_logits, reference_points, padding_mask)
    needs = _gpu.Needs(needs_value, needs_offsets, needs_logits, needs_references)
    grads = _gpu.backward(grad_output, output, value, pyramid, sampling, needs, deterministic=False)
    grads = (grads[0], grads[3], grads[1], grads[2])
    inputs = (value, reference_points, sampling_offsets, attention_logits)
    by_value, by_references, by_offsets, by_logits = (
        like.new_empty(0) if grad is None else grad for grad, like in zip(grads, inputs, strict=True)
    )
    return by_value, by_references, by_offsets, by_logits


fused_forward_op = torch.library.custom_op("deformdetr::fused_ms_deform_attn", _check_and_run_forward, mutates_args=())
fused_backward_op = torch.library.custom_op("deformdetr::fused_ms_deform_attn_backward", _run_backward, mutates_args=())


@fused_forward_op.register_fake
def _(
    value: Tensor, on_device: Any, on_host: Any, references: Tensor, offsets: Tensor, logits: Tensor, mask: Any
) -> Tensor:
    _check_tensors(value, Pyramid(on_device, on_host, []), references, offsets, logits, mask)
    batch, queries = offsets.shape[:2]
    return value.new_empty(batch, queries, value.shape[2] * value.shape[3])


@fused_backward_op.register_fake
def _(
    grad_output: Tensor,
    output: Tensor,
    value: Tensor,
    on_device: Any,
    on_host: Any,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    padding_mask: Any,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_tensors(value, Pyramid(on_device, on_host, []), references, offsets, logits, padding_mask)
    by_value, by_references, by_offsets, by_logits = (
        like.new_empty(like.shape if need else (0,))
        for like, need in zip((value, references, offsets, logits), needs, strict=True)
    )
    return by_value, by_references, by_offsets, by_logits


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, on_device, on_host, *rest = inputs
    ctx.save_for_backward(output, value, on_device, *rest)
    ctx.on_host = on_host


def _differentiate_forward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    output, value, on_device, *rest = ctx.saved_tensors
    by_value, _, _, *by_rest, _ = ctx.needs_input_grad
    needs = (by_value, *by_rest)
    call = choose_way((grad_output, value, *rest[:3]), _Backward, _Backward, fused_backward_op)
    grads = call(grad_output, output, value, on_device, ctx.on_host, *rest, *needs)
    by_value, *by_rest = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return by_value, None, None, *by_rest, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, _, value, on_device, on_host, *tensors = inputs[:9]
    ctx.save_for_backward(grad_output, value, on_device, *tensors)
    ctx.rest = on_host, inputs[9:]


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate twice, slowly: through the parts, of which the operator is the reference."""
    # The parts call this module.
    from deformdetr.kernels._ms_deform_attn._functional import fused_ms_deform_attn

    grad_output, value, on_device, *tensors, padding_mask = ctx.saved_tensors
    on_host, needs = ctx.rest
    shapes = list(zip(on_host[::2], on_host[1::2], strict=True)) if on_device is None else on_device
    with torch.enable_grad():
        grad_output, *inputs = (t.detach().requires_grad_() for t in (grad_output, value, *tensors))
        value, references, offsets, logits = inputs
        out = fused_ms_deform_attn(value, shapes, references, offsets, logits, padding_mask, backend="reference")
        first = torch.autograd.grad(out, inputs, grad_output, create_graph=True)
        wanted = [(by, grad) for by, grad, need in zip(first, grads, needs, strict=True) if need]
        by_output, by_value, *by_rest = torch.autograd.grad(
            [by for by, _ in wanted], [grad_output, *inputs], [grad for _, grad in wanted], allow_unused=True
        )
    return by_output, None, by_value, None, None, *by_rest, None, None, None, None, None


fused_forward_op.register_autograd(_differentiate_forward, setup_context=_save_forward)
fused_backward_op.register_autograd(_differentiate_backward, setup_context=_save_backward)


_Forward = eager_function("FusedMSDeformAttn", _run_forward, _save_forward, _differentiate_forward)
_Backward = eager_function("FusedMSDeformAttnBackward", _run_backward, _save_backward, _differentiate_backward)
