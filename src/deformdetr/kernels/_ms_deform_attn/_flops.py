"""What the operator counts for in `torch.utils.flop_counter`."""

import functools
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

    register_flop_formula(torch.ops.deformdetr.ms_deform_attn)(_count_forward)
    register_flop_formula(torch.ops.deformdetr.ms_deform_attn_backward)(_count_backward)


def _count_forward(
    value_shape: Sequence[int],
    spatial_shapes: Any,
    spatial_shapes_on_host: Any,
    sampling_locations_shape: Sequence[int],
    attention_weights_shape: Sequence[int],
    *,
    out_shape: Any = None,
) -> int:
    """Count a multiply and an add for each of the four corners of every sample, per channel."""
    batch, queries, heads, levels, points = attention_weights_shape
    return 2 * 4 * batch * queries * heads * levels * points * value_shape[3]


def _count_backward(grad_output_shape: Sequence[int], *forward_shapes: Any, out_shape: Any = None) -> int:
    """Count twice the forward: a dot product for weights and locations, and the share that goes to the value."""
    return 2 * _count_forward(*forward_shapes)
