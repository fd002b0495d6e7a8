"""Products and convolutions by oneDNN, where PyTorch would take something slower.

PyTorch multiplies float32 matrices on CPUs by MKL, which on AMD's does without AVX-512, and in a single thread it
convolves with 1x1 kernels by MKL, too. `docs/speed.md` has what the difference is.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn


def serves(*tensors: Tensor | None) -> bool:
    """Tell whether oneDNN is the faster choice, and no exporter, transform or mode needs to see other operators."""
    return (
        all(tensor is None or _is_plain(tensor) for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and bool(_is_chosen())
        # Asked in this order, because a compiler, which cannot trace the rest, is a mode itself.
        and (
            torch.compiler.is_compiling()
            or (torch._C._get_tracing_state() is None and not torch._C._len_torch_dispatch_stack())
        )
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x @ weight.T + bias`, differentiable any number of times; `x` has two dimensions or more."""
    rows = x.flatten(0, -2)
    product: Tensor = _Linear.apply(rows, weight, bias)
    return product.view(*x.shape[:-1], -1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> Tensor:
    """Convolve as another layer does, with other weights."""
    settings: Any = like.padding, like.stride, like.dilation, like.groups
    return torch.mkldnn_convolution(x, weight, bias, *settings)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.numel() > 0
    )


# A compiler asks once, since it cannot trace this.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_chosen() -> bool:
    return (
        torch._C._get_mkldnn_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_exporting()
        and _is_faster()
    )


@functools.cache
def _is_faster() -> bool:
    # With AVX2 alone, both are as fast.
    return torch._C._has_mkldnn and torch.backends.cpu.get_cpu_capability() == "AVX512"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        rows, weight = ctx.saved_tensors
        by_rows, by_weight, by_bias = ctx.needs_input_grad
        # Gradients that are differentiated in turn are PyTorch's own.
        multiply = _multiply_by_pytorch if torch.is_grad_enabled() else _multiply
        return (
            multiply(grad, weight.T) if by_rows else None,
            _correlate(grad, rows, multiply) if by_weight else None,
            grad.sum(0) if by_bias else None,
        )


def _correlate(grad: Tensor, rows: Tensor, multiply: Any) -> Tensor:
    """Compute `grad.T @ rows`; it takes half the time if the first factor is the one with fewer columns."""
    if grad.shape[1] > rows.shape[1]:
        return _correlate(rows, grad, multiply).T
    out: Tensor = multiply(grad.T, rows.T)
    return out


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `a @ b.T + bias`."""
    product: Tensor = (multiply_op if torch.compiler.is_compiling() else _multiply_by_onednn)(a, b, bias)
    return product


def _multiply_by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    # What `torch.compile` makes of linear layers with constant weights; there is no public name for it.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def _multiply_by_pytorch(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.T


# For compilers, which take PyTorch's own with constant weights alone.
multiply_op = torch.library.custom_op("deformdetr::multiply", _multiply_by_onednn, mutates_args=())


@multiply_op.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])
