import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torchvision.ops import deform_conv2d

from deformdetr.nn import DeformConv2d
from random_weights import redrawn

GEOMETRIES = [
    {},
    {"kernel_size": 1, "padding": 0},
    {"stride": 2, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    {"groups": 2},
    {"offset_groups": 4},
    {"groups": 4, "offset_groups": 2, "bias": False},
]


def _layer(version=2, **changes):
    return DeformConv2d(8, 12, version=version, **({"kernel_size": 3, "padding": 1} | changes))


def _shake(layer, rng):
    redrawn(layer.conv_offset, rng)
    return layer


def _plain(layer, x):
    conv = layer.conv_offset
    groups = conv.in_channels // layer.weight.shape[1]
    return F.conv2d(x, layer.weight, None, conv.stride, conv.padding, conv.dilation, groups)


def _bias(layer):
    return 0 if layer.bias is None else layer.bias[:, None, None]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("version", "share"), [(1, 1.0), (2, 0.5)])
def test_it_starts_as_a_plain_convolution_whose_taps_version_two_halves(rng, version, share, geometry):
    layer, x = _layer(version, **geometry), torch.randn(2, 8, 9, 11, generator=rng)
    torch.testing.assert_close(layer(x), share * _plain(layer, x) + _bias(layer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_output_and_gradients_are_those_of_torchvisions_function(rng, version, geometry):
    layer = _shake(_layer(version, **geometry), rng)
    x = torch.randn(2, 8, 9, 11, generator=rng, requires_grad=True)
    conv = layer.conv_offset
    predicted = conv(x)
    taps = predicted.shape[1] // (version + 1)
    # As mmcv has them: all offsets, then all weights.
    offsets, logits = predicted[:, : 2 * taps], predicted[:, 2 * taps :]
    mask = logits.sigmoid() if version == 2 else None
    arguments = (conv.stride, conv.padding, conv.dilation)
    expected = deform_conv2d(x, offsets, layer.weight, layer.bias, *arguments, mask)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    leaves = [x, *layer.parameters()]
    probe = torch.randn(expected.shape, generator=rng)
    gradients = torch.autograd.grad(found, leaves, probe)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, leaves, probe), strict=True):
        assert ours.any()
        torch.testing.assert_close(ours, theirs)


def test_offsets_are_down_and_right_in_pixels_of_the_input(rng):
    layer, x = _layer(1, bias=False), torch.randn(1, 8, 12, 12, generator=rng)
    with torch.no_grad():
        layer.conv_offset.bias.view(9, 2).copy_(torch.tensor([1.0, -2.0]))
    moved = x.roll((-1, 2), dims=(2, 3))
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(layer(x)[inside], _plain(layer, moved)[inside], rtol=1e-4, atol=1e-5)


def test_logits_of_version_two_switch_taps_on_and_off(rng):
    layer, x = _layer(2, bias=False), torch.randn(1, 8, 6, 6, generator=rng)
    with torch.no_grad():
        layer.conv_offset.bias[18:] = -100
        layer.conv_offset.bias[18 + 4] = 100
    center = F.conv2d(x, layer.weight[:, :, 1:2, 1:2])
    torch.testing.assert_close(layer(x), center, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_in_float32(rng, dtype):
    layer, x = _shake(_layer(), rng), torch.randn(2, 8, 9, 11, generator=rng)
    with torch.autocast("cpu", dtype):
        from_float, from_half = layer(x), layer(x.to(dtype))
    expected = layer(x)
    for output in (from_float, from_half, layer.to(dtype)(x.to(dtype))):
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


def test_float64_stays(rng):
    layer, x = _shake(_layer(), rng), torch.randn(2, 8, 9, 11, generator=rng)
    exact = layer.double()(x.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(layer.float()(x), exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("version", "numbers"), [(1, 2 * 2 * 9), (2, 3 * 2 * 9)])
def test_parameters_are_named_and_shaped_as_in_mmcv(version, numbers):
    layer = _layer(version, groups=4, offset_groups=2)
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == {
        "weight": (12, 2, 3, 3),
        "bias": (12,),
        "conv_offset.weight": (numbers, 8, 3, 3),
        "conv_offset.bias": (numbers,),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 3}, "version"),
        ({"offset_groups": 3}, r"in_channels \(8\) must be divisible by offset_groups \(3\)"),
        ({"offset_groups": 0}, r"must be divisible by offset_groups \(0\)"),
        ({"groups": 3}, "groups"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    # Where annotations are checked, they refuse an unknown version first.
    with pytest.raises((ValueError, TypeCheckError), match=message):
        _layer(**settings)


def test_printed_layer_names_its_groups():
    assert "out_channels=12, version=2, groups=4, offset_groups=2, bias=True" in repr(_layer(groups=4, offset_groups=2))


@pytest.mark.compile
def test_compiled_layer_is_one_graph(rng):
    torch.compiler.reset()
    layer, x = _shake(_layer(), rng), torch.randn(2, 8, 9, 11, generator=rng)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
