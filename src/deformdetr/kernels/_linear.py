"""Linear layers by oneDNN.

PyTorch sends float32 matrix products to MKL, which does not use AVX-512 on AMD processors.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as gradients
from torch.overrides import has_torch_function

from deformdetr import _compat
from deformdetr._memory import check_storages
from deformdetr._tracing import is_tracing
from deformdetr.kernels._layer_kernels import is_selected

# For fewer rows, calling oneDNN takes longer than it saves: 33 microseconds for one row, where `nn.Linear` takes 9.
_MIN_ROWS = 64
# The gradient of a weight is computed as that of a 1x1 convolution over images of 64 pixels, which copies nothing. With
# one thread PyTorch convolves by oneDNN from 16 images on. Beyond 512 columns a matrix product is as fast.
_ROWS_PER_IMAGE, _MIN_IMAGES, _MAX_COLUMNS = 64, 16, 512


def uses_onednn(x: Any, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN is faster here, and no exporter, transform or mode has to see PyTorch's operators."""
    is_compiling = torch.compiler.is_compiling()
    if is_tracing() or not (is_compiling or is_selected("linear")):
        return False
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if not all(_is_plain(tensor) for tensor in tensors) or torch.is_autocast_enabled("cpu"):
        return False
    if x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        return False
    if is_compiling:
        from deformdetr.kernels import _compiling

        selected: bool = _compiling.is_selected("linear")
        return selected
    return (
        x.numel() >= _MIN_ROWS * x.shape[-1]
        and not _compat.is_transformed()
        # A compiler is a dispatch mode itself, and modes that see functions count as parts of every tensor.
        and _compat.has_dispatch_modes() is False
        and not has_torch_function(tensors)
        and not _compat.has_tangent(*tensors)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x @ weight.T + bias`, differentiable any number of times; `x` has two dimensions or more."""
    product: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return product.view(*x.shape[:-1], -1)


def _is_plain(tensor: Any) -> bool:
    return (
        # First, because a proxy of `torch.fx` has none of the other attributes.
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        rows, weight = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        # Gradients that are differentiated or mapped in turn use PyTorch's operators.
        is_plain = not torch.is_grad_enabled() and (
            torch.compiler.is_compiling() or (_compat.has_storage(grad) and not _compat.has_tangent(grad, rows, weight))
        )
        return (
            (_multiply(grad, weight.t(), None) if is_plain else grad @ weight) if needs_rows else None,
            (_multiply_transposed(grad, rows) if is_plain else grad.T @ rows) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = (linear_op if torch.compiler.is_compiling() else _linear_by_onednn)(a, b, bias)
    return product


def _multiply_transposed(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = (weight_gradient_op if torch.compiler.is_compiling() else _weight_gradient_by_onednn)(a, b)
    return product


def _linear_by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `a @ b.T + bias`."""
    # oneDNN reads from raw addresses.
    check_storages(a, b, bias)
    return _compat.multiply_by_onednn(a, b, bias)


def _weight_gradient_by_onednn(grad: Tensor, x: Tensor) -> Tensor:
    """Compute `grad.T @ x`."""
    if not grad.ndim == x.ndim == 2 or grad.shape[0] != x.shape[0] or grad.dtype != x.dtype:
        # Fails, with a message of PyTorch's that has the shapes.
        return grad.T @ x
    rows = grad.shape[0] // _ROWS_PER_IMAGE * _ROWS_PER_IMAGE
    if rows < _MIN_IMAGES * _ROWS_PER_IMAGE or max(grad.shape[1], x.shape[1]) > _MAX_COLUMNS:
        return _transpose_and_multiply(grad, x)

    def as_images(matrix: Tensor) -> Tensor:
        return matrix[:rows].reshape(-1, _ROWS_PER_IMAGE, 1, matrix.shape[1]).permute(0, 3, 1, 2)

    size = (grad.shape[1], x.shape[1], 1, 1)
    kernel: Tensor = gradients.conv2d_weight(as_images(x), size, as_images(grad))  # type: ignore[no-untyped-call]
    product = kernel.flatten(1)
    return product if rows == grad.shape[0] else product.add_(_transpose_and_multiply(grad[rows:], x[rows:]))


def _transpose_and_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Compute `a.T @ b`, with the factor of fewer columns first, which takes half the time."""
    if a.shape[1] > b.shape[1]:
        return _linear_by_onednn(b.T, a.T, None).T.contiguous()
    return _linear_by_onednn(a.T, b.T, None)


# For compilers, whose own oneDNN product needs constant weights.
linear_op = torch.library.custom_op("deformdetr::linear", _linear_by_onednn, mutates_args=())
weight_gradient_op = torch.library.custom_op(
    "deformdetr::linear_weight_gradient", _weight_gradient_by_onednn, mutates_args=()
)


@linear_op.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    _check_devices(a, b, bias)
    return a.new_empty(a.shape[0], b.shape[0])


@weight_gradient_op.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    _check_devices(grad, x)
    return grad.new_empty(grad.shape[1], x.shape[1])


def _check_devices(first: Tensor, *others: Tensor | None) -> None:
    """Refuse tensors of several devices: PyTorch runs the fake kernel if one of them is `meta`.

    Raises:
        ValueError: If the devices differ.
    """
    for tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"tensors must lie on one device, got {first.device} and {tensor.device}")
