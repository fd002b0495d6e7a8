import pytest
import torch

from deformdetr.config import ConvBackboneConfig
from deformdetr.nn import ConvBackbone


@pytest.mark.parametrize("dilation", [False, True])
@pytest.mark.parametrize("out_layers", [(2, 3, 4), (1,), (1, 4)])
def test_small_backbone_gives_the_outputs_that_it_announces(rng, out_layers, dilation):
    backbone = ConvBackbone((8, 16, 24, 32), out_layers=out_layers, dilation=dilation)
    assert backbone.channels == tuple(8 * layer for layer in out_layers)
    assert backbone.strides == tuple((4, 8, 16, 16 if dilation else 32)[layer - 1] for layer in out_layers)
    features = backbone(torch.randn(2, 3, 64, 96, generator=rng))
    assert [tuple(feature.shape) for feature in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


def test_dilation_of_the_small_backbone_needs_no_other_weights_and_sees_as_far(rng):
    plain, dilated = (ConvBackbone((8, 16, 24, 32), out_layers=(4,), dilation=dilation) for dilation in (False, True))
    dilated.load_state_dict(plain.state_dict())
    assert ConvBackboneConfig(channels=(8, 16, 24, 32), dilation=True).build((4,)).strides == (16,)
    # The second convolution reaches 2 of its own pixels, the first 1 more: 3 pixels of stride 16.
    stage = dilated.stages[3].eval()
    with torch.no_grad():
        impulse = torch.zeros(1, 24, 9, 9)
        impulse[:, :, 4, 4] = 1
        seen = stage.conv(stage.down(impulse)).abs().sum(1)[0] > 0
    assert seen[4].tolist() == [False, True, True, True, True, True, True, True, False]


def test_small_backbone_trains_all_parameters(rng):
    backbone = ConvBackbone((8, 16, 24, 32))
    sum(feature.square().mean() for feature in backbone(torch.randn(2, 3, 64, 64, generator=rng))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_images_of_a_batch_do_not_influence_each_other_in_the_small_backbone(rng):
    backbone, images = ConvBackbone((8, 16, 24, 32)), torch.randn(3, 3, 64, 64, generator=rng)
    for together, alone in zip(backbone(images), backbone(images[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "out_layers", "message"),
    [
        ((8, 16, 24), (4,), r"four positive multiples of 8, got \(8, 16, 24\)"),
        ((8, 16, 24, 30), (4,), r"four positive multiples of 8, got \(8, 16, 24, 30\)"),
        ((0, 8, 8, 8), (4,), r"four positive multiples of 8, got \(0, 8, 8, 8\)"),
        ((8, 8, 8, 8), (4, 3), r"ascending stages out of 1 to 4, got \(4, 3\)"),
    ],
)
def test_small_backbone_refuses_other_widths_and_stages(channels, out_layers, message):
    with pytest.raises(ValueError, match=message):
        ConvBackbone(channels, out_layers=out_layers)


def test_maps_of_one_pixel_do_not_depend_on_the_batch(rng):
    backbone = ConvBackbone(channels=(8, 8, 8, 8))
    images = torch.randn(2, 3, 16, 9, generator=rng)
    assert backbone(images)[-1].shape == (2, 8, 1, 1)
    for alone, together in zip(backbone(images[:1]), backbone(images), strict=True):
        # The norm divides rounding errors of its mean by the square root of its epsilon.
        torch.testing.assert_close(alone, together[:1], atol=1e-3, rtol=1e-3)
