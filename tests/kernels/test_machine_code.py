"""Machine code of the Triton kernels, compiled offline for devices that need not be present."""

import itertools
import re
import sys
import types
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from benchmarks.machine_code import AMD, DTYPES, KERNELS, NVIDIA, build, build_peer, disassemble
from torch import Tensor
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from deformdetr.kernels import _triton
from deformdetr.kernels._levels import pack_shapes
from deformdetr.kernels._triton import _backward, _forward


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coordinates", [0, 4], ids=["locations", "fused"])
def test_backward_adds_vectors_and_waits_for_none_of_them(dtype: str, coordinates: int):
    needs = ("VALUE", "LOCATIONS", "WEIGHTS", *(["REFERENCES"] if coordinates else []))
    code = disassemble(build("backward", dtype, NVIDIA["sm_90"], coordinates=coordinates, needs=needs))
    halves = 1 if dtype == "fp32" else 2
    # A point of four corners, each added in two passes.
    assert code.count(r"REDG?\..*ADD\.F32x4") == 4 * 2 * halves
    assert code.count(r"ATOM") == 0
    assert code.count(r"(MEMBAR|ERRBAR|CCTL)") == 0
    assert code.count(r"(LDL|STL)") == 0
    # One before the gradients of logits in half precision are corrected.
    assert code.count(r"BAR") == (1 if coordinates and dtype != "fp32" else 0)
    assert code.registers <= 128


@pytest.mark.parametrize(
    ("target", "dtype", "coordinates"), [("sm_90", "fp16", 0), ("sm_90", "bf16", 4), ("sm_120", "bf16", 0)]
)
def test_sums_in_half_precision_add_eight_channels_at_once(target: str, dtype: str, coordinates: int):
    code = disassemble(build("backward", dtype, NVIDIA[target], coordinates=coordinates, half_sums=True))
    # Half as many as of four float32 numbers each: a point of four corners, each added in two passes.
    assert code.count({"fp16": r"REDG?\..*ADD\.F16x8", "bf16": r"REDG?\..*ADD\.BF16x8"}[dtype]) == 4 * 2
    assert code.count(r"REDG?\..*F32") == 0
    assert code.count(r"(ATOM|MEMBAR|ERRBAR|CCTL|LDL|STL)") == 0
    assert code.count(r"BAR") == (1 if coordinates else 0)
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
    # Addresses are kept in spare lanes of vector registers, not in memory.
    assert int(re.search(r"\.sgpr_spill_count:\s+(\d+)", text)[1]) <= 4
    assert int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]) <= 256
    assert "global_load_dwordx4" in text or "buffer_load_dwordx4" in text


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 250), ("bf16", 230)])
def test_instructions_per_query_and_head_stay_few(dtype: str, most: int):
    compiled = build("forward", dtype, NVIDIA["sm_90"])
    assert disassemble(compiled).executed / compiled.rows_per_warp <= most


@triton.jit
def double(value, out, BLOCK_SIZE_Q: tl.constexpr):
    row = tl.program_id(0) * BLOCK_SIZE_Q + tl.arange(0, BLOCK_SIZE_Q)
    tl.store(out + row, 2 * tl.load(value + row))


def test_kernels_of_other_packages_are_compiled_as_they_are_launched(monkeypatch: pytest.MonkeyPatch):
    def launch(value: Tensor, *others: Any) -> None:
        module.wrap_triton(module.msda_forward_kernel)[(1,)](value, value, BLOCK_SIZE_Q=1024, num_warps=8)

    module: Any = types.ModuleType("deformops.backends.triton._launch")
    module.msda_forward_kernel, module.query_tiled_forward_launch, module.wrap_triton = double, launch, None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    compiled = build_peer(KERNELS[0], "fp32", NVIDIA["sm_90"])
    assert compiled.rows_per_warp == 128
    # Four numbers of 32 bits for each of 256 threads.
    assert disassemble(compiled).count(r"LDG\..*128") == 1
    # Half sums of float32 there are none, nor of bfloat16 where the hardware does not add it.
    assert build_peer(KERNELS[3], "fp32", NVIDIA["sm_90"]) is None
    assert build_peer(KERNELS[3], "bf16", NVIDIA["sm_80"]) is None


class Recorder:
    """Record which variants of a kernel would be compiled, in place of the kernel."""

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
    recorders = []
    for module, name in ((_forward, "ms_deform_attn_forward"), (_backward, "ms_deform_attn_backward")):
        recorders.append(Recorder(getattr(module, name)))
        monkeypatch.setattr(module, name, recorders[-1])
    for batch, queries, height, width in itertools.product((1, 2, 16), (1, 16, 301), (1, 32, 47), (16, 101)):
        shapes = [(height, width), (1, 1)]
        # Views at odd places, as slices of larger tensors are.
        value = torch.zeros(batch * (height * width + 1) * 16 + 1)[1:].view(batch, -1, 2, 8)
        locations = torch.zeros(batch, queries, 2, 2, 4, 2)
        weights = torch.zeros(batch, queries, 2, 2, 4)
        references = torch.zeros(1, queries, 2, 2).expand(batch, -1, -1, -1) if fused else None
        pyramid = pack_shapes(torch.tensor(shapes) if as_tensor else shapes)
        sampling = _triton.Sampling(locations, weights, references)
        out = _triton.forward(value, pyramid, sampling)
        needs = _triton.Needs(value=True, locations=True, weights=True, references=fused)
        _triton.backward(out, out, value, pyramid, sampling, needs, _triton.Sums(in_order=False))
    for recorder in recorders:
        assert len(recorder.variants) == 1
