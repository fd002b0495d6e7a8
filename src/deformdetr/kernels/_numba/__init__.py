"""The operator on CPUs, by kernels in the part of Python that Numba compiles.

`_launcher` turns tensors into a `Job` and runs a kernel of `_kernels` on PyTorch's threads. Importing this package does
not import Numba.
"""

from deformdetr.kernels._numba._launcher import backward, forward
from deformdetr.kernels._numba._probe import is_usable

__all__ = ["backward", "forward", "is_usable"]
