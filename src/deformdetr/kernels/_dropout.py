"""Dropout with 16 random bits per number."""

import torch
from jaxtyping import Float
from torch import Tensor

from deformdetr._compat import is_transformed
from deformdetr._tracing import is_tracing
from deformdetr.kernels._layer_kernels import is_selected

_VALUES = 2**16


def uses_16_bits(x: Tensor, p: float) -> bool:
    """Return whether `dropout` is faster than PyTorch's here, and no compiler or transform has to see PyTorch's."""
    return (
        0 < round(p * _VALUES) < _VALUES
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_tracing()
        and not is_transformed()
        and is_selected("dropout")
    )


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Zero numbers with probability `p`, rounded to a multiple of 2^-16, and scale the others to keep the mean.

    PyTorch's `dropout` draws a float64 per number.
    """
    dropped = round(p * _VALUES)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _VALUES // 2
    return x * (kept * (_VALUES / (_VALUES - dropped))).to(x.dtype)
