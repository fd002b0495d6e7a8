"""FLOP formulas of the operator for `torch.utils.flop_counter`."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch


@functools.cache
def register_flop_formulas() -> None:
    """Register the FLOPs of the operator and its backward with `torch.utils.flop_counter`.

    Call it before constructing a `FlopCounterMode`, which copies the formulas registered so far. `MSDeformAttn` calls
    it if the counter has been imported before the layer is built.

    Examples:
        >>> import torch
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> from deformdetr.kernels import ms_deform_attn
        >>> register_flop_formulas()
        >>> value, locations, weights = torch.rand(1, 6, 1, 4), torch.rand(1, 1, 1, 1, 1, 2), torch.rand(1, 1, 1, 1, 1)
        >>> with FlopCounterMode(display=False) as counter:
        ...     out = ms_deform_attn(value, [(2, 3)], locations, weights)
        >>> counter.get_total_flops()
        32
    """
    # Imported here, because the counter imports triton, which takes longer than the whole of this library.
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.deformdetr.ms_deform_attn)(_count_forward)
    register_flop_formula(torch.ops.deformdetr.ms_deform_attn_backward)(_count_backward)


def _count_forward(
    value: Sequence[int], spatial_shapes: Any, sizes: Any, repeats: Any, locations: Any, weights: Sequence[int],
    *_: Any, out_shape: Any = None,
) -> int:  # fmt: skip
    """Return a multiplication and an addition per channel for each of the four corners of every sample."""
    return 2 * 4 * math.prod(weights) * value[3]


def _count_backward(grad_output: Any, output: Any, *forward: Any, out_shape: Any = None) -> int:
    """Return twice the forward's: an inner product for weights and locations, and the gradient of the value."""
    return 2 * _count_forward(*forward)
