"""Kernels for CPUs, in the part of Python that Numba compiles, with LLVM's vectors for channels."""

from numba.core.errors import NumbaError

from deformdetr.kernels._ms_deform_attn._numba._kernels import compile_backward, compile_forward

__all__ = ["NumbaError", "compile_backward", "compile_forward"]
