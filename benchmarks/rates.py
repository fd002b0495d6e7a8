"""What bounds the kernels on a GPU: atomic additions to rows of channels, and reads of such rows."""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.cases import AccessSizes
from benchmarks.problem import TOLERANCES, Contender, Outputs, Problem, UnavailableError

CHANNELS = 32
# Accesses of a program, and those whose result is compared.
STEPS, CHECKED = 4, 32
BASELINE = "float32, one by one"


class Form(NamedTuple):
    """Dtype of the rows, and how many of them a warp takes at once."""

    dtype: torch.dtype
    rows: int


# One number per lane, or 16 bytes: four numbers in float32, eight in half precision.
FORMS = {
    BASELINE: Form(torch.float32, 1),
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


def prepare_rates(sizes: AccessSizes, device: str, seed: int) -> Problem:
    """Choose rows; what the first accesses add or read is compared, which is exact in every dtype."""
    rng = torch.Generator(device).manual_seed(seed)
    chosen = torch.randint(sizes.rows, (sizes.accesses,), generator=rng, device=device, dtype=torch.int32)
    start = torch.randint(4, (sizes.rows, CHANNELS), generator=rng, device=device)

    def expected() -> Outputs:
        first = chosen[:CHECKED]
        ones = torch.ones(CHECKED, CHANNELS, dtype=torch.float64, device=device)
        if sizes.access == "add":
            return {"rows": start.double().index_add(0, first, ones)}
        return {"sum": start[first].sum(0).double()}

    def build(form: Form) -> Contender:
        if (device, sizes.access, form.dtype) == ("cpu", "add", torch.bfloat16):
            raise UnavailableError("Triton's interpreter has no atomic addition of bfloat16 numbers")
        per_program = form.rows * STEPS
        rows, out = start.to(form.dtype), torch.empty(sizes.accesses // per_program, CHANNELS, device=device)

        def access(rows: Tensor, accesses: int) -> Tensor:
            programs = accesses // per_program
            options = {"D": CHANNELS, "ROWS": form.rows, "STEPS": STEPS, "num_warps": 1}
            if sizes.access == "add":
                add_rows[(programs,)](rows, chosen, **options)
                return rows
            read_rows[(programs,)](rows, chosen, out, **options)
            return out[:programs]

        def outputs() -> Outputs:
            found = access(rows.clone(), CHECKED)
            return {"rows": found} if sizes.access == "add" else {"sum": found.sum(0)}

        return Contender(partial(access, rows, sizes.accesses), outputs, expected)

    candidates = {name: partial(build, form) for name, form in FORMS.items()}
    return Problem(candidates, BASELINE, TOLERANCES["float32"], clock="device")
