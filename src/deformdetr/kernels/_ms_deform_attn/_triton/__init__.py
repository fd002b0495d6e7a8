"""The kernels of multi-scale deformable attention for GPUs.

One program serves `ROWS` queries of one head of one image. A row of channels is read in pieces of 16 bytes by as many
lanes as it takes, all of which compute the same geometry; that is why the channels are read in `CHUNKS` passes where
instructions, and not latency, limit: half the lanes per row do half of the redundant arithmetic.

Letters: `u`, `v` are the position of a sample in pixels of its level, with pixel centres at integers. Every axis gives
up to two pixels: `first`, and the one after it where `has_second`.

Loops over levels are rolled (compiling all of them unrolled takes ten times as long and spills registers), loops over
points are not (their loads are in flight together). Sizes of images, queries and batches are arguments and never
compiled in.
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

from deformdetr.kernels._ms_deform_attn._triton._backward import (
    ms_deform_attn_backward,
    ms_deform_attn_backward_of_value,
)
from deformdetr.kernels._ms_deform_attn._triton._forward import ms_deform_attn_forward

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_backward_of_value", "ms_deform_attn_forward"]
