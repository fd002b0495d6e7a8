"""Measure what bounds the kernels on the GPU at hand: atomic additions to rows of channels, and reads of such rows.

Rows of 32 channels are scattered over as many as the value of an encoder holds, over those of its coarsest level, or
over 64 "hot" ones. `python -m benchmarks.measure_gpu` runs it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from benchmarks.cases import Device
from benchmarks.measure import DeviceClock, WallClock

CHANNELS = 32
# Two images at 800 x 1333 with eight heads, their coarsest level, and a few rows that all samples hit.
ROWS = {"scattered": 2 * 22223 * 8, "coarsest level": 2 * 273 * 8, "hot": 64}
# Accesses of a measurement, and of a program. An encoder of these images makes 22.8 million.
ACCESSES, STEPS = 2**22, 4


class Form(NamedTuple):
    """Dtype of the rows, and how many of them a warp takes at once."""

    dtype: torch.dtype
    rows: int


# One number per lane, or 16 bytes: four numbers in float32, eight in half precision.
FORMS = {
    "float32, one by one": Form(torch.float32, 1),
    "float32 x 4": Form(torch.float32, 4),
    "float16 x 8": Form(torch.float16, 8),
    "bfloat16 x 8": Form(torch.bfloat16, 8),
}


@triton.jit
def add_rows(rows, chosen, D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """Add 1 to all channels of the chosen rows, atomically."""
    channel = tl.arange(0, D)
    ones = tl.full((ROWS, D), 1.0, rows.dtype.element_ty)
    for step in range(STEPS):
        row = tl.load(chosen + (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS))
        tl.atomic_add(rows + row[:, None] * D + channel[None, :], ones, sem="relaxed")


@triton.jit
def read_rows(rows, chosen, out, D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """Sum the chosen rows of every program."""
    channel = tl.arange(0, D)
    total = tl.zeros((ROWS, D), tl.float32)
    for step in range(STEPS):
        row = tl.load(chosen + (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS))
        total += tl.load(rows + row[:, None] * D + channel[None, :]).to(tl.float32)
    tl.store(out + tl.program_id(0) * D + channel, tl.sum(total, axis=0))


def measure(device: Device, accesses: int = ACCESSES) -> Iterator[dict[str, Any]]:
    """Yield the rate of every form and place, once it is measured; without a GPU, calls are only run."""
    for access, (place, count), (name, form) in (
        (access, place, form) for access in ("add", "read") for place in ROWS.items() for form in FORMS.items()
    ):
        if device == "cpu" and access == "add" and form.dtype == torch.bfloat16:
            # Triton's interpreter cannot.
            continue
        chosen = torch.randint(count, (accesses,), device=device, dtype=torch.int32)
        rows = torch.zeros(count, CHANNELS, device=device, dtype=form.dtype)
        programs = accesses // (form.rows * STEPS)
        options = {"D": CHANNELS, "ROWS": form.rows, "STEPS": STEPS, "num_warps": 1}
        if access == "add":
            call = partial(add_rows[(programs,)], rows, chosen, **options)
        else:
            out = torch.empty(programs, CHANNELS, device=device)
            call = partial(read_rows[(programs,)], rows, chosen, out, **options)
        call()
        clock = DeviceClock(call) if device == "cuda" else WallClock(call, estimate=1e9)
        seconds = min(clock.sample() for _ in range(3))
        yield {
            "access": access,
            "place": place,
            "form": name,
            "microseconds": seconds * 1e6,
            "rows per microsecond": accesses / seconds / 1e6,
            "terabytes per second": accesses * CHANNELS * rows.element_size() / seconds / 1e12,
        }
