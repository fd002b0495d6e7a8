"""Multi-scale deformable attention as differentiable functions, whatever the device."""

from deformdetr.kernels._ms_deform_attn import (
    Backend,
    SpatialShapes,
    fused_ms_deform_attn,
    ms_deform_attn,
    ms_deform_attn_backward,
    register_flop_formulas,
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
