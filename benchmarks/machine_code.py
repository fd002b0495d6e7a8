"""Read the machine code of the GPU kernels, which Triton compiles without a GPU.

`python -m benchmarks.machine_code` compiles every kernel as the library launches it for four levels, four points and
eight heads of 32 channels, and writes the table of `docs/gpu.md`.
"""

import math
import re
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.environment import describe_source
from benchmarks.pages import DOCS, Parts, markdown, read, source, store, write
from deformdetr.kernels._triton import _backward, _forward
from deformdetr.kernels._triton import _launch_table as _launch

KERNELS = {"forward": _forward.ms_deform_attn_forward, "backward": _backward.ms_deform_attn_backward}

STORED = "machine_code.json"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NVIDIA = {name: GPUTarget("cuda", number, 32) for name, number in (("sm_80", 80), ("sm_90", 90), ("sm_120", 120))}
AMD = GPUTarget("hip", "gfx942", 64)

# Iterations of the nested loops: over four levels and, in the backward, over pairs of four points.
TRIPS = (4, 2)
# Bytes of an element.
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Code(NamedTuple):
    """Machine code for an NVIDIA GPU; `executed` is the number of instructions that one warp executes."""

    instructions: Counter[str]
    registers: int
    executed: int

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))


def build(direction: str, dtype: str, target: GPUTarget, size: str = "many", **changes: Any) -> Any:
    """Compile a kernel as the library launches it for four levels, four points and eight heads of 32 channels."""
    coordinates = changes.pop("coordinates", 0)
    needs = changes.pop("needs", ("VALUE", "LOCATIONS", "WEIGHTS"))
    channels = changes.pop("channels", 32)
    paired, launch = choose(direction, dtype, target, size, channels)
    constants = {
        "M": 8, "D": channels, "L": 4, "P": 4, "COORDINATES": coordinates, "PADDED": False, "ORDERED": False,
        "GROUPED": False, "CHECKED": False, "PAIRED": paired, "WIDE": False, "POINTS": 16,
        "PREDICATED": target.backend == "cuda",
        "ROWS": launch.rows, "CHUNKS": launch.chunks, "WIDTH": launch.width,
    }  # fmt: skip
    kernel = KERNELS[direction]
    if direction == "backward":
        constants |= {f"NEEDS_{name}": name in needs for name in ("VALUE", "REFERENCES", "LOCATIONS", "WEIGHTS")}
    constants |= changes
    full = {"shapes": "*i64", "references": "*fp32", "order": "*i32", "padding": "*i8"}
    full |= {"grad_value": "*fp32", "grad_references": "*fp32"}
    full |= dict.fromkeys(("locations", "grad_locations"), f"*{dtype if coordinates else 'fp32'}")
    full |= dict.fromkeys(("value", "out", "output", "grad_output", "weights", "grad_weights"), f"*{dtype}")
    signature = {name: "constexpr" if name in constants else full.get(name, "i32") for name in kernel.arg_names}
    # Inputs are aligned before every launch.
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in full if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": launch.warps, "enable_fp_fusion": True}
    with warnings.catch_warnings():
        # Newer compilers warn of a default that is set here.
        warnings.simplefilter("ignore")
        return triton.compile(source, target=target, options=options)


def choose(
    direction: _launch.Direction, dtype: str, target: GPUTarget, size: _launch.Size, channels: int
) -> tuple[bool, _launch.Launch]:
    """Return whether channels are read in pairs, and the launch parameters of the kernel."""
    paired = channels % 2 == 0 and (dtype == "bf16" or (dtype == "fp16" and direction == "backward"))
    launch = _launch.choose(
        direction,
        _launch.Architecture(str(target.arch), target.warp_size, predicates_loads=target.backend == "cuda"),
        precision="float32" if dtype == "fp32" else "half",
        row_words=channels // 2 if paired else channels,
        word_size=4 if paired else BYTES[dtype],
        rows=_launch.MANY_ROWS if size == "many" else 1,
    )
    return paired, launch


def disassemble(compiled: Any) -> Code:
    """Count the instructions of a kernel for NVIDIA GPUs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text, usage = (
            subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    found: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.a-z]+)(.*)", line):
            found.append(instruction[1])
            target = re.search(r"`\((\.L_x_\d+)\)", instruction[2])
            # The last instruction of every kernel jumps to itself.
            if instruction[1].startswith("BRA") and target and labels.get(target[1], len(found)) < len(found) - 1:
                loops.append((labels[target[1]], len(found)))
    registers = re.search(r"REG:(\d+)", usage)
    if not found or registers is None:
        raise RuntimeError(f"cannot read what the CUDA tools say: {usage}")
    executed = sum(_times(number, loops) for number in range(len(found)))
    return Code(Counter(found), int(registers[1]), executed)


def _times(number: int, loops: list[tuple[int, int]]) -> int:
    """Return how often an instruction runs, given the instructions that every loop spans."""
    depth = sum(first <= number < end for first, end in loops)
    if depth > len(TRIPS):
        raise RuntimeError(f"instruction {number} is in {depth} loops, of which {len(TRIPS)} are known")
    return math.prod(TRIPS[:depth])


def measure() -> dict[str, Any]:
    """Compile and read all kernels."""
    rows = []
    for target, direction, coordinates, dtype in product(("sm_90", "gfx942"), KERNELS, (0, 2), BYTES):
        started = time.perf_counter()
        compiled = build(direction, dtype, NVIDIA.get(target, AMD), coordinates=coordinates)
        seconds = round(time.perf_counter() - started, 1)
        row = {"target": target, "kernel": direction, "fused": bool(coordinates), "dtype": dtype, "seconds": seconds}
        if target in NVIDIA:
            code = disassemble(compiled)
            row |= {
                "registers": code.registers,
                "spilled": code.count("(LDL|STL)"),
                "instructions": round(code.executed / rows_per_warp(direction, dtype)),
            }
        else:
            found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", compiled.asm["amdgcn"]))
            row |= {"registers": int(found["vgpr_count"]), "spilled": int(found["vgpr_spill_count"])}
        rows.append(row)
    origin = describe_source("TRITON_ALWAYS_COMPILE=1 python -m benchmarks.machine_code", packages=("triton",))
    return {**origin, "rows": rows}


def rows_per_warp(direction: str, dtype: str) -> int:
    """Return the number of (query, head) rows that one warp computes, if there are many rows."""
    launch = choose(direction, dtype, NVIDIA["sm_90"], "many", 32)[1]
    return launch.rows // launch.warps


def parts() -> Parts:
    """Return the table of the page."""
    results = read(STORED)
    heads = ["target", "kernel", "value", "instructions per query and head", "registers", "spilled", "compiled in (s)"]
    rows = (
        [row["target"], row["kernel"] + ", fused" * row["fused"], row["dtype"]]
        + [str(row.get(name, "")) for name in ("instructions", "registers", "spilled", "seconds")]
        for row in results["rows"]
    )
    return {(DOCS / "gpu.md", ""): f"{markdown(heads, rows, left=3)}\n\n{source(STORED)} Two shared CPU cores."}


if __name__ == "__main__":
    store(STORED, measure())
    write(parts())
