"""Numbers of points that differ between levels, and patterns of heads and points of later detectors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deformdetr.nn import MSDeformAttn
from random_weights import redrawn

SHAPES = [(6, 9), (3, 5), (2, 3)]
PIXELS = sum(height * width for height, width in SHAPES)
UNEVEN = (3, 6, 3)


def _layer(rng, **changes):
    """Build a layer whose offsets and attention depend on the query."""
    return redrawn(MSDeformAttn(**({"d_model": 32, "n_levels": 3, "n_heads": 4, "n_points": UNEVEN} | changes)), rng)


def _inputs(rng, coordinates, levels=3, d_model=32):
    query = torch.randn(2, 7, d_model, generator=rng)
    reference = torch.rand(2, 7, levels, coordinates, generator=rng)
    return query, reference, torch.randn(2, PIXELS, d_model, generator=rng)


def _by_grid_sample(layer, query, reference, features, padding_mask, points):
    """Compute the output level by level, from the formulas alone."""
    batch, queries, d_model = query.shape
    heads, total = layer.n_heads, sum(points)
    value = layer.value_proj(features).masked_fill(padding_mask[..., None], 0).view(batch, PIXELS, heads, -1)
    offsets = layer.sampling_offsets(query).view(batch, queries, heads, total, 2)
    weights = layer.attention_weights(query).view(batch, queries, heads, total).softmax(-1)
    pixel, point, output = 0, 0, 0
    for level, ((height, width), count) in enumerate(zip(SHAPES, points, strict=True)):
        around = reference[:, :, min(level, reference.shape[2] - 1), None, None]
        if around.shape[-1] == 2:
            scale = torch.tensor([1 / width, 1 / height])
        else:
            scale = around[..., 2:] / 2 / count
        locations = around[..., :2] + offsets[:, :, :, point : point + count] * scale
        maps = value[:, pixel : pixel + height * width].permute(0, 2, 3, 1).reshape(-1, d_model // heads, height, width)
        grid = (2 * locations - 1).permute(0, 2, 1, 3, 4).flatten(0, 1)
        sampled = F.grid_sample(maps, grid, align_corners=False)
        share = weights[..., point : point + count].permute(0, 2, 1, 3).flatten(0, 1)
        output = output + (sampled * share[:, None]).sum(-1)
        pixel, point = pixel + height * width, point + count
    output = output.view(batch, heads, -1, queries).permute(0, 3, 1, 2).flatten(2)
    return layer.output_proj(output)


@pytest.mark.parametrize(("coordinates", "levels"), [(2, 3), (4, 3), (4, 1)])
@pytest.mark.parametrize(
    "sizes", [{}, {"n_points": (1, 2, 5), "n_heads": 2}, {"d_model": 256, "n_heads": 16, "n_points": 2}], ids=str
)
def test_output_and_gradients_follow_the_formulas(rng, coordinates, levels, sizes):
    layer = _layer(rng, **sizes)
    inputs = _inputs(rng, coordinates, levels, layer.d_model)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    mask = torch.rand(2, PIXELS, generator=rng) < 0.3
    points = layer.n_points if isinstance(layer.n_points, tuple) else (layer.n_points,) * 3
    leaves = [*inputs, *layer.parameters()]
    expected = _by_grid_sample(layer, *inputs, mask, points)
    found = layer(*inputs, SHAPES, input_padding_mask=mask)
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * size)
    probe = torch.randn(expected.shape, generator=rng)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, probe), torch.autograd.grad(expected, leaves, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item())


def test_every_level_starts_from_its_own_points():
    layer = MSDeformAttn(32, 3, 4, UNEVEN)
    assert layer.sampling_offsets.weight.shape == (4 * 12 * 2, 32)
    assert layer.attention_weights.weight.shape == (4 * 12, 32)
    biases = layer.sampling_offsets.bias.view(4, 12, 2).split(UNEVEN, dim=1)
    for bias, points in zip(biases, UNEVEN, strict=True):
        alone = MSDeformAttn(32, 1, 4, points).sampling_offsets.bias.view(4, points, 2)
        assert torch.equal(bias, alone)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_equal_numbers_are_one_number(rng, coordinates):
    one, several = _layer(rng, n_points=2), MSDeformAttn(32, 3, 4, [2, 2, 2])
    assert several.n_points == 2
    several.load_state_dict(one.state_dict())
    inputs = _inputs(rng, coordinates)
    assert torch.equal(several(*inputs, SHAPES), one(*inputs, SHAPES))


def test_locations_and_weights_have_one_axis_of_all_points(rng):
    layer = _layer(rng)
    query, reference, _ = _inputs(rng, 2)
    locations, weights = layer.sampling_locations_and_weights(query, reference, SHAPES)
    assert locations.shape == (2, 7, 4, 12, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7, 4))


def test_shapes_in_a_tensor_give_the_same(rng):
    layer, inputs = _layer(rng), _inputs(rng, 2)
    assert torch.equal(layer(*inputs, torch.tensor(SHAPES)), layer(*inputs, SHAPES))


def test_half_precision_keeps_locations_in_float32(rng):
    layer, inputs = _layer(rng), _inputs(rng, 4)
    with torch.autocast("cpu", torch.bfloat16):
        locations, _ = layer.sampling_locations_and_weights(*inputs[:2], SHAPES)
        output = layer(*inputs, SHAPES)
    assert (locations.dtype, output.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(output.float(), layer(*inputs, SHAPES), rtol=0, atol=0.3)


def _assert_equals_theirs(ours, theirs, query, reference, features, atol):
    expected, weights = theirs(
        query,
        reference_points=reference,
        encoder_hidden_states=features,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
    )
    torch.testing.assert_close(ours(query, reference, features, SHAPES), expected, rtol=1e-4, atol=atol)
    torch.testing.assert_close(ours.sampling_locations_and_weights(query, reference, SHAPES)[1], weights)


def test_attention_of_d_fine_is_the_layer_without_projections(rng):
    from transformers.models.d_fine.configuration_d_fine import DFineConfig
    from transformers.models.d_fine.modeling_d_fine import DFineMultiscaleDeformableAttention

    config = DFineConfig(d_model=32, decoder_attention_heads=4, num_feature_levels=3, decoder_n_points=list(UNEVEN))
    theirs, ours = DFineMultiscaleDeformableAttention(config), _layer(rng)
    for projection in (ours.value_proj, ours.output_proj):
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    _assert_equals_theirs(ours, theirs, *_inputs(rng, 4, levels=1), atol=1e-5)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_of_lw_detr_is_the_layer_with_sixteen_heads_and_two_points(rng, coordinates):
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrConfig
    from transformers.models.lw_detr.modeling_lw_detr import LwDetrMultiscaleDeformableAttention

    ours = _layer(rng, d_model=256, n_heads=16, n_points=2)
    config = LwDetrConfig(d_model=256, num_feature_levels=3)
    theirs = LwDetrMultiscaleDeformableAttention(config, num_heads=16, n_points=2)
    theirs.load_state_dict(ours.state_dict())
    _assert_equals_theirs(ours, theirs, *_inputs(rng, coordinates, d_model=256), atol=1e-4)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((3, 6), r"n_points \(\(3, 6\)\) must have a number for each of n_levels \(3\)"),
        ((3, 6, 3, 3), "must have a number for each"),
        ((3, 0, 3), r"must be positive, got 32, 3, 4 and \(3, 0, 3\)"),
        ((), "must have a number for each"),
    ],
)
def test_numbers_of_points_that_do_not_fit_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(32, 3, 4, points)


def test_printed_layer_names_the_points_of_every_level():
    assert "n_levels=3, n_heads=4, n_points=(3, 6, 3)" in repr(MSDeformAttn(32, 3, 4, UNEVEN))


@pytest.mark.compile
def test_compiled_layer_is_one_graph(rng):
    torch.compiler.reset()
    layer, inputs = _layer(rng), _inputs(rng, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, SHAPES), layer(*inputs, SHAPES))
