"""Multi-scale deformable attention: Triton kernels for GPUs, Numba kernels for CPUs if Numba is installed.

`layers` has the module that transformers replaces.
"""

from deformdetr.kernels._ms_deform_attn import (
    fused_ms_deform_attn,
    ms_deform_attn,
    ms_deform_attn_backward,
    sampling_locations,
)
from tools.hub_kernel import layers

__all__ = ["fused_ms_deform_attn", "layers", "ms_deform_attn", "ms_deform_attn_backward", "sampling_locations"]
