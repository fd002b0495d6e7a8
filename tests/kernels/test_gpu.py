"""Tests of the kernels that need a GPU: `pytest -m gpu` runs these, and `test_kernels.py` on the GPU."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn
from deformdetr.nn import MSDeformAttn
from deformdetr.testing import check_ms_deform_attn, random_inputs

pytestmark = pytest.mark.gpu

SHAPES = [(9, 11), (5, 6), (3, 3), (2, 1)]


def fused_inputs(rng: torch.Generator, shapes: list[tuple[int, int]], dtype: torch.dtype, queries: int = 33) -> list:
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(2, pixels, 4, 32, generator=rng).to("cuda", dtype)
    references = torch.rand(2, queries, len(shapes), 2, generator=rng).cuda()
    offsets = torch.randn(2, queries, 4, len(shapes), 4, 2, generator=rng).to("cuda", dtype)
    logits = torch.randn(2, queries, 4, len(shapes), 4, generator=rng).to("cuda", dtype)
    return [tensor.requires_grad_() for tensor in (value, references, offsets, logits)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_waits_for_the_device(deterministic: bool, rng: torch.Generator):
    inputs = fused_inputs(rng, SHAPES, torch.bfloat16)
    for shapes in (SHAPES, torch.tensor(SHAPES), torch.tensor(SHAPES, device="cuda")):
        torch.cuda.set_sync_debug_mode("error")
        try:
            fused_ms_deform_attn(inputs[0], shapes, *inputs[1:], deterministic=deterministic).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_forward_and_backward_can_be_captured_in_a_graph(rng: torch.Generator):
    inputs = fused_inputs(rng, SHAPES, torch.float32)
    grad = torch.randn(2, 33, 128, generator=rng).cuda()

    def step() -> tuple[Tensor, ...]:
        out = fused_ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
        return out, *torch.autograd.grad(out, inputs, grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in inputs:
            tensor.copy_(torch.randn(tensor.shape, generator=rng))
    graph.replay()
    for got, wanted in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_graph_may_be_captured_for_new_sizes(rng: torch.Generator):
    value, *rest = (tensor.detach() for tensor in fused_inputs(rng, SHAPES, torch.float32))
    fused_ms_deform_attn(value, SHAPES, *rest)
    other = [(11, 9), (5, 6), (3, 3), (1, 2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused_ms_deform_attn(value, other, *rest)
    graph.replay()
    torch.testing.assert_close(captured, fused_ms_deform_attn(value, other, *rest))


def test_other_streams_give_the_same_result(rng: torch.Generator):
    value, *rest = (tensor.detach() for tensor in fused_inputs(rng, SHAPES, torch.float32))
    expected = fused_ms_deform_attn(value, SHAPES, *rest)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        out = fused_ms_deform_attn(value, SHAPES, *rest)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


def test_values_of_more_than_2_to_the_31_elements(rng: torch.Generator):
    # Bilinear ramps, so that the expected numbers are known without a second copy of the value.
    height, width, heads, channels = 2048, 2050, 8, 64
    line = torch.arange(height, device="cuda", dtype=torch.float32) / height
    value = (
        line.bfloat16()
        .view(1, height, 1, 1, 1)
        .expand(1, height, width, heads, channels)
        .reshape(1, -1, heads, channels)
    )
    assert value.numel() > 2**31
    locations = torch.rand(1, 64, heads, 1, 4, 2, generator=rng).cuda() * 0.9 + 0.05
    weights = torch.full((1, 64, heads, 1, 4), 0.25, device="cuda", dtype=torch.bfloat16)
    out = ms_deform_attn(value, [(height, width)], locations, weights)
    expected = locations[..., 1].mean((3, 4)).unsqueeze(-1).expand(-1, -1, -1, channels).flatten(2)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=8e-3)


def test_more_images_than_a_grid_takes(seed: int):
    check_ms_deform_attn(ms_deform_attn, device="cuda", cases=["huge_batch"], seed=seed).raise_for_failures()


def test_training_allocates_only_results_gradients_and_one_sum(rng: torch.Generator):
    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)]
    inputs = fused_inputs(rng, shapes, torch.bfloat16, queries=22223)
    fused_ms_deform_attn(inputs[0], shapes, *inputs[1:]).sum().backward()
    for tensor in inputs:
        tensor.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = fused_ms_deform_attn(inputs[0], shapes, *inputs[1:])
    # Nothing is kept but the output.
    assert torch.cuda.memory_allocated() - before <= out.numel() * 2 + 2**16
    out.backward(torch.ones_like(out))
    grads = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    per_head = inputs[1].numel() * 4 * 4
    allowed = grads + per_head + inputs[0].numel() * 4 + 2 * out.numel() * 2 + 2**20
    assert torch.cuda.max_memory_allocated() - before <= allowed


@pytest.mark.compile
def test_compiled_layer_serves_twenty_image_sizes_with_one_more_compilation(rng: torch.Generator):
    torch.compiler.reset()
    layer = MSDeformAttn(64, 2, 2, 4).cuda()
    counter = CompileCounterWithBackend("inductor")

    def attend(fine: Tensor, coarse: Tensor, query: Tensor, references: Tensor) -> Tensor:
        levels = (fine, coarse)
        features = torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)
        return layer(query, references, features, [(level.shape[-2], level.shape[-1]) for level in levels])

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for step in range(20):
        height, width = 8 + step, 40 - step
        inputs = [
            torch.randn(2, 64, height, width, generator=rng).cuda(),
            torch.randn(2, 64, height // 2, width // 2, generator=rng).cuda(),
            torch.randn(2, 5 + step, 64, generator=rng).cuda(),
            torch.rand(2, 5 + step, 2, 2, generator=rng).cuda(),
        ]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        out, expected = compiled(*inputs), attend(*inputs)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
        for got, wanted in zip(
            torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    assert counter.frame_count == 2


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_opcheck_passes_on_the_ops(rng: torch.Generator):
    homes = (None, [size for shape in SHAPES for size in shape], [])
    value, locations, weights = (t.to("cuda", torch.float32).requires_grad_() for t in random_inputs(rng, SHAPES))
    opcheck(torch.ops.deformdetr.ms_deform_attn.default, (value, *homes, locations, weights, None, None, False))
    inputs = fused_inputs(rng, SHAPES, torch.float32)
    value, references, offsets, logits = inputs
    opcheck(torch.ops.deformdetr.ms_deform_attn.default, (value, *homes, offsets, logits, references, None, False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_keeps_reference_points_in_float32(dtype: torch.dtype, rng: torch.Generator):
    # Stripes two pixels wide, sampled by references alone: in half precision they would be a stripe off.
    layer = MSDeformAttn(32, 1, 1, 1).cuda()
    torch.nn.init.zeros_(layer.sampling_offsets.bias)
    torch.nn.init.eye_(layer.value_proj.weight)
    torch.nn.init.eye_(layer.output_proj.weight)
    stripes = ((torch.arange(4096) // 2 % 2).float()).view(1, -1, 1).expand(1, -1, 32).cuda()
    column = torch.randint(0, 4096, (1, 100, 1, 1), generator=rng).cuda()
    references = torch.cat([(column + 0.5) / 4096, torch.full_like(column, 0.5, dtype=torch.float32)], dim=-1)
    with torch.autocast("cuda", dtype):
        out = layer(torch.zeros(1, 100, 32, device="cuda"), references, stripes, [(1, 4096)])
    assert out.dtype == dtype
    torch.testing.assert_close(out[..., 0].float(), stripes[0, column.flatten(), 0][None], rtol=0, atol=0.02)


def test_gradients_that_overflow_reach_the_scaler_as_infinity(rng: torch.Generator):
    inputs = fused_inputs(rng, SHAPES, torch.float16)
    out = fused_ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
    out.backward(torch.full_like(out, 6e4))
    assert not inputs[0].grad.isfinite().all()
    assert not inputs[0].grad.isnan().any()


SMALL_CASE = """
import torch
from deformdetr.kernels import fused_ms_deform_attn

shapes = [(9, 11), (3, 1)]
for dtype in (torch.float32, torch.bfloat16):
    inputs = [
        torch.randn(2, 102, 2, 24, device="cuda", dtype=dtype),
        torch.rand(2, 35, 2, 4, device="cuda"),
        torch.randn(2, 35, 2, 2, 3, 2, device="cuda", dtype=dtype),
        torch.randn(2, 35, 2, 2, 3, device="cuda", dtype=dtype),
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    mask = torch.rand(2, 102, device="cuda") < 0.3
    for deterministic in (False, True):
        out = fused_ms_deform_attn(inputs[0], shapes, *inputs[1:], mask, deterministic=deterministic)
        out.sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer comes with the CUDA toolkit")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_finds_nothing(tool: str):
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL_CASE]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
