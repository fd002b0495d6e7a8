import inspect
import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from deformdetr.kernels import ms_deform_attn, register_flop_formulas
from goldens import load_golden, unit
from sampling import PYRAMIDS, TOLERANCE, assert_close, away_from_pixel_borders, gradients, random_inputs


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
    results = gradients(lambda v, x, w: ms_deform_attn(v, given, x, w, backend), [value, locations, weights], grad)
    for actual, name in zip(results, ("output", "grad_value", "grad_locations", "grad_weights"), strict=True):
        torch.testing.assert_close(actual, torch.from_numpy(golden[f"op/{case}/{name}"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_output_and_gradients_equal_those_of_grid_sample(dtype: torch.dtype, pyramid: str, rng: torch.Generator):
    shapes = PYRAMIDS[pyramid]
    value, locations, weights = random_inputs(rng, shapes)
    # The kinks are left to the tests in float64: rounding may put a location on their other side.
    locations = away_from_pixel_borders(locations, shapes)
    value, weights = value.to(dtype).double(), weights.to(dtype).double()
    geometry = torch.promote_types(dtype, torch.float32)
    locations = locations.to(geometry).double()
    grad = torch.randn(2, 7, 15, generator=rng, dtype=torch.float64).to(dtype).double()
    expected = gradients(lambda v, x, w: by_grid_sample(v, shapes, x, w), [value, locations, weights], grad)
    inputs = [value.to(dtype), locations.to(geometry), weights.to(dtype)]
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, TOLERANCE[dtype])


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


@pytest.mark.parametrize("needed", [s for n in (1, 2) for s in itertools.combinations(range(3), n)], ids=str)
def test_any_part_of_the_inputs_may_need_gradients(needed: tuple[int, ...], rng: torch.Generator):
    shapes = PYRAMIDS["one_level"]
    inputs = random_inputs(rng, shapes)
    grad = torch.randn(2, 7, 15, generator=rng, dtype=torch.float64)
    expected = gradients(lambda v, x, w: by_grid_sample(v, shapes, x, w), inputs, grad)[1:]
    leaves = [tensor.clone().requires_grad_(index in needed) for index, tensor in enumerate(inputs)]
    ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2]).backward(grad)
    for index, leaf in enumerate(leaves):
        if index in needed:
            torch.testing.assert_close(leaf.grad, expected[index])
        else:
            assert leaf.grad is None


def test_strided_inputs_and_expanded_gradients_give_the_same(rng: torch.Generator):
    shapes = PYRAMIDS["four_levels"]
    inputs = random_inputs(rng, shapes)
    grad = torch.ones(1, 1, 1, dtype=torch.float64).expand(2, 7, 15)
    expected = gradients(lambda v, x, w: by_grid_sample(v, shapes, x, w), inputs, grad)
    # The same numbers in reversed memory order, so that no axis is contiguous.
    leaves = [tensor.permute(*reversed(range(tensor.ndim))).contiguous().requires_grad_() for tensor in inputs]
    views = [leaf.permute(*reversed(range(leaf.ndim))) for leaf in leaves]
    out = ms_deform_attn(views[0], shapes, views[1], views[2])
    out.backward(grad)
    torch.testing.assert_close(out, expected[0])
    for leaf, wanted in zip(leaves, expected[1:], strict=True):
        torch.testing.assert_close(leaf.grad.permute(*reversed(range(leaf.ndim))), wanted)


@pytest.mark.parametrize(("batch", "queries"), [(0, 7), (2, 0)])
def test_empty_batches_and_queries_give_empty_results_and_zero_gradients(
    batch: int, queries: int, rng: torch.Generator
):
    shapes = PYRAMIDS["four_levels"]
    inputs = [t.requires_grad_() for t in random_inputs(rng, shapes, batch=batch, queries=queries)]
    out = ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    assert out.shape == (batch, queries, 15)
    out.sum().backward()
    for tensor in inputs:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


@pytest.mark.parametrize("where", [torch.nan, torch.inf, -torch.inf, 3e38, -1e9])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_samples_at_infinity_or_nan_are_zero(where: float, backend: str, rng: torch.Generator):
    shapes = PYRAMIDS["four_levels"]
    value, locations, weights = (tensor.float() for tensor in random_inputs(rng, shapes))
    locations[:, 2:, :, :, 1:] = where
    kept = weights.clone()
    kept[:, 2:, :, :, 1:] = 0
    grad = torch.randn(2, 7, 15, generator=rng)
    locations_inside = locations.nan_to_num(0, 0, 0)
    expected = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), [value, locations_inside, kept], grad)
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w, backend), [value, locations, weights], grad)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])
    assert not actual[2][:, 2:, :, :, 1:].any()
    assert not actual[3][:, 2:, :, :, 1:].any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_pixels_that_are_not_sampled_do_not_influence_the_result(poison: float, backend: str, rng: torch.Generator):
    shapes = [(4, 4), (2, 2)]
    value, locations, weights = random_inputs(rng, shapes)
    # Samples stay among the first two columns of the first level, or leave the image; the rest is poisoned.
    locations[..., 0] = locations[..., 0].clamp(0.13, 0.37)
    locations[:, :, :, 1] = 7.0
    clean = value.clone()
    value.view(2, -1, 15)[:, [2, 3, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19]] = poison
    grad = torch.randn(2, 7, 15, generator=rng, dtype=torch.float64)
    expected = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), [clean, locations, weights], grad)
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w, backend), [value, locations, weights], grad)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_locations_keep_their_precision_beside_half_precision_values(rng: torch.Generator):
    # Stripes one pixel wide: on a map of 512 columns a bfloat16 location would be off by up to two of them.
    shapes = [(2, 512)]
    _, locations, weights = random_inputs(rng, shapes)
    value = (torch.arange(1024, dtype=torch.float64) % 2)[None, :, None, None].expand(2, -1, 3, 5)
    locations, weights = locations.clamp(0.3, 0.7), weights.softmax(-1)
    out = ms_deform_attn(value.bfloat16(), shapes, locations.float(), weights.float())
    assert_close(out, by_grid_sample(value, shapes, locations, weights), 2**-8)


def test_half_precision_sums_in_float32():
    # One plus 2^12 times 2^-12: a running sum in half precision stops growing long before the end.
    points = 4097
    value = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    weights = torch.full((1, 1, 1, 1, points), 2.0**-12)
    weights[..., 0] = 1
    out = ms_deform_attn(value, [(1, 1)], torch.full((1, 1, 1, 1, points, 2), 0.5), weights.bfloat16())
    assert out.item() == 2


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
