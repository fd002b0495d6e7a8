"""The operator on GPUs, by Triton kernels.

`_launcher` turns tensors into launches of the kernels in `_forward` and `_backward`. `_launch_table` has the launch
parameters by architecture, `_device_tables` makes the tables that kernels look up.

One program serves `ROWS` queries of one head of one image. A row of channels is read in pieces of 16 bytes, each by its
own lane, and all lanes of a row compute the same geometry. Where instructions limit and not latency, a row is read in
two `CHUNKS`: half as many lanes do half of the redundant arithmetic.

Notation: `u`, `v` are the position of a sample in pixels of its level, with pixel centers at integers. An axis
contributes up to two pixels: `first`, and the next one if `has_second`.

Loops over levels are not unrolled: compiling all of them unrolled takes ten times as long and spills registers. The
forward unrolls loops over points, so that their loads are in flight together. In the backward, those of the four pixels
of a point are. Sizes of images, queries and batches are arguments, so that
kernels are not compiled anew for them.
"""

try:
    import triton  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise ModuleNotFoundError(
        "the kernels for GPUs need triton, which PyTorch's builds for GPUs install with them: pip install triton, or "
        'call `ms_deform_attn(..., backend="reference")`, which is plain PyTorch',
        name="triton",
    ) from error

from deformdetr.kernels._triton._launcher import Needs, Sampling, Sums, backward, forward

__all__ = ["Needs", "Sampling", "Sums", "backward", "forward"]
