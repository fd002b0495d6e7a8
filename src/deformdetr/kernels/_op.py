"""The operator as PyTorch sees it: a pair of custom ops for compilers, and a faster way for eager calls.

The two custom ops, forward and backward, have fake kernels and autograd formulas, so that compilers and exporters see
each as a single node. Eager calls and the transforms of `torch.func` use autograd functions with the same formulas: a
custom op is dispatched in more time than a decoder's kernel runs, and `torch.func.grad` does not go through one.

With reference points, the operator is fused: `locations` are offsets from them and `weights` are logits. Only the
Triton kernels fuse. Elsewhere the public functions compute locations and weights first.
"""

import os
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deformdetr import _compat
from deformdetr._memory import check_storages
from deformdetr._tracing import is_tracing
from deformdetr.kernels import _discrete, _gather, _numba, _reference
from deformdetr.kernels._checks import check_arguments, check_output, check_visible_storages
from deformdetr.kernels._levels import MOST_POINTS, Pyramid, place_levels, read_on_cpu
from deformdetr.kernels._sampling import locate_samples, mask_padding, normalize_attention


def choose_forward(backend: str, method: str, *tensors: Tensor) -> Callable[..., Tensor]:
    """Return the function that runs the forward: the cheapest that every active compiler, mode and transform sees.

    Raises:
        ValueError: If there is no such backend or method.
    """
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend must be 'auto' or 'reference', got {backend!r}")
    if method not in ("bilinear", "discrete"):
        raise ValueError(f"method must be 'bilinear' or 'discrete', got {method!r}")
    if method == "discrete":
        return partial(_run_plainly, _discrete.forward)
    # Custom ops have no such derivatives, and drop tangents in silence.
    is_differentiated = not torch.compiler.is_compiling() and (
        _compat.has_higher_derivatives() or _compat.has_tangent(*tensors)
    )
    # `torch.jit.trace` records operations that serve other sizes, too.
    if backend == "reference" or is_differentiated or is_tracing():
        return partial(_run_plainly, _reference.forward)
    if _needs_op(tensors):
        return forward_op
    run: Callable[..., Tensor] = (_TransformedForward if _compat.is_transformed() else _Forward).apply
    return run


def choose_backward(*tensors: Tensor | None) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the function that runs the backward, chosen as for the forward."""
    if _needs_op(tensors):
        return backward_op
    if not torch.is_grad_enabled() and not _compat.is_transformed():
        return _backward
    run: Callable[..., Any] = (_TransformedBackward if _compat.is_transformed() else _Backward).apply
    return run


def _needs_op(tensors: tuple[Tensor | None, ...]) -> bool:
    """Return whether a compiler, a mode or a subclass of tensors has to see the custom op."""
    if torch.compiler.is_compiling():
        return True
    for tensor in tensors:
        if tensor is not None and type(tensor) not in (Tensor, torch.nn.Parameter):
            return True
    has_modes = _compat.has_dispatch_modes()
    # If PyTorch hides its modes, one may be active. Transforms of `torch.func` do not go through the op.
    return not _compat.is_transformed() if has_modes is None else has_modes


def can_fuse(value: Tensor, offsets: Tensor, logits: Tensor, references: Tensor) -> bool:
    """Return whether a kernel takes offsets and logits. `torch.func` and forward mode need the separate operations."""
    inputs = (value, offsets, logits, references)
    return (
        _runs_triton(*inputs)
        and logits.shape[4] <= MOST_POINTS
        and not is_tracing()
        and (torch.compiler.is_compiling() or not (_compat.is_transformed() or _compat.has_tangent(*inputs)))
    )


def _runs_triton(*tensors: Tensor) -> bool:
    """Return whether the Triton kernels run: on GPUs, and interpreted on CPUs where `TRITON_INTERPRET=1` is set."""
    device = tensors[0].device.type
    # The variable is read anew at every call: torch.compile warns of caches, and reading takes a microsecond.
    if device != "cuda" and (device != "cpu" or os.environ.get("TRITON_INTERPRET") != "1"):
        return False
    return torch.float64 not in [tensor.dtype for tensor in tensors]


def _choose_kernel(value: Tensor, locations: Tensor, weights: Tensor) -> ModuleType:
    """Return the module that runs where Triton does not."""
    if value.device.type != "cpu" or torch.float64 in (value.dtype, locations.dtype, weights.dtype):
        return _reference
    return _numba if _numba.is_usable(value.shape[3], value.dtype) else _gather


# In the words of PyTorch's dispatcher: `Inputs`, apart from its last field, which exported programs may lack.
_INPUTS = (
    "Tensor value, Tensor? spatial_shapes, SymInt[] sizes, SymInt[] repeats, Tensor locations, Tensor weights, "
    "Tensor? references, Tensor? padding_mask, bool deterministic"
)
_NEEDS = "bool needs_value, bool needs_locations, bool needs_weights, bool needs_references"


class Inputs(NamedTuple):
    """Arguments of the operator in the order of the op."""

    value: Tensor
    spatial_shapes: Tensor | None
    sizes: list[int]
    repeats: list[int]
    locations: Tensor
    weights: Tensor
    references: Tensor | None
    padding_mask: Tensor | None
    deterministic: bool
    half_sums: bool = False

    def pyramid(self) -> Pyramid:
        """Return the levels. Packages compiled ahead of time pass None for empty lists."""
        return Pyramid(self.spatial_shapes, self.sizes or [], self.repeats or [])


def _run_plainly(forward: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Run a forward in operations that autograd, compilers and `torch.jit.trace` see."""
    inputs = Inputs(*arguments)
    check_visible_storages(inputs.value, inputs.locations, inputs.weights)
    levels = place_levels(inputs.pyramid(), inputs.value.shape[1])
    return forward(inputs.value, levels, inputs.locations, inputs.weights)


def _check(inputs: Inputs) -> None:
    """Check the arguments of an op, which anyone may call."""
    value, *_, locations, weights, references, padding_mask, deterministic, _ = inputs
    fused = references is not None
    check_arguments(value, inputs.pyramid(), locations, weights, references, padding_mask, fused=fused)
    if fused and deterministic:
        raise ValueError("the fused op has no deterministic gradients: pass sampling_locations in place of offsets")
    if fused and weights.shape[4] > MOST_POINTS:
        raise ValueError(f"the fused op takes at most {MOST_POINTS} points per level, got {weights.shape[4]}")


def _check_to_run(inputs: Inputs) -> None:
    """Check the arguments, and that a fused call is for the Triton kernels, which alone take reference points."""
    _check(inputs)
    value, references = inputs.value, inputs.references
    if references is not None and not _runs_triton(value, inputs.locations, inputs.weights, references):
        raise ValueError(f"the fused op runs on GPUs and not in float64, got {value.dtype} on {value.device}")


def _run_forward(ctx: Any, *arguments: Any) -> Tensor:
    """Run the kernel for the device and the dtypes, on arguments that have been checked.

    Unless `ctx` is None, what the backward needs is saved in it.
    """
    value, *_, locations, weights, references, padding_mask, _, _ = inputs = Inputs(*arguments)
    check_storages(value, locations, weights, references, padding_mask)
    # Only Triton kernels fuse, and a fused call comes here only where they run.
    if references is not None or _runs_triton(value, locations, weights):
        # Imported here, because triton takes longer to import than the whole of this library.
        from deformdetr.kernels import _triton

        sampling = _triton.Sampling(locations, weights, references, padding_mask)
        output = _triton.forward(value, inputs.pyramid(), sampling)
    else:
        kernel = _choose_kernel(value, locations, weights)
        levels = place_levels(read_on_cpu(inputs.pyramid(), value.shape[1]), value.shape[1])
        output = kernel.forward(value, levels, locations, weights)
    if ctx is not None:
        _save_forward(ctx, inputs, output)
    return output


def _forward(*arguments: Any) -> Tensor:
    inputs = Inputs(*arguments)
    _check_to_run(inputs)
    return _run_forward(None, *inputs)


def _backward(grad_output: Tensor, output: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations, weights and references; those that are not needed are empty.

    `output` is the result of the forward if fused, else None.
    """
    inputs, needs = _split(arguments)
    _check_to_run(inputs)
    value, *_, locations, weights, references, padding_mask, deterministic, half_sums = inputs
    check_output("grad_output", grad_output, value, weights)
    if references is not None:
        check_output("output", output, value, weights)
    check_storages(grad_output, output, value, locations, weights, references, padding_mask)
    if references is not None or _runs_triton(value, locations, weights):
        from deformdetr.kernels import _triton

        sampling = _triton.Sampling(locations, weights, references, padding_mask)
        wanted = _triton.Needs(*needs)._replace(references=needs[3] and references is not None)
        sums = _triton.Sums(deterministic, half_sums)
        grads = _triton.backward(grad_output, output, value, inputs.pyramid(), sampling, wanted, sums)
    else:
        kernel = _choose_kernel(value, locations, weights)
        levels = place_levels(read_on_cpu(inputs.pyramid(), value.shape[1]), value.shape[1])
        grads = *kernel.backward(grad_output, value, levels, locations, weights, needs[:3]), None
    return _replace_none(grads, inputs)


def _split(arguments: tuple[Any, ...]) -> tuple[Inputs, tuple[bool, ...]]:
    """Return the inputs and which gradients are needed, from the arguments of the backward after the first two."""
    return Inputs(*arguments[:9], *arguments[13:]), arguments[9:13]


def _replace_none(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None], inputs: Inputs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with empty tensors in place of None, which an op cannot return."""
    grad_value, grad_locations, grad_weights, grad_references = (
        inputs.value.new_empty(0, dtype=None if like is None else like.dtype) if grad is None else grad
        for grad, like in zip(grads, _differentiable(inputs), strict=True)
    )
    return grad_value, grad_locations, grad_weights, grad_references


def _differentiable(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return inputs.value, inputs.locations, inputs.weights, inputs.references


forward_op = torch.library.custom_op(
    "deformdetr::ms_deform_attn", _forward, mutates_args=(), schema=f"({_INPUTS}, bool half_sums=False) -> Tensor"
)
backward_op = torch.library.custom_op(
    "deformdetr::ms_deform_attn_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad_output, Tensor? output, {_INPUTS}, {_NEEDS}, bool half_sums=False) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)


@forward_op.register_fake
def _(*arguments: Any) -> Tensor:
    inputs = Inputs(*arguments)
    _check(inputs)
    batch, queries, heads = inputs.weights.shape[:3]
    return inputs.value.new_empty(batch, queries, heads * inputs.value.shape[3])


@backward_op.register_fake
def _(grad_output: Tensor, output: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, needs = _split(arguments)
    _check(inputs)
    grad_value, grad_locations, grad_weights, grad_references = (
        like.new_empty(like.shape) if need and like is not None else None
        for like, need in zip(_differentiable(inputs), needs, strict=True)
    )
    return _replace_none((grad_value, grad_locations, grad_weights, grad_references), inputs)


def _save(ctx: Any, tensor: Tensor | None, inputs: Inputs) -> None:
    """Save a tensor and the inputs for `_load`."""
    value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask, *settings = inputs
    ctx.save_for_backward(tensor, value, spatial_shapes, locations, weights, references, padding_mask)
    ctx.settings = sizes, repeats, settings


def _load(ctx: Any) -> tuple[Any, Inputs]:
    tensor, value, spatial_shapes, locations, weights, references, padding_mask = ctx.saved_tensors
    sizes, repeats, settings = ctx.settings
    return tensor, Inputs(
        value, spatial_shapes, sizes, repeats, locations, weights, references, padding_mask, *settings
    )


# PyTorch passes the arguments of a custom op's `setup_context` by these names.
def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    given = Inputs(*inputs)
    # Only the fused backward reads the output.
    _save(ctx, None if given.references is None else output, given)


def _differentiate_forward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    output, inputs = _load(ctx)
    needs_value, _, _, _, needs_locations, needs_weights, needs_references, *_ = ctx.needs_input_grad
    needs = (needs_value, needs_locations, needs_weights, needs_references)
    run = choose_backward(grad_output, *_differentiable(inputs))
    grads = run(grad_output, output, *inputs[:9], *needs, inputs.half_sums)
    grad_value, *others = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return grad_value, None, None, None, *others, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    given, ctx.needs = _split(inputs[2:])
    _save(ctx, inputs[0], given)


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate twice, slowly: autograd goes through the first derivative of the reference."""
    grad_output, inputs = _load(ctx)
    given = [grad_output, *(tensor for tensor in _differentiable(inputs) if tensor is not None)]
    check_visible_storages(*given)
    levels = place_levels(inputs.pyramid(), inputs.value.shape[1])
    with torch.enable_grad():
        grad_output, *leaves = (tensor.detach().requires_grad_() for tensor in given)
        sampled = leaves
        if inputs.references is not None:
            value, offsets, logits, references = leaves
            locations = locate_samples(references, offsets, inputs.pyramid())
            sampled = [mask_padding(value, inputs.padding_mask), locations, normalize_attention(logits)]
        first: Any = _reference.backward(grad_output, sampled[0], levels, sampled[1], sampled[2])
        if inputs.references is not None:
            first = torch.autograd.grad(sampled, leaves, first, create_graph=True)
        # Gradients that were not needed are empty, and there is none of references without references.
        wanted = [(output, grad) for output, grad, need in zip(first, grads, ctx.needs, strict=False) if need]
        grad_grad_output, *seconds = torch.autograd.grad(
            [output for output, _ in wanted], [grad_output, *leaves], [grad for _, grad in wanted], allow_unused=True
        )
    grad_value, *grad_others = (*seconds, None)[:4]
    return grad_grad_output, None, grad_value, None, None, None, *grad_others, *[None] * 7


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
        for grad, need in zip(_TransformedBackward.apply(*folded), inputs[11:15], strict=True)
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
    # No `setup_context`, for which PyTorch inspects the signature at every call.
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
