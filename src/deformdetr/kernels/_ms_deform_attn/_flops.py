"""What the operator counts for in `torch.utils.flop_counter`."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch


@functools.cache
def register_flop_formulas() -> None:
    """Tell `torch.utils.flop_counter` what the operator and its backward count for.

    Call it before making a `FlopCounterMode`, which takes its formulas along when it is made. Building an
    `MSDeformAttn` does so by itself where the counter has been imported before.
    """
    # Imported here, because the counter imports triton, which takes longer than the whole of this library.
    from torch.utils.flop_counter import register_flop_formula

    ops = torch.ops.deformdetr
    register_flop_formula(ops.ms_deform_attn)(_count_forward)
    register_flop_formula(ops.ms_deform_attn_backward)(_count_backward)
    register_flop_formula(ops.fused_ms_deform_attn)(_count_fused_forward)
    register_flop_formula(ops.fused_ms_deform_attn_backward)(_count_fused_backward)


def _count(value_shape: Sequence[int], weights_shape: Sequence[int]) -> int:
    """Count a multiply and an add for each of the four corners of every sample, per channel."""
    return 2 * 4 * math.prod(weights_shape) * value_shape[3]


# The backward counts twice: a dot product for weights and locations, and the share that goes to the value.
def _count_forward(
    value: Sequence[int], on_device: Any, on_host: Any, repeats: Any, locations: Any, weights: Sequence[int], *_: Any,
    out_shape: Any = None,
) -> int:  # fmt: skip
    return _count(value, weights)


def _count_backward(grad_output: Any, *forward: Any, out_shape: Any = None) -> int:
    return 2 * _count_forward(*forward)


def _count_fused_forward(
    value: Sequence[int], on_device: Any, on_host: Any, references: Any, offsets: Any, logits: Sequence[int], *_: Any,
    out_shape: Any = None,
) -> int:  # fmt: skip
    return _count(value, logits)


def _count_fused_backward(grad_output: Any, output: Any, *forward: Any, out_shape: Any = None) -> int:
    return 2 * _count_fused_forward(*forward)
