"""The operator as PyTorch sees it: a pair of custom ops for compilers, and a faster way for eager calls.

The two custom ops, forward and backward, have fake kernels and autograd formulas, so that compilers and exporters see
each as a single node. Eager calls and the transforms of `torch.func` use autograd functions with the same formulas: a
custom op is dispatched in more time than a decoder's kernel runs, and `torch.func.grad` does not go through one.

With reference points, the operator is fused: `locations` are offsets from them and `weights` are logits. Only the
Triton kernels fuse. Elsewhere the public functions compute locations and weights first.
"""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from deformdetr import _compat
from deformdetr._memory import check_storages
from deformdetr._tracing import is_tracing
from deformdetr.kernels import _gather, _numba, _reference
from deformdetr.kernels._checks import check_arguments, check_output
from deformdetr.kernels._levels import MOST_POINTS, Pyramid, place_levels, read_on_cpu
from deformdetr.kernels._sampling import locate_samples, mask_padding, normalize_attention


def choose_forward(backend: str, *tensors: Tensor) -> Callable[..., Tensor]:
    """Return the function that runs the forward: the cheapest that every active compiler, mode and transform sees.

    Raises:
        ValueError: If there is no such backend.
    """
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend must be 'auto' or 'reference', got {backend!r}")
    # `torch.jit.trace` records operations that serve other sizes, too.
    if backend == "reference" or is_tracing():
        return _run_reference
    return _choose(tensors, _Forward, _TransformedForward, forward_op)


def choose_backward(*tensors: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the function that runs the backward, chosen as for the forward."""
    return _choose(tensors, _Backward, _TransformedBackward, backward_op)


def _choose(
    tensors: tuple[Tensor, ...],
    eager: type[torch.autograd.Function],
    transformed: type[torch.autograd.Function],
    op: Callable[..., Any],
) -> Callable[..., Any]:
    if torch.compiler.is_compiling():
        return op
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return op
    has_modes, is_transformed = _compat.has_dispatch_modes(), _compat.is_transformed()
    # If PyTorch hides its modes, one may be active that has to see the op. No transform takes the op.
    if has_modes or (has_modes is None and not is_transformed):
        return op
    way: Callable[..., Any] = (transformed if is_transformed else eager).apply
    return way


def is_fused(value: Tensor, offsets: Tensor, logits: Tensor, references: Tensor) -> bool:
    """Return whether one kernel takes offsets and logits. Transforms of `torch.func` need the separate operations."""
    return (
        _runs_triton(value, offsets, logits, references)
        and logits.shape[4] <= MOST_POINTS
        and not is_tracing()
        and (torch.compiler.is_compiling() or not _compat.is_transformed())
    )


def _runs_triton(value: Tensor, locations: Tensor, weights: Tensor, references: Tensor | None) -> bool:
    """Return whether the Triton kernels run: on GPUs, and interpreted on CPUs where `TRITON_INTERPRET=1` is set."""
    home = value.device.type
    # The variable is read anew at every call: torch.compile warns of caches, and reading takes a microsecond.
    if home != "cuda" and (home != "cpu" or os.environ.get("TRITON_INTERPRET") != "1"):
        return False
    dtypes = (value.dtype, locations.dtype, weights.dtype, None if references is None else references.dtype)
    return torch.float64 not in dtypes


def _choose_kernel(value: Tensor, locations: Tensor, weights: Tensor) -> ModuleType:
    """Return the module that computes where Triton does not."""
    if value.device.type != "cpu" or torch.float64 in (value.dtype, locations.dtype, weights.dtype):
        return _reference
    return _numba if _numba.is_usable(value.shape[3], value.dtype) else _gather


def _run_reference(
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: list[int],
    repeats: list[int],
    locations: Tensor,
    weights: Tensor,
    *_: Any,
) -> Tensor:
    """Run the reference by operations that autograd, compilers and `torch.jit.trace` go through."""
    _check_visible_storages(value, locations, weights)
    levels = place_levels(Pyramid(spatial_shapes, sizes, repeats), value.shape[1])
    return _reference.forward(value, levels, locations, weights)


def _check_visible_storages(*tensors: Tensor) -> None:
    """Check storages before PyTorch's own operations read them, unless a compiler or transform hides the tensors.

    Raises:
        ValueError: If a storage does not hold its tensor.
    """
    if torch.compiler.is_compiling() or is_tracing():
        return
    if all(type(tensor) in (Tensor, torch.nn.Parameter) and _compat.has_storage(tensor) for tensor in tensors):
        check_storages(*tensors)


def _check(
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: list[int],
    repeats: list[int],
    locations: Tensor,
    weights: Tensor,
    references: Tensor | None,
    padding_mask: Tensor | None,
    deterministic: bool,  # noqa: FBT001  # Ops take arguments by position.
) -> None:
    """Check the arguments of an op, which anyone may call."""
    pyramid = Pyramid(spatial_shapes, sizes or [], repeats or [])
    fused = references is not None
    check_arguments(value, pyramid, locations, weights, references, padding_mask, fused=fused)
    if fused and deterministic:
        raise ValueError("the fused op has no deterministic gradients: pass sampling_locations in place of offsets")
    if fused and weights.shape[4] > MOST_POINTS:
        raise ValueError(f"the fused op takes at most {MOST_POINTS} points per level, got {weights.shape[4]}")


def _run_forward(
    ctx: Any,
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: list[int],
    repeats: list[int],
    locations: Tensor,
    weights: Tensor,
    references: Tensor | None,
    padding_mask: Tensor | None,
    deterministic: bool,  # noqa: FBT001
) -> Tensor:
    """Run the kernel that the device and the dtypes ask for, on arguments that have been checked.

    Unless `ctx` is None, what the backward needs is saved in it. Packages compiled ahead of time pass None for empty
    lists.
    """
    check_storages(value, locations, weights, references, padding_mask)
    pyramid = Pyramid(spatial_shapes, sizes or [], repeats or [])
    if _runs_triton(value, locations, weights, references):
        # Imported here, because triton takes longer to import than the whole of this library.
        from deformdetr.kernels import _triton

        output = _triton.forward(value, pyramid, _triton.Sampling(locations, weights, references, padding_mask))
    elif references is not None:
        raise ValueError(f"the fused op runs on GPUs and not in float64, got {value.dtype} on {value.device}")
    else:
        levels = place_levels(read_on_cpu(pyramid, value.shape[1]), value.shape[1])
        output = _choose_kernel(value, locations, weights).forward(value, levels, locations, weights)
    if ctx is not None:
        inputs = (value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask, deterministic)
        _save_forward(ctx, inputs, output)
    return output


def _forward(
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: list[int],
    repeats: list[int],
    locations: Tensor,
    weights: Tensor,
    references: Tensor | None,
    padding_mask: Tensor | None,
    deterministic: bool,  # noqa: FBT001
) -> Tensor:
    inputs = (value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask, deterministic)
    _check(*inputs)
    return _run_forward(None, *inputs)


def _backward(
    grad_output: Tensor,
    output: Tensor | None,
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: list[int],
    repeats: list[int],
    locations: Tensor,
    weights: Tensor,
    references: Tensor | None,
    padding_mask: Tensor | None,
    deterministic: bool,  # noqa: FBT001
    needs_value: bool,  # noqa: FBT001
    needs_locations: bool,  # noqa: FBT001
    needs_weights: bool,  # noqa: FBT001
    needs_references: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations, weights and references; those that are not needed are empty.

    `output` is that of the forward if fused, else None.
    """
    _check(value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask, deterministic)
    check_output("grad_output", grad_output, value, weights)
    if references is not None:
        check_output("output", output, value, weights)
    check_storages(grad_output, output, value, locations, weights, references, padding_mask)
    pyramid = Pyramid(spatial_shapes, sizes or [], repeats or [])
    needs = (needs_value, needs_locations, needs_weights)
    if _runs_triton(value, locations, weights, references):
        from deformdetr.kernels import _triton

        sampling = _triton.Sampling(locations, weights, references, padding_mask)
        wanted = _triton.Needs(*needs, needs_references and references is not None)
        grads = _triton.backward(grad_output, output, value, pyramid, sampling, wanted, deterministic=deterministic)
    elif references is not None:
        raise ValueError(f"the fused op runs on GPUs and not in float64, got {value.dtype} on {value.device}")
    else:
        levels = place_levels(read_on_cpu(pyramid, value.shape[1]), value.shape[1])
        kernel = _choose_kernel(value, locations, weights)
        grads = *kernel.backward(grad_output, value, levels, locations, weights, needs), None
    by_value, by_locations, by_weights, by_references = (
        value.new_empty(0, dtype=None if like is None else like.dtype) if grad is None else grad
        for grad, like in zip(grads, (value, locations, weights, references), strict=True)
    )
    return by_value, by_locations, by_weights, by_references


forward_op = torch.library.custom_op("deformdetr::ms_deform_attn", _forward, mutates_args=())
backward_op = torch.library.custom_op("deformdetr::ms_deform_attn_backward", _backward, mutates_args=())


@forward_op.register_fake
def _(value: Tensor, *inputs: Any) -> Tensor:
    _check(value, *inputs)
    batch, queries, heads = inputs[4].shape[:3]
    return value.new_empty(batch, queries, heads * value.shape[3])


@backward_op.register_fake
def _(grad_output: Tensor, output: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, needs = inputs[:9], inputs[9:]
    _check(*inputs)
    value, _, _, _, locations, weights, references, _, _ = inputs
    by_value, by_locations, by_weights, by_references = (
        like.new_empty(like.shape)
        if need and like is not None
        else value.new_empty(0, dtype=None if like is None else like.dtype)
        for like, need in zip((value, locations, weights, references), needs, strict=True)
    )
    return by_value, by_locations, by_weights, by_references


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask, deterministic = inputs
    # Only the fused backward reads the output.
    kept = None if references is None else output
    ctx.save_for_backward(kept, value, spatial_shapes, locations, weights, references, padding_mask)
    ctx.rest = sizes, repeats, deterministic


def _differentiate_forward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    output, value, spatial_shapes, locations, weights, references, padding_mask = ctx.saved_tensors
    sizes, repeats, deterministic = ctx.rest
    needs_value, _, _, _, needs_locations, needs_weights, needs_references, _, _ = ctx.needs_input_grad
    needs = (needs_value, needs_locations, needs_weights, needs_references)
    tensors = (grad_output, value, locations, weights)
    run = choose_backward(*tensors) if references is None else choose_backward(*tensors, references)
    grads = run(
        grad_output, output, value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask,
        deterministic, *needs,
    )  # fmt: skip
    by_value, *others = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return by_value, None, None, None, *others, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, _, value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask = inputs[:10]
    ctx.save_for_backward(grad_output, value, spatial_shapes, locations, weights, references, padding_mask)
    ctx.rest = sizes, repeats, inputs[11:]


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate twice, slowly: autograd goes through the first derivative of the reference."""
    grad_output, value, spatial_shapes, locations, weights, references, padding_mask = ctx.saved_tensors
    sizes, repeats, needs = ctx.rest
    given = [grad_output, value, locations, weights, *([] if references is None else [references])]
    _check_visible_storages(*given)
    pyramid = Pyramid(spatial_shapes, sizes or [], repeats or [])
    levels = place_levels(pyramid, value.shape[1])
    with torch.enable_grad():
        grad_output, *inputs = (tensor.detach().requires_grad_() for tensor in given)
        sampled = inputs
        if references is not None:
            value, offsets, logits, references = inputs
            locations = locate_samples(references, offsets, pyramid)
            sampled = [mask_padding(value, padding_mask), locations, normalize_attention(logits)]
        first = _reference.backward(grad_output, sampled[0], levels, sampled[1], sampled[2])
        if references is not None:
            first = torch.autograd.grad(sampled, inputs, first, create_graph=True)
        # Those that were not needed are empty.
        wanted = [(by, grad) for by, grad, need in zip(first, grads, needs, strict=False) if need]
        by_output, by_value, *others = torch.autograd.grad(
            [by for by, _ in wanted], [grad_output, *inputs], [grad for _, grad in wanted], allow_unused=True
        )
    by_locations, by_weights, by_references = (*others, None)[:3]
    return by_output, None, by_value, None, None, None, by_locations, by_weights, by_references, *[None] * 6


def _vmap_forward(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
    folded = _fold(info.batch_size, in_dims, inputs)
    return _TransformedForward.apply(*folded).unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(
    info: Any, in_dims: tuple[Any, ...], *inputs: Any
) -> tuple[tuple[Tensor, ...], tuple[int, int, int, int]]:
    folded = _fold(info.batch_size, in_dims, inputs)
    # Gradients that are not needed are empty, and have no batch to split.
    grads = tuple(
        grad.unflatten(0, (info.batch_size, -1)) if need else grad.new_empty(info.batch_size, 0)
        for grad, need in zip(_TransformedBackward.apply(*folded), inputs[11:], strict=True)
    )
    return grads, (0, 0, 0, 0)


def _fold(size: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """Make the mapped axis part of the batch. Tensors that are not mapped are repeated, spatial shapes kept.

    Raises:
        ValueError: If spatial shapes are mapped.
    """
    folded: list[Any] = []
    for axis, given in zip(in_dims, inputs, strict=True):
        if isinstance(given, Tensor) and given.is_floating_point():
            mapped = given.expand(size, *given.shape) if axis is None else given.movedim(axis, 0)
            folded.append(mapped.flatten(0, 1))
        elif isinstance(given, Tensor) and axis is not None:
            raise ValueError("vmap cannot map over spatial_shapes: all maps must have the same levels")
        else:
            folded.append(given)
    return folded


forward_op.register_autograd(_differentiate_forward, setup_context=_save_forward)
backward_op.register_autograd(_differentiate_backward, setup_context=_save_backward)


class _Forward(torch.autograd.Function):
    # No `setup_context`: PyTorch would inspect the signature at every call.
    forward = staticmethod(_run_forward)
    backward = staticmethod(_differentiate_forward)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grads = _backward(*inputs)
        _save_backward(ctx, inputs, grads)
        return grads

    backward = staticmethod(_differentiate_backward)


class _TransformedForward(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _run_forward(None, *inputs)

    setup_context = staticmethod(_save_forward)
    backward = staticmethod(_differentiate_forward)
    vmap = staticmethod(_vmap_forward)


class _TransformedBackward(torch.autograd.Function):
    forward = staticmethod(_backward)
    setup_context = staticmethod(_save_backward)
    backward = staticmethod(_differentiate_backward)
    vmap = staticmethod(_vmap_backward)
