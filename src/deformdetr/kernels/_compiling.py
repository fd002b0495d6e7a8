"""Questions that a compiler answers once, while it compiles.

Import this module only while `torch.compiler.is_compiling()`: `assume_constant_result` loads the whole compiler.
"""

import torch

from deformdetr import _compat
from deformdetr.kernels import _layer_kernels
from deformdetr.kernels._layer_kernels import LayerKernel

has_static_value = _compat.find_static_value()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_selected(kernel: LayerKernel) -> bool:
    """Return whether layers use this kernel; not in exported programs, which run elsewhere, nor under transforms."""
    return not torch.compiler.is_exporting() and not _compat.is_transformed() and _layer_kernels.is_selected(kernel)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def num_threads() -> int:
    """Return `torch.get_num_threads()`."""
    return torch.get_num_threads()
