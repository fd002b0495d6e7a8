"""The operator as PyTorch knows it: custom ops for compilers, and a short way for eager calls.

Two custom ops, forward and backward, carry fake kernels and autograd formulas, so that compilation and export see them
as single nodes. Eager calls and the transforms of `torch.func` take two autograd functions of the same formulas: the
dispatch of a custom op takes longer than a decoder's kernel, and `torch.func.grad` does not go through one.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deformdetr import _compat
from deformdetr._memory import check_storages
from deformdetr._tracing import is_tracing
from deformdetr.kernels._ms_deform_attn import _dispatch, _reference
from deformdetr.kernels._ms_deform_attn._checks import check_levels, check_output, check_samples
from deformdetr.kernels._ms_deform_attn._levels import Pyramid, place_levels


def attend(
    value: Tensor, pyramid: Pyramid, sampling_locations: Tensor, attention_weights: Tensor, *, deterministic: bool
) -> Tensor:
    """Call the operator, with as little in between as the tensors allow."""
    call = choose_way((value, sampling_locations, attention_weights), _Forward, _MappedForward, forward_op)
    out: Tensor = call(value, *pyramid, sampling_locations, attention_weights, deterministic)
    return out


def differentiate(
    grad_output: Tensor,
    value: Tensor,
    pyramid: Pyramid,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the backward of the operator by itself."""
    tensors = (grad_output, value, sampling_locations, attention_weights)
    call = choose_way(tensors, _Backward, _MappedBackward, backward_op)
    needs = (True, True, True)
    by_value, by_locations, by_weights = call(
        grad_output, value, *pyramid, sampling_locations, attention_weights, deterministic, *needs
    )
    return by_value, by_locations, by_weights


def choose_way(
    tensors: tuple[Tensor, ...],
    eager: type[torch.autograd.Function],
    mapped: type[torch.autograd.Function],
    op: Callable[..., Any],
) -> Callable[..., Any]:
    """Choose the op where a compiler, a mode or a subclass of tensors needs to see it, else an autograd function.

    The eager one has no separate `setup_context`, for which PyTorch inspects the signature at every call; `torch.func`
    needs one that has.
    """
    if torch.compiler.is_compiling() or not all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors):
        return op
    # Where modes cannot be asked for, one may have to see the op, which no transform takes.
    has_modes = _compat.has_dispatch_modes()
    if has_modes or (has_modes is None and not is_transformed()):
        return op
    way: Callable[..., Any] = (mapped if is_transformed() else eager).apply
    return way


def eager_function(
    name: str, run: Callable[..., Any], save: Callable[..., None], differentiate: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """Make an autograd function for eager calls out of what makes a custom op differentiable."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        save(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    return types.new_class(name, (torch.autograd.Function,), exec_body=lambda namespace: namespace.update(members))


def is_transformed() -> bool:
    """Tell whether a transform of `torch.func` is at work; compilers trace through those by themselves."""
    return not torch.compiler.is_compiling() and _compat.is_transformed()


def check_memory(*tensors: Tensor) -> None:
    """Check storages before PyTorch's own operations read them, if they can be seen from here.

    Raises:
        ValueError: If one does not hold its tensor.
    """
    if torch.compiler.is_compiling() or is_tracing():
        return
    if all(type(tensor) in (Tensor, torch.nn.Parameter) and _compat.has_storage(tensor) for tensor in tensors):
        check_storages(*tensors)


def _run_forward(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    repeats: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,  # noqa: FBT001  # Of the backward; ops take arguments by position.
) -> Tensor:
    """Run the forward kernel of the device, on arguments that have been checked.

    Packages compiled ahead of time pass None for empty lists.
    """
    pyramid = Pyramid(spatial_shapes, spatial_shapes_on_host or [], repeats or [])
    return _dispatch.forward(value, pyramid, sampling_locations, attention_weights)


def _check_and_run_forward(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    repeats: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,  # noqa: FBT001
) -> Tensor:
    """Run the forward for whoever calls the op itself."""
    check_samples(value, sampling_locations, attention_weights)
    pyramid = Pyramid(spatial_shapes, spatial_shapes_on_host or [], repeats or [])
    check_levels(pyramid, value, attention_weights.shape[3])
    return _dispatch.forward(value, pyramid, sampling_locations, attention_weights)


def _run_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    repeats: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,  # noqa: FBT001
    needs_value: bool,  # noqa: FBT001
    needs_locations: bool,  # noqa: FBT001
    needs_weights: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel of the device; a gradient that is not needed is empty."""
    check_samples(value, sampling_locations, attention_weights)
    pyramid = Pyramid(spatial_shapes, spatial_shapes_on_host or [], repeats or [])
    check_levels(pyramid, value, attention_weights.shape[3])
    check_output("grad_output", grad_output, value, attention_weights)
    needs = (needs_value, needs_locations, needs_weights)
    grads = _dispatch.backward(
        grad_output, value, pyramid, sampling_locations, attention_weights, needs, deterministic=deterministic
    )
    inputs = (value, sampling_locations, attention_weights)
    by_value, by_locations, by_weights = (
        like.new_empty(0) if grad is None else grad for grad, like in zip(grads, inputs, strict=True)
    )
    return by_value, by_locations, by_weights


forward_op = torch.library.custom_op("deformdetr::ms_deform_attn", _check_and_run_forward, mutates_args=())
backward_op = torch.library.custom_op("deformdetr::ms_deform_attn_backward", _run_backward, mutates_args=())


@forward_op.register_fake
def _(
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    repeats: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,  # noqa: FBT001
) -> Tensor:
    check_samples(value, sampling_locations, attention_weights)
    check_levels(
        Pyramid(spatial_shapes, spatial_shapes_on_host or [], repeats or []), value, attention_weights.shape[3]
    )
    batch, queries = sampling_locations.shape[:2]
    return value.new_empty(batch, queries, value.shape[2] * value.shape[3])


@backward_op.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    spatial_shapes_on_host: list[int],
    repeats: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,  # noqa: FBT001
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_samples(value, sampling_locations, attention_weights)
    check_levels(
        Pyramid(spatial_shapes, spatial_shapes_on_host or [], repeats or []), value, attention_weights.shape[3]
    )
    by_value, by_locations, by_weights = (
        like.new_empty(like.shape if need else (0,))
        for like, need in zip((value, sampling_locations, attention_weights), needs, strict=True)
    )
    return by_value, by_locations, by_weights


def _needed(grads: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    value, on_device, on_host, repeats, locations, weights, deterministic = inputs
    ctx.save_for_backward(value, on_device, locations, weights)
    ctx.rest = on_host, repeats, deterministic


def _differentiate_forward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, on_device, locations, weights = ctx.saved_tensors
    on_host, repeats, deterministic = ctx.rest
    by_value, _, _, _, by_locations, by_weights, _ = ctx.needs_input_grad
    needs = (by_value, by_locations, by_weights)
    call = choose_way((grad_output, value, locations, weights), _Backward, _MappedBackward, backward_op)
    grads = call(grad_output, value, on_device, on_host, repeats, locations, weights, deterministic, *needs)
    by_value, by_locations, by_weights = _needed(grads, needs)
    return by_value, None, None, None, by_locations, by_weights, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, value, on_device, on_host, repeats, locations, weights, _, *needs = inputs
    ctx.save_for_backward(grad_output, value, on_device, locations, weights)
    ctx.rest = on_host, repeats, needs


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate twice, slowly: autograd goes through the reference of the first derivative."""
    grad_output, value, on_device, locations, weights = ctx.saved_tensors
    on_host, repeats, needs = ctx.rest
    check_memory(grad_output, value, locations, weights)
    levels = place_levels(Pyramid(on_device, on_host, repeats), value.shape[1])
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (grad_output, value, locations, weights)]
        outputs = _reference.backward(inputs[0], inputs[1], levels, inputs[2], inputs[3])
        wanted = [(output, grad) for output, grad, need in zip(outputs, grads, needs, strict=True) if need]
        by_output, by_value, by_locations, by_weights = torch.autograd.grad(
            [output for output, _ in wanted], inputs, [grad for _, grad in wanted], allow_unused=True
        )
    return by_output, by_value, None, None, None, by_locations, by_weights, None, None, None, None


def _vmap_forward(
    info: Any,
    in_dims: tuple[Any, ...],
    value: Tensor,
    on_device: Tensor | None,
    on_host: list[int],
    repeats: list[int],
    *rest: Any,
) -> tuple[Tensor, int]:
    _refuse_mapped_shapes(in_dims[1])
    locations, weights, deterministic = rest
    folded = _fold(info.batch_size, ((value, in_dims[0]), (locations, in_dims[4]), (weights, in_dims[5])))
    out = _MappedForward.apply(folded[0], on_device, on_host, repeats, *folded[1:], deterministic)
    return out.unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grad_output: Tensor,
    value: Tensor,
    on_device: Tensor | None,
    on_host: list[int],
    repeats: list[int],
    *rest: Any,
) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
    _refuse_mapped_shapes(in_dims[2])
    locations, weights, *flags = rest
    mapped = ((grad_output, in_dims[0]), (value, in_dims[1]), (locations, in_dims[5]), (weights, in_dims[6]))
    folded = _fold(info.batch_size, mapped)
    grads = _MappedBackward.apply(*folded[:2], on_device, on_host, repeats, *folded[2:], *flags)
    # One that is not needed has no batch to take apart.
    split = tuple(
        grad.unflatten(0, (info.batch_size, -1)) if need else grad.new_empty(info.batch_size, 0)
        for grad, need in zip(grads, flags[1:], strict=True)
    )
    return split, (0, 0, 0)


def _fold(size: int, tensors: tuple[tuple[Tensor, int | None], ...]) -> list[Tensor]:
    """Make the mapped axis part of the batch; what is not mapped is the same for all of it."""
    return [
        (tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)).flatten(0, 1)
        for tensor, axis in tensors
    ]


def _refuse_mapped_shapes(axis: int | None) -> None:
    if axis is not None:
        raise ValueError("vmap cannot map over spatial_shapes: all maps must have the same levels")


forward_op.register_autograd(_differentiate_forward, setup_context=_save_forward)
backward_op.register_autograd(_differentiate_backward, setup_context=_save_backward)


_Forward = eager_function("MSDeformAttn", _run_forward, _save_forward, _differentiate_forward)
_Backward = eager_function("MSDeformAttnBackward", _run_backward, _save_backward, _differentiate_backward)


class _MappedForward(torch.autograd.Function):
    forward = staticmethod(_run_forward)
    setup_context = staticmethod(_save_forward)
    backward = staticmethod(_differentiate_forward)
    vmap = staticmethod(_vmap_forward)


class _MappedBackward(torch.autograd.Function):
    forward = staticmethod(_run_backward)
    setup_context = staticmethod(_save_backward)
    backward = staticmethod(_differentiate_backward)
    vmap = staticmethod(_vmap_backward)
