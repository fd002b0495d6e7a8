"""Multi-scale deformable attention as differentiable functions, for CPUs and GPUs.

`_ms_deform_attn` has the public functions, `_op` what PyTorch registers and differentiates. Behind them are four
implementations, each with a `forward` and a `backward`: `_reference` (the specification), `_triton` (GPUs), `_numba`
(CPUs) and `_gather` (CPUs without Numba).
"""

from deformdetr.kernels._flops import register_flop_formulas
from deformdetr.kernels._levels import SpatialShapes
from deformdetr.kernels._ms_deform_attn import (
    Backend,
    fused_ms_deform_attn,
    ms_deform_attn,
    ms_deform_attn_backward,
    sampling_locations,
)

__all__ = [
    "Backend",
    "SpatialShapes",
    "fused_ms_deform_attn",
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "register_flop_formulas",
    "sampling_locations",
]
