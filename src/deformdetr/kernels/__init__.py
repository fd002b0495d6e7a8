"""Multi-scale deformable attention as differentiable functions, for CPUs and GPUs, and CPU kernels of other layers.

`_ms_deform_attn` has the public functions, `_op` what PyTorch registers and differentiates. Behind them are four
implementations, each with a `forward` and a `backward`: `_reference` (the specification), `_triton` (GPUs), `_numba`
(CPUs) and `_gather` (CPUs without Numba). `_discrete` samples single pixels, on all devices. `_layers` calls linear
layers and dropout, by `_linear` and `_dropout` where `_layer_kernels` selects these.
"""

from deformdetr.kernels._flops import register_flop_formulas
from deformdetr.kernels._layer_kernels import LayerKernel, set_layer_kernels
from deformdetr.kernels._levels import SpatialShapes
from deformdetr.kernels._ms_deform_attn import (
    Backend,
    Method,
    fused_ms_deform_attn,
    ms_deform_attn,
    ms_deform_attn_backward,
    sampling_locations,
)

__all__ = [
    "Backend",
    "LayerKernel",
    "Method",
    "SpatialShapes",
    "fused_ms_deform_attn",
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "register_flop_formulas",
    "sampling_locations",
    "set_layer_kernels",
]
