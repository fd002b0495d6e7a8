"""What Triton makes of the kernels for real devices, none of which need be there: compiled offline, and read."""

import itertools
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

from deformdetr.kernels._ms_deform_attn import _gpu, _launch, _triton  # noqa: E402
from deformdetr.kernels._ms_deform_attn._levels import split_by_home  # noqa: E402

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter compiles nothing")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NVIDIA = {name: GPUTarget("cuda", number, 32) for name, number in (("sm_80", 80), ("sm_90", 90), ("sm_120", 120))}
AMD = GPUTarget("hip", "gfx942", 64)

WORDS = {"fp32": 4, "fp16": 2, "bf16": 2}


class Code(NamedTuple):
    """Machine code for an NVIDIA GPU."""

    instructions: Counter[str]
    registers: int
    shared_bytes: int

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))


def build(direction: str, dtype: str, target: GPUTarget, size: str = "many", **changes: Any) -> Any:
    """Compile a kernel as `_gpu` launches it for four levels, four points and eight heads of 32 channels."""
    coordinates = changes.pop("coordinates", 0)
    needs = changes.pop("needs", ("VALUE", "LOCATIONS", "WEIGHTS"))
    channels = changes.pop("channels", 32)
    paired = channels % 2 == 0 and (dtype == "bf16" or (dtype == "fp16" and direction == "backward"))
    word = 4 if paired else WORDS[dtype]
    launch = _launch.choose(
        direction,
        _launch.Architecture(str(target.arch), target.warp_size, predicates_loads=target.backend == "cuda"),
        precision="float32" if dtype == "fp32" else "half",
        row_words=channels // 2 if paired else channels,
        word_size=word,
        rows=2**20 if size == "many" else 1,
    )
    constants = {
        "M": 8, "D": channels, "L": 4, "P": 4, "COORDINATES": coordinates, "PADDED": False, "ORDERED": False,
        "GROUPED": False, "PAIRED": paired, "WIDE": False, "POINTS": 16,
        "PREDICATED": target.backend == "cuda",
        "ROWS": launch.rows, "CHUNKS": launch.chunks, "WIDTH": launch.width,
    }  # fmt: skip
    kernel = getattr(_triton, f"ms_deform_attn_{direction}")
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
        # The compiler's own; newer ones warn of a default that is given here.
        warnings.simplefilter("ignore")
        return triton.compile(source, target=target, options=options)


def disassemble(compiled: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text, usage = (
            subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.a-z]+)", text, re.MULTILINE)
    registers = re.search(r"REG:(\d+)", usage)
    assert found
    assert registers
    return Code(Counter(found), int(registers[1]), compiled.metadata.shared)


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("sm_80", "bf16"), ("sm_90", "fp32"), ("sm_90", "fp16"), ("sm_90", "bf16"), ("sm_120", "bf16")],
)
@pytest.mark.parametrize("coordinates", [0, 2], ids=["locations", "fused"])
def test_forward_reads_16_bytes_at_once_and_neither_spills_nor_waits(target: str, dtype: str, coordinates: int):
    code = disassemble(build("forward", dtype, NVIDIA[target], coordinates=coordinates))
    # Four points of four corners, each read in two passes.
    assert code.count(r"LDG\..*128") >= 32
    assert code.count(r"(LDL|STL)") == 0
    assert code.count(r"BAR") == 0
    assert code.count(r"(ATOM|RED)") == 0
    assert code.registers <= 80


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("coordinates", [0, 4], ids=["locations", "fused"])
def test_backward_adds_vectors_and_waits_for_none_of_them(dtype: str, coordinates: int):
    needs = ("VALUE", "LOCATIONS", "WEIGHTS", *(["REFERENCES"] if coordinates else []))
    code = disassemble(build("backward", dtype, NVIDIA["sm_90"], coordinates=coordinates, needs=needs))
    halves = 1 if dtype == "fp32" else 2
    assert code.count(r"REDG?\..*ADD\.F32x4") == 4 * 4 * 2 * halves
    assert code.count(r"ATOM") == 0
    assert code.count(r"(MEMBAR|ERRBAR|CCTL)") == 0
    assert code.count(r"(LDL|STL)") == 0
    assert code.count(r"BAR") == 0
    assert code.registers <= 128


@pytest.mark.parametrize(("target", "dtype"), [("sm_80", "fp32"), ("sm_120", "bf16")])
def test_backward_does_not_spill_elsewhere(target: str, dtype: str):
    code = disassemble(build("backward", dtype, NVIDIA[target]))
    assert code.count(r"(LDL|STL)") == 0
    assert code.count(r"(ATOM|MEMBAR)") == 0
    assert code.registers <= 168


def test_backward_of_a_frozen_value_adds_nothing():
    code = disassemble(build("backward", "bf16", NVIDIA["sm_90"], needs=("LOCATIONS", "WEIGHTS")))
    assert code.count(r"(ATOM|RED)") == 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_for_amd_do_not_spill(direction: str, dtype: str):
    text = build(direction, dtype, AMD).asm["amdgcn"]
    assert int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1]) == 0
    assert int(re.search(r"\.sgpr_spill_count:\s+(\d+)", text)[1]) == 0
    assert int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]) <= 256
    assert "global_load_dwordx4" in text or "buffer_load_dwordx4" in text


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 260), ("bf16", 240)])
def test_instructions_per_query_and_head_stay_few(dtype: str, most: int):
    # An upper bound, as if all of it were the body of the rolled loop over four levels; a warp serves these rows.
    rows = {"fp32": 8, "bf16": 16}[dtype]
    code = disassemble(build("forward", dtype, NVIDIA["sm_90"]))
    assert 4 * sum(code.instructions.values()) / rows <= most * 1.15


class Recorder:
    """Stands for a kernel, and remembers how it would have been compiled."""

    def __init__(self, kernel: Any) -> None:
        self.bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(NVIDIA["sm_90"]))
        self.variants: set[str] = set()

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            _, specialization, chosen = self.bind(*args, **options, debug=False)
            self.variants.add(f"{specialization} {chosen}")

        return launch


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_new_sizes_of_images_queries_and_batches_compile_nothing(
    fused: bool, as_tensor: bool, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
):
    kernels = {name: Recorder(getattr(_triton, name)) for name in ("ms_deform_attn_forward", "ms_deform_attn_backward")}
    for name, recorder in kernels.items():
        monkeypatch.setattr(_triton, name, recorder)
    for batch, queries, height, width in itertools.product((1, 2, 16), (1, 16, 301), (1, 32, 47), (16, 101)):
        shapes = [(height, width), (1, 1)]
        # Views at odd places, as slices of larger tensors are.
        value = torch.zeros(batch * (height * width + 1) * 16 + 1)[1:].view(batch, -1, 2, 8)
        locations = torch.zeros(batch, queries, 2, 2, 4, 2)
        weights = torch.zeros(batch, queries, 2, 2, 4)
        references = torch.zeros(1, queries, 2, 2).expand(batch, -1, -1, -1) if fused else None
        pyramid = split_by_home(torch.tensor(shapes) if as_tensor else shapes, [])
        sampling = _gpu.Sampling(locations, weights, references)
        out = _gpu.forward(value, pyramid, sampling)
        needs = _gpu.Needs(value=True, locations=True, weights=True, references=fused)
        _gpu.backward(out, out, value, pyramid, sampling, needs, deterministic=False)
    for recorder in kernels.values():
        assert len(recorder.variants) == 1
