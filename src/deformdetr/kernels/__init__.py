"""Multi-scale deformable attention as differentiable functions, whatever the device, and CPU kernels of layers."""

from deformdetr.kernels._layer_kernels import LayerKernel, set_layer_kernels
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
    "LayerKernel",
    "SpatialShapes",
    "fused_ms_deform_attn",
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "register_flop_formulas",
    "sampling_locations",
    "set_layer_kernels",
]
