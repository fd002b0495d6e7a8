"""Multi-scale deformable attention as one differentiable function, whatever the device."""

from deformdetr.kernels._ms_deform_attn import Backend, SpatialShapes, ms_deform_attn, register_flop_formulas

__all__ = ["Backend", "SpatialShapes", "ms_deform_attn", "register_flop_formulas"]
