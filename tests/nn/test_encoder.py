import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from deformdetr.nn import (
    DeformableEncoder,
    DeformableEncoderLayer,
    FeedForward,
    MSDeformAttn,
    pixel_centers,
    valid_ratios,
)
from pyramids import SHAPES, VALID, Pyramid, masks_of, random_pyramid
from random_weights import shaken

D_MODEL = 16


def _layer(dropout=0.0):
    attention = MSDeformAttn(D_MODEL, n_levels=3, n_heads=4, n_points=2)
    return DeformableEncoderLayer(attention, FeedForward(D_MODEL, 32, dropout=dropout), dropout=dropout)


def _encoder(rng, n_layers=2):
    return shaken(DeformableEncoder(_layer() for _ in range(n_layers)), rng)


def _encode(encoder, pyramid):
    ratios = valid_ratios(pyramid.masks)
    return encoder(pyramid.features, pyramid.position, pyramid.spatial_shapes, ratios, pyramid.padding_mask)


def test_layer_attends_then_transforms_each_with_residual_and_norm(rng):
    layer, pyramid = shaken(_layer(), rng), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    src, position, mask = pyramid.features, pyramid.position, pyramid.padding_mask
    reference = torch.rand(2, src.shape[1], 3, 2, generator=rng)
    attended = layer.self_attn(src + position, reference, src, SHAPES, None, mask)
    norm1, norm2 = layer.self_attn_norm, layer.feed_forward_norm
    expected = F.layer_norm(src + attended, (D_MODEL,), norm1.weight, norm1.bias)
    hidden = layer.feed_forward.linear2(layer.feed_forward.linear1(expected).relu())
    expected = F.layer_norm(expected + hidden, (D_MODEL,), norm2.weight, norm2.bias)
    torch.testing.assert_close(layer(src, position, reference, SHAPES, mask), expected)


def test_dropout_drops_both_branches_in_training_only(rng):
    layer, pyramid = _layer(dropout=1.0), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    reference = torch.rand(2, pyramid.features.shape[1], 3, 2, generator=rng)
    arguments = (pyramid.features, pyramid.position, reference, SHAPES)
    expected = F.layer_norm(F.layer_norm(pyramid.features, (D_MODEL,)), (D_MODEL,))
    torch.testing.assert_close(layer(*arguments), expected)
    assert not torch.allclose(layer.eval()(*arguments), expected, atol=1e-2)


def test_stack_applies_its_layers_in_turn_around_every_pixel(rng):
    encoder, pyramid = _encoder(rng, 3), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    reference = pixel_centers(SHAPES, valid_ratios(pyramid.masks))
    expected = pyramid.features
    for layer in encoder.layers:
        expected = layer(expected, pyramid.position, reference, SHAPES, pyramid.padding_mask)
    torch.testing.assert_close(_encode(encoder, pyramid), expected)


def test_stack_keeps_the_initialization_of_every_layer():
    encoder = DeformableEncoder([_layer(), _layer()])
    first, second = (layer.feed_forward.linear1.weight for layer in encoder.layers)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e20])
def test_padding_does_not_change_valid_pixels(rng, poison):
    encoder, pyramid = _encoder(rng), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    mask = pyramid.padding_mask
    features, position = (x.masked_fill(mask[..., None], poison) for x in (pyramid.features, pyramid.position))
    poisoned = pyramid._replace(features=features, position=position)
    assert torch.equal(_encode(encoder, poisoned)[~mask], _encode(encoder, pyramid)[~mask])


def test_padded_image_gives_the_features_of_the_same_image_alone(rng):
    encoder, pyramid = _encoder(rng), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    valid = ~pyramid.padding_mask[1]
    alone = Pyramid(VALID[1], masks_of(VALID[1:], VALID[1]), pyramid.features[1:, valid], pyramid.position[1:, valid])
    torch.testing.assert_close(_encode(encoder, pyramid)[1:, valid], _encode(encoder, alone), rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_do_not_influence_each_other(rng):
    encoder, pyramid = _encoder(rng), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    other = pyramid._replace(features=torch.cat([pyramid.features[:1], pyramid.features[1:] + 1]))
    torch.testing.assert_close(_encode(encoder, other)[0], _encode(encoder, pyramid)[0])


def test_every_parameter_has_a_gradient(rng):
    encoder, pyramid = _encoder(rng), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    _encode(encoder, pyramid)[~pyramid.padding_mask].pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_samples_in_float32(rng, autocast):
    encoder, pyramid = _encoder(rng), random_pyramid(rng, D_MODEL, VALID, SHAPES)
    expected = _encode(encoder, pyramid)[~pyramid.padding_mask]
    given = []
    for layer in encoder.layers:
        layer.self_attn.register_forward_pre_hook(lambda module, arguments: given.append(arguments[1]))
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            output = _encode(encoder, pyramid)
    else:
        halved = pyramid._replace(features=pyramid.features.bfloat16(), position=pyramid.position.bfloat16())
        output = _encode(encoder.bfloat16(), halved)
    centers = pixel_centers(SHAPES, valid_ratios(pyramid.masks))
    assert len(given) == 2
    assert all(torch.equal(reference, centers) for reference in given)
    torch.testing.assert_close(output[~pyramid.padding_mask].float(), expected, rtol=0, atol=0.15)


def test_layers_of_another_kind_can_take_part(rng):
    pyramid = random_pyramid(rng, D_MODEL, VALID, SHAPES)

    class Doubling(nn.Module):
        def forward(self, src, position, reference_points, spatial_shapes, padding_mask):
            return 2 * src

    assert torch.equal(_encode(DeformableEncoder([Doubling(), Doubling()]), pyramid), 4 * pyramid.features)


@pytest.mark.compile
def test_compiled_encoder_trains_on_new_sizes_without_recompiling(rng):
    torch.compiler.reset()
    encoder = _encoder(rng, 1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(encoder, fullgraph=True, backend=counter)
    for index, (height, width, batch) in enumerate([(9, 12, 2), (13, 10, 3), (16, 21, 4)]):
        shapes = [(height, width), (height // 2, width // 2), (height // 3, width // 3)]
        pyramid = random_pyramid(rng, D_MODEL, [shapes] * batch, shapes)
        if index == 2:
            compilations = counter.frame_count
        results = []
        for module in (compiled, encoder):
            output = _encode(module, copy.copy(pyramid))
            results.append([output, *torch.autograd.grad(output.pow(3).mean(), list(encoder.parameters()))])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == compilations <= 2
