"""Products and convolutions by oneDNN, where PyTorch would take something slower.

PyTorch multiplies float32 matrices on CPUs by MKL, which on AMD's does without AVX-512, and in a single thread it
convolves with 1x1 kernels by MKL, too. `docs/speed.md` has what the difference is.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

# The gradient of a weight is that of a 1x1 convolution over images of so many rows, which copies nothing. PyTorch asks
# oneDNN in a single thread, too, if there are 16 images; with more columns, it is no faster than a product.
ROWS_OF_IMAGE, FEWEST_IMAGES, MOST_COLUMNS = 64, 16, 512


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
        is_plain = not torch.is_grad_enabled()
        return (
            (_multiply(grad, weight.T) if is_plain else grad @ weight) if by_rows else None,
            (_correlate(grad, rows) if is_plain else grad.T @ rows) if by_weight else None,
            grad.sum(0) if by_bias else None,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `a @ b.T + bias`."""
    product: Tensor = (multiply_op if torch.compiler.is_compiling() else _multiply_by_onednn)(a, b, bias)
    return product


def _multiply_by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    # What `torch.compile` makes of linear layers with constant weights; there is no public name for it.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def _correlate(a: Tensor, b: Tensor) -> Tensor:
    """Compute `a.T @ b`."""
    product: Tensor = (correlate_op if torch.compiler.is_compiling() else _correlate_by_onednn)(a, b)
    return product


def _correlate_by_onednn(a: Tensor, b: Tensor) -> Tensor:
    rows = a.shape[0] // ROWS_OF_IMAGE * ROWS_OF_IMAGE
    if rows < FEWEST_IMAGES * ROWS_OF_IMAGE or max(a.shape[1], b.shape[1]) > MOST_COLUMNS:
        return _transpose_and_multiply(a, b)

    def as_images(matrix: Tensor) -> Tensor:
        return matrix[:rows].reshape(-1, ROWS_OF_IMAGE, 1, matrix.shape[1]).permute(0, 3, 1, 2)

    like = a.new_empty(a.shape[1], b.shape[1], 1, 1)
    settings: Any = [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    _, by_weight, _ = torch.ops.aten.convolution_backward(as_images(a), as_images(b), like, None, *settings)
    product: Tensor = by_weight.flatten(1)
    return product if rows == a.shape[0] else product.add_(_transpose_and_multiply(a[rows:], b[rows:]))


def _transpose_and_multiply(a: Tensor, b: Tensor) -> Tensor:
    # It takes half the time if the first factor is the one with fewer columns.
    if a.shape[1] > b.shape[1]:
        return _multiply_by_onednn(b.T, a.T, None).T.contiguous()
    return _multiply_by_onednn(a.T, b.T, None)


# For compilers, which take PyTorch's own with constant weights alone.
multiply_op = torch.library.custom_op("deformdetr::multiply", _multiply_by_onednn, mutates_args=())
correlate_op = torch.library.custom_op("deformdetr::correlate", _correlate_by_onednn, mutates_args=())


@multiply_op.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


@correlate_op.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[1], b.shape[1])
