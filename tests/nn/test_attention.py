import itertools
import math

import pytest
import torch
from jaxtyping import TypeCheckError
from torch._dynamo.testing import CompileCounterWithBackend

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import MSDeformAttn
from goldens import fill, load_golden, unit
from random_weights import redrawn

SHAPES = [(6, 9), (3, 5), (2, 3)]
PIXELS = sum(height * width for height, width in SHAPES)
PARTS = load_golden("parts").arrays


def _layer(rng, **changes):
    sizes = {"d_model": 24, "n_levels": 3, "n_heads": 4, "n_points": 2}
    return redrawn(MSDeformAttn(**(sizes | changes)), rng)


def _inputs(rng, batch=2, queries=7, d_model=24, coordinates=2, dtype=torch.float32):
    query = torch.randn(batch, queries, d_model, generator=rng)
    reference = torch.rand(batch, queries, 3, coordinates, generator=rng)
    features = torch.randn(batch, PIXELS, d_model, generator=rng)
    return [tensor.to(dtype) for tensor in (query, reference, features)]


def _golden_case(key):
    """Return the layer, the arguments and the output that `tests/goldens/README.md` describes under `module/`."""
    layer = MSDeformAttn(d_model=64, n_levels=3, n_heads=4, n_points=2)
    layer.load_state_dict({name: fill(f"module.{name}", tuple(p.shape)) for name, p in layer.state_dict().items()})
    coordinates = int(key.removeprefix("output_ref")[0])
    reference = unit(f"module.reference{coordinates}", (2, 9, 3, coordinates)) / math.sqrt(3) * 0.4 + 0.5
    shapes = torch.tensor([(8, 10), (4, 5), (2, 3)])
    mask = None if key.endswith("nomask") else unit("module.padding", (2, 106)) > 1.2
    inputs = [unit("module.query", (2, 9, 64)), reference, unit("module.input", (2, 106, 64))]
    return layer, inputs, shapes, mask, torch.from_numpy(PARTS[f"module/{key}"])


GOLDEN_OUTPUTS = sorted(key.removeprefix("module/") for key in PARTS if key.startswith("module/output"))
GOLDEN_OFFSETS = sorted(key for key in PARTS if key.startswith("module/init_offsets"))


@pytest.mark.parametrize("key", GOLDEN_OUTPUTS)
def test_output_in_float64_is_the_golden_one(key):
    layer, inputs, shapes, mask, expected = _golden_case(key)
    output = layer.double()(*inputs, shapes, None, mask)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", GOLDEN_OUTPUTS)
def test_output_in_float32_is_the_golden_one(key):
    layer, inputs, shapes, mask, expected = _golden_case(key)
    output = layer(*(tensor.float() for tensor in inputs), shapes, None, mask)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("key", GOLDEN_OFFSETS)
def test_initial_offsets_are_the_golden_ones(key):
    d_model, n_levels, n_heads, n_points = (int(size) for size in key.rpartition("/")[2].split("_"))
    layer = MSDeformAttn(d_model, n_levels, n_heads, n_points)
    torch.testing.assert_close(layer.sampling_offsets.bias.detach(), torch.from_numpy(PARTS[key]), rtol=0, atol=1e-6)
    assert not layer.sampling_offsets.weight.any()


def test_eight_heads_look_at_the_eight_neighbors_in_turn():
    bias = MSDeformAttn().sampling_offsets.bias.detach().view(8, 4, 4, 2)
    neighbors = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])
    distances = torch.arange(1, 5)
    expected = (neighbors[:, None, None, :] * distances[:, None]).expand(8, 4, 4, 2)
    torch.testing.assert_close(bias, expected.float(), rtol=0, atol=1e-5)


def test_initial_attention_is_uniform_and_projections_are_xavier():
    layer = MSDeformAttn()
    assert not layer.attention_weights.weight.any()
    assert not layer.attention_weights.bias.any()
    for projection in (layer.value_proj, layer.output_proj):
        assert fills_uniform_bound(projection.weight, xavier_bound(256, 256))
        assert not projection.bias.any()


@pytest.mark.parametrize("name", ["reset_parameters", "_reset_parameters"])
def test_both_names_of_reset_restore_the_initialization(name, rng):
    layer = _layer(rng)
    getattr(layer, name)()
    fresh = MSDeformAttn(24, 3, 4, 2)
    for one, other in (
        (layer.sampling_offsets, fresh.sampling_offsets),
        (layer.attention_weights, fresh.attention_weights),
    ):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)
    assert fills_uniform_bound(layer.value_proj.weight, xavier_bound(24, 24))


def test_parameters_have_the_original_names_and_shapes():
    shapes = {name: tuple(parameter.shape) for name, parameter in MSDeformAttn(64, 3, 4, 2).named_parameters()}
    assert shapes == {
        "sampling_offsets.weight": (48, 64),
        "sampling_offsets.bias": (48,),
        "attention_weights.weight": (24, 64),
        "attention_weights.bias": (24,),
        "value_proj.weight": (64, 64),
        "value_proj.bias": (64,),
        "output_proj.weight": (64, 64),
        "output_proj.bias": (64,),
    }


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_original_call_with_tensors_equals_list_without_level_starts(rng, coordinates, dtype):
    layer, inputs = _layer(rng), _inputs(rng, coordinates=coordinates)
    shapes = torch.tensor(SHAPES, dtype=dtype)
    starts = torch.tensor([0, 54, 69], dtype=dtype)
    mask = torch.rand(2, PIXELS, generator=rng) < 0.3
    as_original = layer(*inputs, shapes, starts, mask)
    as_list = layer(*inputs, SHAPES, input_padding_mask=mask)
    as_sizes = layer(*inputs, [torch.Size(shape) for shape in SHAPES], input_padding_mask=mask)
    assert torch.equal(as_original, as_list)
    assert torch.equal(as_original, as_sizes)


def test_locations_add_offsets_in_pixels_of_each_level_to_points(rng):
    layer = _layer(rng)
    query, reference, _ = _inputs(rng)
    locations, _ = layer.sampling_locations_and_weights(query, reference, SHAPES)
    offsets = layer.sampling_offsets(query).view(2, 7, 4, 3, 2, 2)
    for b, q, m, level, p in itertools.product(range(2), range(7), range(4), range(3), range(2)):
        height, width = SHAPES[level]
        x, y = (reference[b, q, level] + offsets[b, q, m, level, p] / torch.tensor([width, height])).tolist()
        assert locations[b, q, m, level, p].tolist() == pytest.approx([x, y], abs=1e-6)


def test_locations_scale_offsets_by_boxes(rng):
    layer = _layer(rng)
    query, reference, _ = _inputs(rng, coordinates=4)
    locations, _ = layer.sampling_locations_and_weights(query, reference, SHAPES)
    offsets = layer.sampling_offsets(query).view(2, 7, 4, 3, 2, 2)
    for b, q, m, level, p in itertools.product(range(2), range(7), range(4), range(3), range(2)):
        cx, cy, w, h = reference[b, q, level].tolist()
        dx, dy = offsets[b, q, m, level, p].tolist()
        # Two points: an offset of 2 reaches the edge of the box.
        expected = [cx + dx / 2 * w / 2, cy + dy / 2 * h / 2]
        assert locations[b, q, m, level, p].tolist() == pytest.approx(expected, abs=1e-6)


def test_attention_sums_to_one_over_levels_and_points_together(rng):
    query, reference, _ = _inputs(rng)
    _, weights = _layer(rng).sampling_locations_and_weights(query, reference, SHAPES)
    assert weights.shape == (2, 7, 4, 3, 2)
    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(2, 7, 4))
    assert not torch.allclose(weights.sum(-1), torch.full((2, 7, 4, 3), 1 / 3), atol=1e-2)


def test_offset_of_a_whole_pixel_reads_that_pixel(rng):
    layer = MSDeformAttn(d_model=2, n_levels=1, n_heads=1, n_points=1)
    with torch.no_grad():
        layer.sampling_offsets.bias.copy_(torch.tensor([2.0, -1.0]))
        for projection in (layer.value_proj, layer.output_proj):
            projection.weight.copy_(torch.eye(2))
    features = torch.randn(1, 5, 4, 2, generator=rng)
    center = torch.tensor([(1 + 0.5) / 4, (3 + 0.5) / 5]).view(1, 1, 1, 2)
    output = layer(torch.zeros(1, 1, 2), center, features.view(1, 20, 2), [(5, 4)])
    torch.testing.assert_close(output[0, 0], features[0, 3 - 1, 1 + 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_one_reference_serves_every_image_and_level(rng, coordinates):
    layer = _layer(rng)
    query, _, features = _inputs(rng)
    reference = torch.rand(1, 7, 1, coordinates, generator=rng)
    output = layer(query, reference, features, SHAPES)
    torch.testing.assert_close(output, layer(query, reference.expand(2, 7, 3, coordinates), features, SHAPES))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_padded_pixels_never_influence_queries(rng, poison):
    layer, (query, reference, features) = _layer(rng), _inputs(rng)
    mask = torch.rand(2, PIXELS, generator=rng) < 0.5
    poisoned = features.masked_fill(mask[..., None], poison)
    expected = layer(query, reference, features, SHAPES, input_padding_mask=mask)
    assert torch.equal(layer(query, reference, poisoned, SHAPES, input_padding_mask=mask), expected)
    assert not torch.allclose(expected, layer(query, reference, features, SHAPES))


def test_padded_pixels_are_zero_after_the_projection_and_its_bias(rng):
    layer, (query, reference, features) = _layer(rng), _inputs(rng)
    everything = torch.ones(2, PIXELS, dtype=torch.bool)
    output = layer(query, reference, features, SHAPES, input_padding_mask=everything)
    torch.testing.assert_close(output, layer.output_proj.bias.expand_as(output))


def test_images_of_a_batch_do_not_influence_each_other(rng):
    # In float64, since the rows of a product may be summed in another order in a larger batch.
    layer, inputs = _layer(rng).double(), _inputs(rng, batch=3, dtype=torch.float64)
    together = layer(*inputs, SHAPES)
    for image in range(3):
        alone = layer(*(tensor[image : image + 1] for tensor in inputs), SHAPES)
        torch.testing.assert_close(together[image : image + 1], alone)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_every_parameter_and_input_has_a_gradient(rng, coordinates):
    layer = _layer(rng)
    inputs = [tensor.requires_grad_() for tensor in _inputs(rng, coordinates=coordinates)]
    layer(*inputs, SHAPES).square().sum().backward()
    for tensor in [*inputs, *layer.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


def test_no_queries_give_an_empty_output(rng):
    query, reference, features = _inputs(rng, queries=0)
    assert _layer(rng)(query, reference, features, SHAPES).shape == (2, 0, 24)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_bfloat16_module_keeps_sampling_locations_in_float32(rng, coordinates):
    layer = _layer(rng).bfloat16()
    query, reference, features = _inputs(rng, coordinates=coordinates)
    query, features = query.bfloat16(), features.bfloat16()
    # An offset is rounded once, relative to itself; the place that it starts from is not.
    expected, _ = _reference_locations(layer, query, reference)
    locations, weights = layer.sampling_locations_and_weights(query, reference, SHAPES)
    assert (locations.dtype, weights.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(locations, expected, rtol=0, atol=1e-6)
    assert layer(query, reference, features, SHAPES).dtype == torch.bfloat16


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_sampling_locations_in_float32(rng, coordinates, dtype):
    layer, (query, reference, features) = _layer(rng), _inputs(rng, coordinates=coordinates)
    with torch.autocast("cpu", dtype):
        expected, _ = _reference_locations(layer, query, reference)
        locations, _ = layer.sampling_locations_and_weights(query, reference, SHAPES)
        output = layer(query, reference, features, SHAPES)
    assert locations.dtype == torch.float32
    torch.testing.assert_close(locations, expected, rtol=0, atol=1e-6)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), layer(query, reference, features, SHAPES), rtol=0, atol=0.3)


def _reference_locations(layer, query, reference):
    """Compute locations in float64 from the offsets that the layer's own precision gives."""
    offsets = layer.sampling_offsets(query).double().view(2, 7, 4, 3, 2, 2)
    reference = reference.double()[:, :, None, :, None]
    if reference.shape[-1] == 4:
        scale = reference[..., 2:] / 4
    else:
        scale = 1 / torch.tensor([(width, height) for height, width in SHAPES]).double()[:, None]
    return (reference[..., :2] + offsets * scale).float(), offsets


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 30, "n_heads": 4}, r"d_model \(30\) must be divisible by n_heads \(4\)"),
        ({"n_points": 0}, "must be positive, got 256, 4, 8 and 0"),
        ({"d_model": -8}, "must be positive, got -8, 4, 8 and 4"),
        ({"n_levels": 0}, "must be positive, got 256, 0, 8 and 4"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(**sizes)


@pytest.mark.parametrize(
    ("reference_shape", "message"),
    [((2, 7, 3, 3), r"must have 2 \(x, y\) or 4 .* got 3"), ((2, 7, 2, 2), "has 2 levels, but the layer has 3")],
)
def test_references_of_another_kind_are_refused(rng, reference_shape, message):
    query, _, features = _inputs(rng)
    with pytest.raises(ValueError, match=message):
        _layer(rng)(query, torch.rand(reference_shape), features, SHAPES)


@pytest.mark.parametrize("shapes", [SHAPES[:2], [*SHAPES, (1, 1)], [(6, 9), (3, 5), (2, 4)]])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_spatial_shapes_that_do_not_fit_are_refused(rng, shapes, as_tensor, coordinates):
    # Where annotations are checked, they refuse a tensor first.
    with pytest.raises((ValueError, TypeCheckError), match="spatial_shapes"):
        _layer(rng)(*_inputs(rng, coordinates=coordinates), torch.tensor(shapes) if as_tensor else shapes)


def test_printed_layer_names_its_settings():
    assert "n_levels=3, n_heads=4, n_points=2\n" in repr(MSDeformAttn(24, 3, 4, 2))
    assert "n_levels=3, n_heads=4, n_points=2, ratio=0.5\n" in repr(MSDeformAttn(24, 3, 4, 2, ratio=0.5))


def _pyramid_of(height, width):
    shapes = [(height, width), (height // 2, width // 2), (height // 3, width // 3)]
    return shapes, sum(h * w for h, w in shapes)


@pytest.mark.compile
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_compiled_layer_trains_on_new_sizes_without_recompiling(rng, coordinates, as_tensor):
    torch.compiler.reset()
    layer = _layer(rng)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for index, (height, width, batch, queries) in enumerate([(9, 12, 2, 7), (13, 10, 3, 5), (16, 21, 4, 9)]):
        shapes, pixels = _pyramid_of(height, width)
        inputs = [
            torch.randn(batch, queries, 24, generator=rng, requires_grad=True),
            torch.rand(batch, queries, 3, coordinates, generator=rng),
            torch.randn(batch, pixels, 24, generator=rng, requires_grad=True),
        ]
        mask = torch.rand(batch, pixels, generator=rng) < 0.3
        given = torch.tensor(shapes) if as_tensor else shapes
        # The second size is the first that shows what changes.
        if index == 2:
            compilations = counter.frame_count
        _assert_same_training_step(compiled, layer, inputs, given, mask)
    assert counter.frame_count == compilations <= 2


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_compiles_forward_and_backward_as_one_graph(rng):
    torch.compiler.reset()
    layer, inputs = _layer(rng), _inputs(rng)
    mask = torch.rand(2, PIXELS, generator=rng) < 0.3
    inputs = [tensor.requires_grad_() for tensor in inputs]
    _assert_same_training_step(torch.compile(layer, fullgraph=True), layer, inputs, SHAPES, mask)


def _assert_same_training_step(compiled, layer, inputs, shapes, mask):
    wanted = [tensor for tensor in [*inputs, *layer.parameters()] if tensor.requires_grad]
    results = []
    for call in (compiled, layer):
        output = call(*inputs, shapes, None, mask)
        results.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.compile
def test_exported_layer_serves_other_sizes(rng):
    layer, inputs = _layer(rng), _inputs(rng)
    layer.eval()
    shapes = torch.tensor(SHAPES)
    batch, queries = torch.export.Dim("batch"), torch.export.Dim("queries")
    dynamic = ({0: batch, 1: queries}, {0: batch, 1: queries}, {0: batch, 1: torch.export.Dim("pixels")}, None)
    exported = torch.export.export(layer, (*inputs, shapes), dynamic_shapes=dynamic).module()
    others, pixels = _pyramid_of(9, 12)
    new = (
        torch.randn(3, 5, 24, generator=rng),
        torch.rand(3, 5, 3, 2, generator=rng),
        torch.randn(3, pixels, 24, generator=rng),
        torch.tensor(others),
    )
    torch.testing.assert_close(exported(*new), layer(*new), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("home", ["list", "cpu", "cuda"])
def test_forward_and_backward_do_not_wait_for_the_gpu(rng, home):
    layer = _layer(rng).cuda()
    inputs = [tensor.cuda() for tensor in _inputs(rng)]
    mask = torch.zeros(2, PIXELS, dtype=torch.bool, device="cuda")
    shapes = SHAPES if home == "list" else torch.tensor(SHAPES, device=home)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(*inputs, shapes, None, mask).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
