import pytest
import torch
from torch.nn import functional as F

from dat_names import GOLDEN, assert_golden, golden_layer
from deformdetr.nn import DeformableAttention2d
from goldens import unit
from random_weights import redrawn

VARIANTS = {
    "deformable": ((4, 2), (5, 6), {"kernel_size": 5}),
    "strided": ((4, 4), (6, 6), {"kernel_size": 3, "stride": 2, "offset_range": 5.0}),
}


def _layer(rng, d_model=16, n_heads=4, n_groups=2, **settings):
    return redrawn(DeformableAttention2d(d_model, n_heads, n_groups, **({"map_size": 6} | settings)), rng, std=0.5)


@pytest.mark.parametrize("name", VARIANTS)
def test_output_gradients_and_points_in_float64_are_those_of_the_original(name):
    (heads, groups), size, settings = VARIANTS[name]
    tag = f"dat.{name}"
    layer = golden_layer(DeformableAttention2d(16, heads, groups, map_size=size, **settings), tag)
    x = unit(f"{tag}.input", (2, 16, *size)).requires_grad_()
    assert_golden(layer, tag, x)
    # There, (y, x) between the outermost pixel centers, which are -1 and 1.
    positions = torch.from_numpy(GOLDEN[f"{tag}/positions"]).flatten(2, 3).transpose(1, 2).flip(-1)
    width_and_height = torch.tensor(size[::-1])
    expected = ((positions + 1) / 2 * (width_and_height - 1) + 0.5) / width_and_height
    torch.testing.assert_close(layer.sampling_locations(x), expected, rtol=0, atol=1e-12)


def test_points_move_by_halves_of_their_distance(rng):
    layer, x = _layer(rng, offset_range=3.0), torch.randn(2, 16, 1, 1, generator=rng).expand(-1, -1, 9, 9)
    with torch.no_grad():
        layer.offset_proj.weight.mul_(1e4)
    moved = layer.sampling_locations(x)
    with torch.no_grad():
        layer.offset_proj.weight.zero_()
    # Distances are those of the original, between the outermost pixel centers.
    distance = (moved - layer.sampling_locations(x)).abs() * 9 / (9 - 1) * 9
    torch.testing.assert_close(distance[:, 40], torch.full_like(distance[:, 40], 1.5), rtol=1e-4, atol=1e-4)


def test_without_offsets_and_bias_it_is_attention_to_a_fixed_grid(rng):
    layer, x = _layer(rng, stride=2), torch.randn(2, 16, 6, 9, generator=rng)
    with torch.no_grad():
        layer.offset_proj.weight.zero_()
        layer.position_bias.zero_()
    y, rest = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5, indexing="ij")
    grid = (2 * torch.stack([rest, y], dim=-1) - 1).expand(2, -1, -1, -1)
    sampled = F.grid_sample(x, grid, align_corners=True).flatten(2).mT
    projected = layer.query_proj(x.flatten(2).mT), layer.key_proj(sampled), layer.value_proj(sampled)
    out = F.scaled_dot_product_attention(*(each.unflatten(2, (4, 4)).transpose(1, 2) for each in projected))
    expected = layer.output_proj(out.transpose(1, 2).flatten(2)).mT.view_as(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_the_table_stretches_with_the_map(rng):
    coarse, fine = _layer(rng, map_size=(3, 4)), _layer(rng, map_size=(5, 7))
    state = coarse.state_dict()
    # Twice as many steps between the same ends.
    table = F.interpolate(state["position_bias"][None], (9, 13), mode="bilinear", align_corners=True)[0]
    fine.load_state_dict(state | {"position_bias": table})
    x = torch.randn(2, 16, 6, 11, generator=rng)
    torch.testing.assert_close(coarse(x), fine(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 2)])
def test_any_map_has_finite_output_and_gradients(rng, size):
    layer, x = _layer(rng, stride=2), torch.randn(1, 16, *size, generator=rng)
    output = layer(x)
    assert output.shape == x.shape
    for gradient in torch.autograd.grad(output.sum(), list(layer.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(rng, dtype):
    layer, x = _layer(rng), torch.randn(2, 16, 6, 9, generator=rng)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        cast = layer(x)
    for output in (cast, layer.to(dtype)(x.to(dtype))):
        assert output.dtype == dtype
        # Up to 0.016 in bfloat16, in 300 results.
        assert (output.float() - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert layer.sampling_locations(x.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ((16, 3, 1), {}, r"d_model \(16\) must be divisible by n_heads \(3\)"),
        ((16, 4, 3), {}, r"n_heads \(4\) must be divisible by n_groups \(3\)"),
        ((16, 4, 0), {}, "must be positive, got 16, 4, 0, 6 and 1"),
        ((16, 4, 2), {"map_size": (0, 3)}, r"must be positive, got 16, 4, 2, \(0, 3\) and 1"),
        ((16, 4, 2), {"kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        ((16, 4, 2), {"offset_range": 0.0}, "offset_range must be positive, got 0.0"),
        ((16, 4, 2), {"offset_range": float("nan")}, "offset_range must be positive, got nan"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sizes, settings, message):
    with pytest.raises(ValueError, match=message):
        DeformableAttention2d(*sizes, **({"map_size": 6} | settings))


def test_printed_layer_names_its_settings(rng):
    assert "n_heads=4, n_groups=2, offset_range=2.0" in repr(_layer(rng))


@pytest.mark.compile
def test_compiled_and_exported_layers_serve_other_sizes(rng):
    layer = _layer(rng)
    first, other = (torch.randn(*shape, generator=rng) for shape in ((2, 16, 6, 8), (3, 16, 9, 5)))
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(layer, (first,), dynamic_shapes=(sizes,), strict=True)
    assert any(node.target == torch.ops.deformdetr.ms_deform_attn.default for node in exported.graph.nodes)
    for function in (compiled, exported.module()):
        for x in (first, other):
            torch.testing.assert_close(function(x), layer(x), rtol=1e-4, atol=1e-5)
