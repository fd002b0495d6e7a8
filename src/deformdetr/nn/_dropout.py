"""Dropout whose random numbers cost little on CPUs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformdetr import _compat
from deformdetr._tracing import is_tracing


def apply_dropout(layer: nn.Module, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `layer(x)`; on CPUs, a `torch.nn.Dropout` draws 16 random bits for a number in place of a float64.

    The probability is rounded to a multiple of 2^-16 there, and what is kept is scaled by exactly that.
    """
    dropped = round(layer.p * 2**16) if _compat.is_plain(layer, nn.Dropout) and layer.training else 0
    if not 0 < dropped < 2**16 or layer.inplace or not _is_drawn_here(x):
        out: Tensor = layer(x)
        return out
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * (kept * (2**16 / (2**16 - dropped))).to(x.dtype)


def _is_drawn_here(x: Tensor) -> bool:
    """Return whether the tensor is an ordinary one on the CPU, for which no compiler or transform has to draw."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_tracing()
        and not _compat.is_transformed()
    )
