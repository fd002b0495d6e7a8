"""Read the machine code of the GPU kernels, which Triton compiles without a GPU.

`python -m benchmarks.machine_code` compiles every kernel as it is launched for four levels, four points and eight heads
of 32 channels, and writes the tables of `docs/gpu.md`: ours, and those of deformops beside them. It needs deformops.
"""

import importlib
import math
import os
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.environment import describe_source
from benchmarks.pages import DOCS, Parts, markdown, read, source, store, write
from deformdetr.kernels import _triton
from deformdetr.kernels._levels import pack_shapes
from deformdetr.kernels._triton import _backward, _forward, _launch_table

STORED = "machine_code.json"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NVIDIA = {f"sm_{number}": GPUTarget("cuda", number, 32) for number in (80, 90, 100, 120)}
AMD = GPUTarget("hip", "gfx942", 64)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEVELS, POINTS, HEADS, CHANNELS = 4, 4, 8, 32
PEER = "deformops"
# Iterations of the nested loops: over four levels, and over four points, which our forward unrolls.
TRIPS = (4, 4)
# Of the comparison: the value's gradient is summed in float32, or in the dtype of the value.
KERNELS = ("forward", "forward with softmax", "backward, float32 sums", "backward, sums as the value")


class Recorder:
    """Stands in for a kernel, and records its launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.arguments, self.options = arguments, options

        return launch

    def compile(self, target: GPUTarget) -> "Compiled":
        """Compile the kernel for a GPU as Triton would for the recorded arguments."""
        if not self.options:
            raise RuntimeError(f"{self.kernel} was not launched")
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = bind(*self.arguments, **self.options)
        kinds = [kind for kind, _ in specialization]
        values = zip(kinds, bound.values(), strict=True)
        ast = ASTSource(
            fn=self.kernel,
            signature=dict(zip(bound, kinds, strict=True)),
            constexprs={(index,): value for index, (kind, value) in enumerate(values) if kind == "constexpr"},
            attrs={
                (index,): backend.parse_attr(attribute)
                for index, (kind, attribute) in enumerate(specialization)
                if kind != "constexpr" and isinstance(attribute, str)
            },
        )
        rows = bound.get("ROWS", bound.get("BLOCK_SIZE_Q"))
        with warnings.catch_warnings():
            # Newer compilers warn of a default that is set here.
            warnings.simplefilter("ignore")
            # Of processors, those of the assembler's process included: other work on the machine does not matter.
            started = sum(os.times()[:4])
            compiled = triton.compile(ast, target=target, options=options)
            seconds = sum(os.times()[:4]) - started
        return Compiled(compiled.asm, rows / compiled.metadata.num_warps, seconds)


class Compiled(NamedTuple):
    """A kernel for a GPU; a warp computes so many rows of a query and head, and compiling took so many seconds."""

    asm: Mapping[str, Any]
    rows_per_warp: float
    seconds: float


class Code(NamedTuple):
    """Machine code for an NVIDIA GPU; `executed` is the number of instructions that one warp executes."""

    instructions: Counter[str]
    registers: int
    executed: int

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))


def build(
    direction: str,
    dtype: str,
    target: GPUTarget,
    *,
    coordinates: int = 0,
    half_sums: bool = False,
    needs: Sequence[str] = ("VALUE", "LOCATIONS", "WEIGHTS"),
) -> Compiled:
    """Compile one of our kernels as it is launched for many queries.

    Args:
        direction: `forward` or `backward`.
        dtype: Of the value, as in `DTYPES`.
        target: Which GPU.
        coordinates: Of the reference points, if the kernel is fused.
        half_sums: Whether the gradient of the value is summed in the dtype of the value.
        needs: Which gradients the backward computes.
    """
    sizes, value, locations, weights = _inputs(dtype, torch.float32)
    half = DTYPES[dtype] != torch.float32
    predicates = target.backend == "cuda"
    vector_sums = (DTYPES[dtype],) if predicates and target.arch >= 90 and half else ()
    architecture = _launch_table.Architecture(str(target.arch), target.warp_size, predicates, vector_sums)
    references = locations.new_empty(*locations.shape[:2], LEVELS, coordinates) if coordinates else None
    module, name = (_forward if direction == "forward" else _backward), f"ms_deform_attn_{direction}"
    recorder = Recorder(getattr(module, name))
    offsets = locations.to(value.dtype) if coordinates else locations
    given = value, pack_shapes(sizes), _triton.Sampling(offsets, weights, references)
    with (
        mock.patch.object(module, name, recorder),
        mock.patch.object(_launch_table, "architecture_of", return_value=architecture),
    ):
        if direction == "forward":
            _triton.forward(*given)
        else:
            grad = value.new_empty(*weights.shape[:2], HEADS * CHANNELS)
            wanted = _triton.Needs(*(name in needs for name in ("VALUE", "LOCATIONS", "WEIGHTS", "REFERENCES")))
            _triton.backward(grad, grad, *given, wanted, _triton.Sums(in_order=False, in_half=half_sums))
    return recorder.compile(target)


def build_peer(kernel: str, dtype: str, target: GPUTarget) -> Compiled | None:
    """Compile a kernel of deformops as it is launched by default; `None` if there is none."""
    sums_as_value = kernel == KERNELS[3]
    if sums_as_value and (dtype == "fp32" or target.arch < 90):
        return None
    package = "deformops.backends.triton"
    is_forward = kernel.startswith("forward")
    module: Any = importlib.import_module(f"{package}.{'_launch' if is_forward else '_kernels.msda_query_tiled'}")
    recorder = Recorder(module.msda_forward_kernel if is_forward else module._msda_backward_kernel)
    sizes, value, locations, weights = _inputs(dtype, DTYPES[dtype])
    shapes = torch.tensor(sizes)
    given = value, shapes, shapes.prod(1), locations, weights
    with mock.patch.object(module, "wrap_triton", return_value=recorder):
        if is_forward:
            module.query_tiled_forward_launch(*given, int(kernel == KERNELS[1]))
        else:
            launch = module.atomic_backward_launch if sums_as_value else module.float32_backward_launch
            launch(value.new_empty(1, locations.shape[1], HEADS, CHANNELS), *given)
    return recorder.compile(target)


def _inputs(
    dtype: str, locations_dtype: torch.dtype
) -> tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sizes of the levels, value, locations and weights, all without content."""
    queries = _launch_table.MANY_ROWS // HEADS
    sizes = [(8, 8), (4, 4), (2, 2), (1, 1)]
    value = torch.empty(1, sum(height * width for height, width in sizes), HEADS, CHANNELS, dtype=DTYPES[dtype])
    locations = torch.empty(1, queries, HEADS, LEVELS, POINTS, 2, dtype=locations_dtype)
    return sizes, value, locations, value.new_empty(locations.shape[:-1])


def disassemble(compiled: Compiled, trips: Sequence[int] = TRIPS) -> Code:
    """Count the instructions of a kernel for NVIDIA GPUs, whose nested loops have so many iterations."""
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
    depths = [sum(first <= number < end for first, end in loops) for number in range(len(found))]
    if max(depths) > len(trips):
        raise RuntimeError(f"loops are nested {max(depths)} deep, and the iterations of {len(trips)} are known")
    return Code(Counter(found), int(registers[1]), sum(math.prod(trips[:depth]) for depth in depths))


def measure() -> dict[str, Any]:
    """Compile and read all kernels."""
    rows = []
    for target, direction, coordinates, dtype in product(("sm_90", "gfx942"), ("forward", "backward"), (0, 2), DTYPES):
        compiled = build(direction, dtype, NVIDIA.get(target, AMD), coordinates=coordinates)
        row = {"target": target, "kernel": direction, "fused": bool(coordinates), "dtype": dtype}
        row["seconds"] = round(compiled.seconds, 1)
        if target in NVIDIA:
            code = disassemble(compiled)
            row |= {
                "registers": code.registers,
                "spilled": code.count("(LDL|STL)"),
                "instructions": round(code.executed / compiled.rows_per_warp),
            }
        else:
            found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", compiled.asm["amdgcn"]))
            row |= {"registers": int(found["vgpr_count"]), "spilled": int(found["vgpr_spill_count"])}
        rows.append(row)
    comparison = [compare(*names) for names in product(KERNELS, ("fp32", "bf16"), NVIDIA)]
    origin = describe_source(
        "TRITON_ALWAYS_COMPILE=1 python -m benchmarks.machine_code", packages=("python", "triton", PEER)
    )
    return {**origin, "rows": rows, "comparison": [row for row in comparison if "instructions" in row]}


def compare(kernel: str, dtype: str, target: str) -> dict[str, Any]:
    """Return instructions per query and head of ours and of deformops, if both have such a kernel."""
    row: dict[str, Any] = {"kernel": kernel, "dtype": dtype, "target": target}
    theirs = build_peer(kernel, dtype, NVIDIA[target])
    if theirs is not None:
        settings = {"coordinates": 2 if kernel == KERNELS[1] else 0, "half_sums": kernel == KERNELS[3]}
        ours = build(kernel.partition(" ")[0].strip(","), dtype, NVIDIA[target], **settings)
        row["instructions"] = {
            name: round(disassemble(each).executed / each.rows_per_warp)
            for name, each in (("ours", ours), (PEER, theirs))
        }
    return row


def parts() -> Parts:
    """Return the tables of the page."""
    results = read(STORED)
    heads = ["target", "kernel", "value", "instructions per query and head"]
    heads += ["registers", "spilled", "compiled in (CPU s)"]
    rows = (
        [row["target"], row["kernel"] + ", fused" * row["fused"], row["dtype"]]
        + [str(row.get(name, "")) for name in ("instructions", "registers", "spilled", "seconds")]
        for row in results["rows"]
    )
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in results["comparison"]:
        counts = row["instructions"]
        cells.setdefault((row["kernel"], row["dtype"]), {})[row["target"]] = f"{counts['ours']} / {counts[PEER]}"
    compared = [[*names, *(found.get(target, "") for target in NVIDIA)] for names, found in cells.items()]
    return {
        (DOCS / "gpu.md", ""): f"{markdown(heads, rows, left=3)}\n\n{source(STORED)} One core of a shared CPU.",
        (DOCS / "gpu.md", "comparison"): markdown(["kernel", "value", *NVIDIA], compared, left=2),
    }


if __name__ == "__main__":
    store(STORED, measure())
    write(parts())
