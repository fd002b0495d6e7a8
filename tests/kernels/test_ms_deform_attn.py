import functools
import inspect
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from deformdetr.kernels import ms_deform_attn, register_flop_formulas, sampling_locations
from deformdetr.testing import (
    CASES,
    PYRAMIDS,
    TOLERANCES,
    away_from_pixel_borders,
    check_ms_deform_attn,
    output_and_gradients,
    random_inputs,
)
from goldens import load_golden, unit
from sampling import WITH_INTS


def by_grid_sample(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the operator independently, with PyTorch's sampler."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    out = value.new_zeros(batch, queries, heads, channels)
    for level, features in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        height, width = shapes[level]
        maps = features.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = sampled.view(batch, heads, channels, queries, -1).permute(0, 3, 1, 2, 4)
        out = out + (sampled * weights[:, :, :, level, None]).sum(-1)
    return out.flatten(2)


# `test_compile.py` has those that compile.
PLAIN = [name for name, case in CASES.items() if case.mode not in ("compile", "export") and name != "huge_batch"]
# Where PyTorch's sampler does the same; it counts samples at NaN otherwise.
BY_GRID_SAMPLE = (
    "pyramids", "thin_levels", "channels", "levels_points_heads", "images_and_queries", "queries_are_pixels",
    "large_batch", "pixel_centers", "edges", "hot_pixel", "non_contiguous", "partial_gradients", "uninitialized_memory",
)  # fmt: skip


@pytest.mark.parametrize("case", BY_GRID_SAMPLE)
def test_exact_results_are_those_of_grid_sample(case: str, seed: int):
    dtypes = [torch.float64, torch.float32]
    check_ms_deform_attn(
        by_grid_sample, dtypes=dtypes, cases=[case], convention=WITH_INTS, seed=seed
    ).raise_for_failures()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", PLAIN)
def test_reference_conforms(case: str, dtype: torch.dtype, seed: int):
    attend = functools.partial(ms_deform_attn, backend="reference")
    check_ms_deform_attn(attend, dtypes=[dtype], cases=[case], seed=seed).raise_for_failures()


def test_operator_takes_more_images_than_a_cuda_grid(seed: int):
    check_ms_deform_attn(ms_deform_attn, cases=["huge_batch"], dtypes=[torch.float32], seed=seed).raise_for_failures()


def test_operator_conforms_in_float64(seed: int):
    check_ms_deform_attn(ms_deform_attn, dtypes=[torch.float64], cases=PLAIN, seed=seed).raise_for_failures()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("case", ["a", "b", "odd"])
def test_output_and_gradients_equal_the_goldens(case: str, as_tensor: bool, backend: str):
    golden = load_golden("parts").arrays
    batch, heads, channels, queries, levels, points = golden[f"op/{case}/dims"].tolist()
    shapes = golden[f"op/{case}/shapes"].tolist()
    value = unit(f"op.{case}.value", (batch, sum(h * w for h, w in shapes), heads, channels))
    locations = unit(f"op.{case}.locations", (batch, queries, heads, levels, points, 2)) * 0.45 + 0.5
    weights = unit(f"op.{case}.weights", (batch, queries, heads, levels * points)).softmax(-1)
    weights = weights.unflatten(-1, (levels, points))
    grad = unit(f"op.{case}.grad_output", (batch, queries, heads * channels))
    given = torch.tensor(shapes) if as_tensor else shapes
    results = output_and_gradients(
        lambda v, x, w: ms_deform_attn(v, given, x, w, backend), [value, locations, weights], grad
    )
    for actual, name in zip(results, ("output", "grad_value", "grad_locations", "grad_weights"), strict=True):
        torch.testing.assert_close(actual, torch.from_numpy(golden[f"op/{case}/{name}"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_gradcheck_passes_once_and_twice(pyramid: str, rng: torch.Generator):
    shapes = PYRAMIDS[pyramid]
    value, locations, weights = random_inputs(rng, shapes, batch=2, queries=2, heads=2, channels=3, points=2)
    inputs = [value, away_from_pixel_borders(locations, shapes), weights]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, locations, weights)

    assert torch.autograd.gradcheck(attend, inputs)
    # The fast mode looks at random projections of the second derivatives, of which there are many.
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


# opcheck itself reads the gradients of non-leaf tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.compile
@pytest.mark.parametrize("as_tensor", [False, True])
def test_opcheck_passes_on_the_forward_and_the_backward_op(as_tensor: bool, rng: torch.Generator):
    shapes = PYRAMIDS["four_levels"]
    value, locations, weights = (tensor.requires_grad_() for tensor in random_inputs(rng, shapes))
    homes = (torch.tensor(shapes), [], []) if as_tensor else (None, [size for shape in shapes for size in shape], [])
    grad = torch.randn(2, 7, 15, generator=rng, dtype=torch.float64).requires_grad_()
    opcheck(torch.ops.deformdetr.ms_deform_attn.default, (value, *homes, locations, weights, None, None, False))
    opcheck(
        torch.ops.deformdetr.ms_deform_attn_backward.default,
        (grad, None, value, *homes, locations, weights, None, None, False, True, True, True, False),
    )


# Triton's interpreter fuses in float32.
INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="a kernel fuses")


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=INTERPRETED)])
def test_fused_op_is_refused_where_no_kernel_fuses(dtype: torch.dtype, rng: torch.Generator):
    value, offsets, logits = (tensor.to(dtype) for tensor in random_inputs(rng, [(5, 7)]))
    references, output = torch.rand(2, 7, 1, 2, generator=rng, dtype=dtype), value.new_zeros(2, 7, 15)
    inputs = (value, None, [5, 7], [], offsets, logits, references, None, False)
    message = f"fused op runs on GPUs and not in float64, got {dtype} on cpu"
    with pytest.raises(ValueError, match=message):
        torch.ops.deformdetr.ms_deform_attn(*inputs)
    with pytest.raises(ValueError, match=message):
        torch.ops.deformdetr.ms_deform_attn_backward(output, output, *inputs, True, True, True, True)


def test_corners_of_the_image_are_sampled_at_pixel_centers():
    value = torch.arange(6.0).view(1, 6, 1, 1)
    locations = torch.tensor([[0.5 / 3, 0.25], [2.5 / 3, 0.25], [0.5 / 3, 0.75], [2.5 / 3, 0.75], [0.5, 0.5], [0, 0]])
    out = ms_deform_attn(value, [(2, 3)], locations.view(1, 6, 1, 1, 1, 2), torch.ones(1, 6, 1, 1, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([0, 2, 3, 5, 2.5, 0]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": torch.zeros(2, 35, 3, dtype=torch.float64)}, ValueError, r"value must have 4 dim.*\(2, 35, 3\)"),
        ({"value": torch.zeros(2, 34, 3, 5)}, ValueError, r"\[\(5, 7\)\] hold 35 pixels, but value holds 34"),
        ({"value": torch.zeros(2, 35, 4, 5)}, ValueError, r"agree in batch and heads"),
        ({"value": torch.zeros(2, 35, 3, 5, dtype=torch.int64)}, TypeError, r"floating-point, got torch.int64"),
        ({"attention_weights": torch.zeros(2, 7, 3, 1, 4)}, ValueError, r"\(2, 7, 3, 1, 4\) with a last axis of 2"),
        ({"spatial_shapes": [(5, 7), (1, 1)]}, ValueError, r"must be 1 pairs \(height, width\)"),
        ({"spatial_shapes": torch.tensor([[5.0, 7.0]])}, TypeError, r"integers, got torch.float32"),
        ({"spatial_shapes": torch.tensor([[5, 7], [1, 1]])}, ValueError, r"shape \(1, 2\), got \(2, 2\)"),
        ({"spatial_shapes": torch.tensor([[5, 8]])}, ValueError, r"hold 40 pixels, but value holds 35"),
        ({"backend": "cuda"}, ValueError, r"'cuda'"),
    ],
    ids=lambda value: None,
)
def test_wrong_arguments_are_refused_with_their_values(change, error, message, rng: torch.Generator):
    value, locations, weights = random_inputs(rng, PYRAMIDS["one_level"])
    arguments = {
        "value": value,
        "spatial_shapes": PYRAMIDS["one_level"],
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    # The function itself, as users have it, without the checks that the test session adds around it.
    with pytest.raises(error, match=message):
        inspect.unwrap(ms_deform_attn)(**arguments | change)


def test_reference_points_on_another_device_than_offsets_are_refused_by_the_names_of_both():
    offsets = torch.zeros(1, 2, 1, 1, 1, 2)
    with pytest.raises(ValueError, match="reference_points is on meta, but sampling_offsets is on cpu"):
        sampling_locations(torch.rand(1, 2, 1, 2, device="meta"), offsets, [(2, 3)])


def test_flops_are_counted_by_the_formula_once_registered(rng: torch.Generator):
    from torch.utils.flop_counter import FlopCounterMode

    register_flop_formulas()
    shapes = PYRAMIDS["four_levels"]
    value, locations, weights = (tensor.requires_grad_() for tensor in random_inputs(rng, shapes))
    with FlopCounterMode(display=False) as counter:
        out = ms_deform_attn(value, shapes, locations, weights)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 4 * weights.numel() * 5
    assert counter.get_total_flops() == 3 * forward
