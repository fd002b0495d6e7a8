"""Attention over one map: the one-level case of the layer, and what deformable convolution has to do with it."""

import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from deformdetr.kernels import ms_deform_attn
from deformdetr.nn import DeformAttn, MSDeformAttn
from random_weights import redrawn

HEIGHT, WIDTH = 5, 7


def _pixel_centers():
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return torch.stack([x / WIDTH, y / HEIGHT], dim=-1).view(1, HEIGHT * WIDTH, 2)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_the_layer_of_one_level_on_a_map(rng, coordinates, padded):
    ours, general = DeformAttn(24, 4, 3), redrawn(MSDeformAttn(24, 1, 4, 3), rng)
    ours.attention.load_state_dict(general.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in general.parameters())
    query = torch.randn(2, 6, 24, generator=rng)
    reference = torch.rand(2, 6, coordinates, generator=rng)
    features = torch.randn(2, 24, HEIGHT, WIDTH, generator=rng)
    mask = torch.rand(2, HEIGHT, WIDTH, generator=rng) < 0.4 if padded else None
    expected = general(
        query,
        reference[:, :, None],
        features.flatten(2).transpose(1, 2),
        [(HEIGHT, WIDTH)],
        input_padding_mask=None if mask is None else mask.flatten(1),
    )
    assert torch.equal(ours(query, reference, features, mask), expected)


def test_it_starts_as_the_layer_of_one_level_does(seed):
    torch.manual_seed(seed)
    general = MSDeformAttn(24, 1, 4, 3).state_dict()
    torch.manual_seed(seed)
    for name, tensor in DeformAttn(24, 4, 3).attention.state_dict().items():
        assert torch.equal(tensor, general[name])


@pytest.mark.parametrize("version", [1, 2])
def test_deformable_convolution_is_attention_whose_heads_are_its_taps(rng, version):
    """One level, one point, the value projection an identity for every head: section 4.1 of the paper.

    Every head sees all channels then, so it takes the operator: the layer shares its channels out. Version 2 weighs its
    taps without a softmax.
    """
    d_in, d_out, taps = 4, 6, 9
    features = torch.randn(2, d_in, HEIGHT, WIDTH, generator=rng)
    kernel = torch.randn(d_out, d_in, 3, 3, generator=rng)
    bias = torch.randn(d_out, generator=rng)
    offsets = torch.randn(2, 2 * taps, HEIGHT, WIDTH, generator=rng) * 2
    mask = torch.rand(2, taps, HEIGHT, WIDTH, generator=rng) if version == 2 else None
    expected = deform_conv2d(features, offsets, kernel, bias, padding=1, mask=mask)

    queries = HEIGHT * WIDTH
    grid = torch.stack(torch.meshgrid(torch.arange(-1, 2), torch.arange(-1, 2), indexing="ij"), dim=-1).view(taps, 2)
    moved = grid + offsets.view(2, taps, 2, queries).permute(0, 3, 1, 2)
    size = torch.tensor([WIDTH, HEIGHT])
    locations = (_pixel_centers()[:, :, None] + moved.flip(-1) / size)[:, :, :, None, None]
    weights = torch.ones(2, taps, queries) if mask is None else mask.flatten(2)
    value = features.flatten(2).transpose(1, 2)[:, :, None].expand(-1, -1, taps, -1)
    sampled = ms_deform_attn(value, [(HEIGHT, WIDTH)], locations, weights.transpose(1, 2)[..., None, None].contiguous())
    output = sampled @ kernel.permute(2, 3, 1, 0).reshape(taps * d_in, d_out) + bias
    torch.testing.assert_close(output.transpose(1, 2).view_as(expected), expected, rtol=1e-4, atol=1e-4)


def test_layer_with_one_point_and_identity_values_is_a_deformable_convolution_of_one_tap(rng):
    heads, d_model = 4, 12
    layer = redrawn(DeformAttn(d_model, heads, n_points=1), rng)
    nn.init.eye_(layer.attention.value_proj.weight)
    nn.init.zeros_(layer.attention.value_proj.bias)
    features = torch.randn(2, d_model, HEIGHT, WIDTH, generator=rng)
    query = torch.randn(2, HEIGHT * WIDTH, d_model, generator=rng)
    output = layer(query, _pixel_centers(), features)

    # Heads are groups of channels that have their own offsets, the output projection is the kernel.
    offsets = layer.attention.sampling_offsets(query).view(2, HEIGHT, WIDTH, heads, 2).flip(-1)
    projection = layer.attention.output_proj
    expected = deform_conv2d(
        features, offsets.flatten(3).permute(0, 3, 1, 2), projection.weight[:, :, None, None], projection.bias
    )
    torch.testing.assert_close(output.transpose(1, 2).view_as(expected), expected, rtol=1e-4, atol=1e-4)
