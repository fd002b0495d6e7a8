"""What code written for other implementations of the layer passes to it, and what it finds there."""

import inspect

import numpy as np
import pytest
import torch

from deformdetr.nn import MSDeformAttn
from random_weights import redrawn

SHAPES = [(4, 7), (3, 2)]
PIXELS = sum(height * width for height, width in SHAPES)
STARTS = [0, 28]
# The method itself, as users have it, without the checks that the test session adds around it.
UNCHECKED_FORWARD = inspect.unwrap(MSDeformAttn.forward)


def _layer(rng, *, d_model=24, n_heads=4, n_points=3, ratio=1.0, dtype=torch.float64):
    """Build a layer whose offsets and attention depend on the query."""
    layer = MSDeformAttn(d_model=d_model, n_levels=2, n_heads=n_heads, n_points=n_points, ratio=ratio)
    return redrawn(layer.to(dtype), rng)


def _inputs(rng, *, d_model=24, coordinates=2, dtype=torch.float64):
    query = torch.randn(2, 5, d_model, generator=rng, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, coordinates, generator=rng, dtype=torch.float64)
    features = torch.randn(2, PIXELS, d_model, generator=rng, dtype=torch.float64)
    return [tensor.to(dtype) for tensor in (query, reference, features)]


def _padding(rng):
    return torch.rand(2, PIXELS, generator=rng) < 0.3


def _dense(state_dict, query, reference, features, mask, *, n_heads, n_points):
    """Compute the output in float64 with a weight for every pixel of every level, from the formulas alone."""
    parameters = {name: tensor.double() for name, tensor in state_dict.items()}
    query, reference, features = query.double(), reference.double(), features.double()

    def project(name, tensor):
        return tensor @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    batch, queries, _ = query.shape
    sizes = (batch, queries, n_heads, len(SHAPES), n_points)
    value = project("value_proj", features) * ~mask[..., None]
    offsets = project("sampling_offsets", query).view(*sizes, 2)
    weights = project("attention_weights", query).view(*sizes[:3], -1).softmax(-1).view(sizes)
    centers = reference[:, :, None, :, None, :2]
    start, total = 0, 0
    for level, (height, width) in enumerate(SHAPES):
        if reference.shape[-1] == 2:
            scale = torch.tensor([1 / width, 1 / height], dtype=torch.float64)
        else:
            scale = reference[:, :, None, level, None, 2:] / (2 * n_points)
        x, y = (centers[:, :, :, level] + offsets[:, :, :, level] * scale).unbind(-1)
        # Bilinear interpolation: a pixel weighs one minus its distance along each axis, and nothing from one on.
        columns = (1 - (x[..., None] * width - 0.5 - torch.arange(width)).abs()).clamp(min=0)
        rows = (1 - (y[..., None] * height - 0.5 - torch.arange(height)).abs()).clamp(min=0)
        maps = value[:, start : start + height * width].view(batch, height, width, n_heads, -1)
        total = total + torch.einsum("bqmp,bqmpy,bqmpx,byxmc->bqmc", weights[:, :, :, level], rows, columns, maps)
        start += height * width
    return project("output_proj", total.flatten(2))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize(
    ("sizes", "channels"),
    [
        ({"ratio": 1.0}, 24),
        ({"ratio": 0.5}, 12),
        ({"ratio": 2.0}, 48),
        ({"d_model": 40, "ratio": 0.41}, 16),
        ({"n_points": 17, "ratio": 0.5}, 12),
    ],
    ids=str,
)
def test_layer_with_a_ratio_is_the_formula_in_float64(rng, coordinates, sizes, channels):
    layer, mask = _layer(rng, **sizes), _padding(rng)
    inputs = _inputs(rng, d_model=layer.d_model, coordinates=coordinates)
    leaves = [tensor.requires_grad_() for tensor in (*inputs, *layer.parameters())]
    assert layer.value_proj.weight.shape == (channels, layer.d_model)

    found = layer(*inputs, SHAPES, STARTS, mask)
    expected = _dense(dict(layer.named_parameters()), *inputs, mask, n_heads=4, n_points=layer.n_points)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    probe = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, probe), torch.autograd.grad(expected, leaves, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * theirs.abs().max().item())


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_layer_with_a_ratio_is_the_formula_in_float32(rng, ratio):
    layer, inputs, mask = _layer(rng, ratio=ratio, dtype=torch.float32), _inputs(rng), _padding(rng)
    expected = _dense(layer.state_dict(), *inputs, mask, n_heads=4, n_points=3)
    found = layer(*(tensor.float() for tensor in inputs), SHAPES, STARTS, mask)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_ratio_shapes_the_projections_and_nothing_else():
    shapes = {name: tuple(tensor.shape) for name, tensor in MSDeformAttn(64, 3, 4, 2, ratio=0.5).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (48, 64),
        "sampling_offsets.bias": (48,),
        "attention_weights.weight": (24, 64),
        "attention_weights.bias": (24,),
        "value_proj.weight": (32, 64),
        "value_proj.bias": (32,),
        "output_proj.weight": (64, 32),
        "output_proj.bias": (64,),
    }


def test_ratio_serves_levels_of_different_numbers_of_points(rng):
    full, half = (_layer(rng, n_points=(3, 6), ratio=ratio) for ratio in (1.0, 0.5))
    # The second half of the channels of every head counts for nothing, so that both layers compute the same.
    kept = torch.arange(24).view(4, 6)[:, :3].flatten()
    state = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    state["output_proj.weight"][:, [channel for channel in range(24) if channel not in kept]] = 0
    full.load_state_dict(state)
    state |= {name: state[name][kept] for name in ("value_proj.weight", "value_proj.bias")}
    half.load_state_dict(state | {"output_proj.weight": state["output_proj.weight"][:, kept]})
    inputs, mask = _inputs(rng), _padding(rng)
    torch.testing.assert_close(half(*inputs, SHAPES, STARTS, mask), full(*inputs, SHAPES, STARTS, mask))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"ratio": 0.3},
            r"ratio \(0\.3\) must give a positive multiple of n_heads \(8\), got 76 channels of .*\(256\)",
        ),
        ({"ratio": 0.001}, "got 0 channels"),
        ({"ratio": -1.0}, r"ratio \(-1\.0\) must give a positive multiple"),
        ({"ratio": float("nan")}, r"ratio \(nan\) must give a positive multiple"),
        ({"ratio": float("inf")}, r"ratio \(inf\) must give a positive multiple"),
    ],
    ids=str,
)
def test_ratios_that_no_heads_can_share_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(**sizes)


def test_attributes_that_callers_of_the_original_read_are_there():
    layer = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=3, ratio=0.5)
    named = {
        name: getattr(layer, name) for name in ("im2col_step", "d_model", "n_levels", "n_heads", "n_points", "ratio")
    }
    assert named == {"im2col_step": 64, "d_model": 32, "n_levels": 2, "n_heads": 4, "n_points": 3, "ratio": 0.5}
    layer.im2col_step = 128
    assert MSDeformAttn().im2col_step == 64


@pytest.mark.parametrize(
    "starts",
    [torch.tensor(STARTS), torch.tensor(STARTS, dtype=torch.int32), STARTS, tuple(STARTS), torch.Size(STARTS)],
    ids=["int64", "int32", "list", "tuple", "size"],
)
def test_level_starts_of_every_kind_change_nothing(rng, starts):
    layer, inputs = _layer(rng), _inputs(rng)
    assert torch.equal(layer(*inputs, SHAPES, starts), layer(*inputs, SHAPES))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.int64], ids=str)
def test_padding_mask_in_the_place_of_level_starts_is_refused_with_the_way_out(rng, dtype):
    layer, inputs, mask = _layer(rng), _inputs(rng), _padding(rng)
    found = rf"got {dtype} of shape \(2, {PIXELS}\).*early Deformable DETR.*TrackFormer.*pass it as input_padding_mask="
    with pytest.raises(ValueError, match=found):
        UNCHECKED_FORWARD(layer, *inputs, torch.tensor(SHAPES), mask.to(dtype))
    expected = _dense(layer.state_dict(), *inputs, mask, n_heads=4, n_points=3)
    torch.testing.assert_close(layer(*inputs, torch.tensor(SHAPES), input_padding_mask=mask), expected)


@pytest.mark.parametrize(
    ("starts", "found"),
    [
        (torch.tensor([0, 28, 34]), r"torch\.int64 of shape \(3,\)"),
        (torch.tensor([[0, 28]]), r"torch\.int64 of shape \(1, 2\)"),
        (torch.tensor([0.0, 28.0]), r"torch\.float32 of shape \(2,\)"),
        (torch.tensor([False, True]), r"torch\.bool of shape \(2,\)"),
        ([0, 28, 34], r"\[0, 28, 34\]"),
        ([], r"\[\]"),
        ([0.0, 28.0], r"\[0.0, 28.0\]"),
        ([[0], [28]], r"\[\[0\], \[28\]\]"),
        (np.zeros((2, PIXELS), dtype=bool), "array"),
        (28, "28"),
    ],
    ids=str,
)
def test_level_starts_that_are_not_an_integer_per_level_are_refused(rng, starts, found):
    with pytest.raises(ValueError, match=f"must be None or an integer for each of 2 levels, got {found}"):
        UNCHECKED_FORWARD(_layer(rng), *_inputs(rng), SHAPES, starts)


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        (None, TypeError, "reference_points must be a tensor, got NoneType"),
        ("x", TypeError, "reference_points must be a tensor, got str"),
        (torch.zeros(2), ValueError, r"reference_points must have shape .*, got \(2,\)"),
    ],
    ids=str,
)
def test_reference_points_of_another_kind_are_refused(references, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(MSDeformAttn._check)(MSDeformAttn(24, 2, 4, 3), references, SHAPES)


@pytest.mark.gpu
def test_level_starts_on_a_gpu_are_not_waited_for(rng):
    layer = _layer(rng, dtype=torch.float32, ratio=0.5).cuda()
    inputs = [tensor.cuda() for tensor in _inputs(rng, dtype=torch.float32)]
    shapes, starts = torch.tensor(SHAPES).cuda(), torch.tensor(STARTS).cuda()
    layer(*inputs, shapes, starts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(*inputs, shapes, starts)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.compile
@pytest.mark.parametrize("as_tensor", [False, True])
def test_compiled_layer_takes_level_starts_and_a_ratio(rng, as_tensor):
    torch.compiler.reset()
    layer, inputs, mask = _layer(rng, ratio=0.5), _inputs(rng), _padding(rng)
    given = (torch.tensor(SHAPES), torch.tensor(STARTS)) if as_tensor else (SHAPES, STARTS)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, *given, mask), layer(*inputs, SHAPES, None, mask))


@pytest.mark.compile
def test_exported_layer_takes_level_starts(rng):
    layer, inputs, mask = _layer(rng, ratio=0.5).eval(), _inputs(rng), _padding(rng)
    given = (*inputs, torch.tensor(SHAPES), torch.tensor(STARTS), mask)
    torch.testing.assert_close(torch.export.export(layer, given).module()(*given), layer(*given))
