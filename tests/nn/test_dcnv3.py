import pytest
import torch
from jaxtyping import TypeCheckError
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from deformdetr.nn import DCNv3
from goldens import fill, load_golden, unit
from random_weights import redrawn

GOLDEN = load_golden("dcnv3").arrays
VARIANTS = {
    "plain": {},
    "wide": {"kernel_size": 5, "pad": 2, "dw_kernel_size": 3, "offset_scale": 0.5, "remove_center": True},
    "scaled": {"dilation": 2, "pad": 2, "center_feature_scale": True, "act_layer": "SiLU"},
    "batch_norm": {"norm_layer": "BN", "act_layer": "ReLU", "offset_scale": 2.0},
}
GEOMETRIES = [
    {},
    {"kernel_size": 1, "pad": 0},
    {"stride": 2},
    {"dilation": 2, "pad": 3, "stride": 3},
    {"kernel_size": 2},
    {"kernel_size": 5, "pad": 0, "dw_kernel_size": 7, "offset_scale": 0.5},
]


def _layer(rng, **settings):
    return redrawn(DCNv3(**({"channels": 12, "group": 3} | settings)), rng, std=0.5)


@pytest.mark.parametrize("name", VARIANTS)
def test_output_and_gradients_in_float64_are_those_of_the_original(name):
    tag = f"dcnv3.{name}"
    layer = DCNv3(channels=8, group=2, **VARIANTS[name]).double()
    prefix = f"{tag}/grad/"
    shapes = {key.removeprefix(prefix): array.shape for key, array in GOLDEN.items() if key.startswith(prefix)}
    state = {key: fill(f"{tag}.{key}", shape) for key, shape in shapes.items() if key != "input"}
    assert [key for key, _ in layer.named_parameters()] == list(state)
    layer.load_state_dict(state, strict=name != "batch_norm")
    x = unit(f"{tag}.input", (2, 5, 6, 8)).requires_grad_()
    output = layer(x)
    torch.testing.assert_close(output, torch.from_numpy(GOLDEN[f"{tag}/output"]), rtol=0, atol=1e-12)
    leaves = {"input": x, **dict(layer.named_parameters())}
    found = torch.autograd.grad(output, list(leaves.values()), unit(f"{tag}.grad_output", tuple(output.shape)))
    for key, gradient in zip(leaves, found, strict=True):
        torch.testing.assert_close(gradient, torch.from_numpy(GOLDEN[prefix + key]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_taps_and_centers_are_those_of_a_depthwise_deformable_convolution(rng, geometry):
    layer = _layer(rng, **geometry).double()
    x = torch.randn(2, 11, 8, 12, generator=rng, dtype=torch.float64)
    local = layer.dw_conv(x.permute(0, 3, 1, 2))
    taps = layer.taps.shape[0]
    # Here taps go column by column, and offsets are (x, y); there row by row, and (y, x).
    side = round(taps**0.5)
    offsets = layer.offset(local).view(*local.shape[:3], 3, side, side, 2).transpose(4, 5).flip(-1)
    masks = layer.mask(local).view(*local.shape[:3], 3, taps).softmax(-1).unflatten(-1, (side, side)).mT
    # The scale moves taps around the center, which is rounded down.
    grid = (torch.arange(side) * layer.dilation - layer.reach // 2).double()
    grid = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1)
    offsets = (grid + offsets) * layer.offset_scale - grid
    sampled = deform_conv2d(
        layer.input_proj(x).permute(0, 3, 1, 2),
        offsets.flatten(3).permute(0, 3, 1, 2),
        torch.ones(12, 1, side, side, dtype=torch.float64),
        stride=layer.stride,
        padding=layer.pad,
        dilation=layer.dilation,
        mask=masks.flatten(3).permute(0, 3, 1, 2),
    )
    torch.testing.assert_close(layer(x), layer.output_proj(sampled.permute(0, 2, 3, 1)), rtol=0, atol=1e-12)


def test_it_starts_as_a_mean_over_the_kernel(rng):
    layer, x = DCNv3(channels=12, group=3), torch.randn(2, 7, 9, 12, generator=rng)
    mean = F.avg_pool2d(layer.input_proj(x).permute(0, 3, 1, 2), 3, stride=1, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer.output_proj(mean), rtol=1e-4, atol=1e-5)


def test_a_kernel_without_center_is_one_whose_center_weighs_nothing(rng):
    bare, full = _layer(rng, remove_center=True), _layer(rng)
    state = bare.state_dict()
    for name, filler in (("offset", 0.0), ("mask", -1e4)):
        for kind in ("weight", "bias"):
            given = state[f"{name}.{kind}"].unflatten(0, (3, 8, -1))
            center = torch.full_like(given[:, :1], filler if kind == "bias" else 0.0)
            state[f"{name}.{kind}"] = torch.cat([given[:, :4], center, given[:, 4:]], dim=1).flatten(0, 2)
    full.load_state_dict(state)
    x = torch.randn(2, 7, 9, 12, generator=rng)
    torch.testing.assert_close(bare(x), full(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_center_feature_scale_mixes_in_the_pixel_itself(rng, share):
    layer, x = _layer(rng, center_feature_scale=True), torch.randn(2, 7, 9, 12, generator=rng)
    plain = DCNv3(channels=12, group=3)
    plain.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "center" not in name})
    with torch.no_grad():
        layer.center_feature_scale_proj_weight.zero_()
        layer.center_feature_scale_proj_bias.fill_(200 * share - 100)
    expected = layer.output_proj(layer.input_proj(x)) if share else plain(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(rng, dtype):
    layer, x = _layer(rng, center_feature_scale=True), torch.randn(2, 7, 9, 12, generator=rng)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        cast = layer(x)
    for output in (cast, layer.to(dtype)(x.to(dtype))):
        assert output.dtype == dtype
        # Up to 0.008 in bfloat16, in 600 results.
        assert (output.float() - expected).square().mean().sqrt() < 0.05 * expected.std()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 10}, r"channels \(10\) must be divisible by group \(3\)"),
        ({"stride": 0}, "must be positive, got 12, 3, 3, 0, 1 and 3"),
        ({"dw_kernel_size": 0, "kernel_size": 2}, "must be positive, got 12, 2, 0, 1, 1 and 3"),
        ({"kernel_size": 4, "remove_center": True}, "remove_center needs an odd kernel_size above 1, got 4"),
        ({"kernel_size": 1, "pad": 0, "remove_center": True}, "an odd kernel_size above 1, got 1"),
        ({"dw_kernel_size": 4}, "dw_kernel_size 4 cannot have the centers of a kernel that is 3 pixels wide"),
        ({"pad": 0, "dilation": 2}, "dw_kernel_size 3 cannot have the centers of a kernel that is 5 pixels wide"),
        ({"act_layer": "Tanh"}, "act_layer"),
        ({"norm_layer": "GN"}, "norm_layer"),
        ({"stride": 2, "center_feature_scale": True}, "one output for every pixel, got kernel_size 3, stride 2, pad 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    # Where annotations are checked, they refuse an unknown name first.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        DCNv3(**({"channels": 12, "group": 3} | settings))


def test_printed_layer_names_its_settings():
    assert "group=4, stride=1, pad=1, taps=9, offset_scale=1.0, center_feature_scale=False" in repr(DCNv3())


@pytest.mark.compile
def test_compiled_and_exported_layers_serve_other_sizes(rng):
    layer = _layer(rng, center_feature_scale=True)
    first, other = (torch.randn(*shape, 12, generator=rng) for shape in ((2, 6, 8), (3, 9, 5)))
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    sizes = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(layer, (first,), dynamic_shapes=(sizes,), strict=True)
    assert any(node.target == torch.ops.deformdetr.ms_deform_attn.default for node in exported.graph.nodes)
    for function in (compiled, exported.module()):
        for x in (first, other):
            torch.testing.assert_close(function(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.interpreter
@pytest.mark.unchecked
def test_it_runs_the_kernel_of_attention(rng, monkeypatch):
    from deformdetr.kernels import _triton

    calls = []
    run = _triton.forward
    monkeypatch.setattr(_triton, "forward", lambda *arguments: calls.append(arguments) or run(*arguments))
    layer, x = _layer(rng), torch.randn(1, 4, 5, 12, generator=rng)
    output = layer(x)
    assert len(calls) == 1
    torch.testing.assert_close(output, layer.double()(x.double()).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_may_be_empty(name):
    layer = DCNv3(channels=8, group=2, **VARIANTS[name]).eval()
    out = layer(torch.zeros(0, 5, 6, 8))
    out.sum().backward()
    assert out.shape == (0, 5, 6, 8)
