"""The operator: its public function and `torch.library` registration, and the backends behind them."""

from deformdetr.kernels._ms_deform_attn._flops import register_flop_formulas
from deformdetr.kernels._ms_deform_attn._op import Backend, SpatialShapes, ms_deform_attn

__all__ = ["Backend", "SpatialShapes", "ms_deform_attn", "register_flop_formulas"]
