"""Multi-scale deformable attention: public functions over one kernel per kind of device."""

from deformdetr.kernels._ms_deform_attn._flops import register_flop_formulas
from deformdetr.kernels._ms_deform_attn._functional import (
    Backend,
    fused_ms_deform_attn,
    ms_deform_attn,
    ms_deform_attn_backward,
    sampling_locations,
)
from deformdetr.kernels._ms_deform_attn._levels import SpatialShapes

__all__ = [
    "Backend",
    "SpatialShapes",
    "fused_ms_deform_attn",
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "register_flop_formulas",
    "sampling_locations",
]
