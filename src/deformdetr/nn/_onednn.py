"""Products and convolutions by oneDNN, where PyTorch would take something slower.

PyTorch multiplies float32 matrices on CPUs by MKL, which on AMD's does without AVX-512, and in a single thread it
convolves with 1x1 kernels by MKL, too. `docs/speed.md` has what the difference is.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import grad as gradients
from torch.overrides import has_torch_function

from deformdetr import _compat
from deformdetr._memory import check_storages
from deformdetr._tracing import is_tracing

# The gradient of a weight is that of a 1x1 convolution over images of so many rows, which copies nothing. PyTorch asks
# oneDNN in a single thread, too, if there are 16 images; with more columns, it is no faster than a product.
ROWS_OF_IMAGE, FEWEST_IMAGES, MOST_COLUMNS = 64, 16, 512


def serves(x: Any, *parameters: Tensor | None) -> bool:
    """Return whether oneDNN is the faster choice, and no exporter, transform or mode needs to see other operators."""
    given = [x, *(parameter for parameter in parameters if parameter is not None)]
    if is_tracing() or not all(_is_plain(tensor) for tensor in given):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        # Imported here, because it needs what compilers have loaded.
        from deformdetr.nn import _compiling

        chosen: bool = _compiling.chooses_onednn()
        return chosen
    # A compiler is a mode itself, and modes that see functions count as parts of every tensor.
    if not is_chosen() or _compat.has_dispatch_modes() is not False or has_torch_function(given):
        return False
    return not _has_tangent(*given)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x @ weight.T + bias`, differentiable any number of times; `x` has two dimensions or more."""
    rows = x.flatten(0, -2)
    product: Tensor = _Linear.apply(rows, weight, bias)
    return product.view(*x.shape[:-1], -1)


def is_chosen() -> bool:
    """Return whether oneDNN is the faster choice for what is neither traced nor watched."""
    return bool(torch.backends.mkldnn.enabled) and not _compat.is_transformed() and _is_faster()


def _has_tangent(*tensors: Tensor) -> bool:
    """Return whether forward-mode derivatives, which oneDNN has none of, come with a tensor."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)  # type: ignore[no-untyped-call]


def _is_plain(tensor: Any) -> bool:
    return (
        # Asked first, because a proxy of `torch.fx` answers nothing else.
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
    )


@functools.cache
def _is_faster() -> bool:
    # With AVX2 alone, both are as fast.
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512"


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
        # Gradients that are differentiated or mapped in turn are PyTorch's own.
        is_plain = not torch.is_grad_enabled() and (
            torch.compiler.is_compiling() or (_compat.has_storage(grad) and not _has_tangent(grad, rows, weight))
        )
        return (
            (_multiply(grad, weight.t()) if is_plain else grad @ weight) if by_rows else None,
            (_correlate(grad, rows) if is_plain else grad.T @ rows) if by_weight else None,
            grad.sum(0) if by_bias else None,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `a @ b.T + bias`."""
    product: Tensor = (multiply_op if torch.compiler.is_compiling() else _multiply_by_onednn)(a, b, bias)
    return product


def _multiply_by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    # oneDNN is told addresses.
    check_storages(a, b, bias)
    return _compat.multiply_by_onednn(a, b, bias)


def _correlate(a: Tensor, b: Tensor) -> Tensor:
    """Compute `a.T @ b`."""
    product: Tensor = (correlate_op if torch.compiler.is_compiling() else _correlate_by_onednn)(a, b)
    return product


def _correlate_by_onednn(a: Tensor, b: Tensor) -> Tensor:
    if not a.ndim == b.ndim == 2 or a.shape[0] != b.shape[0] or a.dtype != b.dtype:
        # No product, which PyTorch says with the shapes.
        return a.T @ b
    rows = a.shape[0] // ROWS_OF_IMAGE * ROWS_OF_IMAGE
    if rows < FEWEST_IMAGES * ROWS_OF_IMAGE or max(a.shape[1], b.shape[1]) > MOST_COLUMNS:
        return _transpose_and_multiply(a, b)

    def as_images(matrix: Tensor) -> Tensor:
        return matrix[:rows].reshape(-1, ROWS_OF_IMAGE, 1, matrix.shape[1]).permute(0, 3, 1, 2)

    # Of a convolution of `b` by a kernel of one pixel, whose output has the gradient `a`.
    size = (a.shape[1], b.shape[1], 1, 1)
    by_kernel: Tensor = gradients.conv2d_weight(as_images(b), size, as_images(a))  # type: ignore[no-untyped-call]
    product = by_kernel.flatten(1)
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
    _check_devices(a, b, bias)
    return a.new_empty(a.shape[0], b.shape[0])


@correlate_op.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    _check_devices(a, b)
    return a.new_empty(a.shape[1], b.shape[1])


def _check_devices(first: Tensor, *others: Tensor | None) -> None:
    """Refuse tensors of several devices, for which PyTorch takes a fake kernel if one is `meta`.

    Raises:
        ValueError: If they lie on several.
    """
    for tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"tensors must lie on one device, got {first.device} and {tensor.device}")
