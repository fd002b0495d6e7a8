"""Questions of layers that compilers answer once, while they compile, since they cannot trace the answers.

Imported where `torch.compiler.is_compiling()` alone, because marking a function so loads the whole compiler.
"""

import torch

from deformdetr import _compat
from deformdetr.nn import _onednn, _pieces

has_static_value = _compat.find_static_value()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def chooses_onednn() -> bool:
    """Return whether oneDNN multiplies faster here; exported programs run elsewhere."""
    return not torch.compiler.is_exporting() and _onednn.is_chosen()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def rows_at_once() -> int:
    """Return how many rows the caches of all threads hold, or 0 for exported programs, which run elsewhere."""
    return 0 if torch.compiler.is_exporting() else _pieces.rows_at_once()
