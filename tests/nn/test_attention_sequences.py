"""Sequences as maps of height 1, and volumes as slices."""

import torch
import torch.nn.functional as F

from deformdetr.kernels import ms_deform_attn
from deformdetr.nn import MSDeformAttn
from random_weights import redrawn

LENGTHS = [9, 4]


def _segments(rng, queries):
    """Draw boxes (center, 0.5, duration, 0)."""
    center, duration = torch.rand(2, 2, queries, generator=rng, dtype=torch.float64)
    return torch.stack([center, torch.full_like(center, 0.5), duration, torch.zeros_like(center)], dim=-1)[:, :, None]


def _layer(rng):
    return redrawn(MSDeformAttn(32, 2, 4, 3).double(), rng)


def _attend_along_time(layer, query, segments, frames):
    """Compute the output from linear interpolation between two frames; frames outside are zero."""
    value = layer.value_proj(frames).view(2, -1, 4, 8)
    offsets = layer.sampling_offsets(query).view(2, -1, 4, 2, 3, 2)[..., 0]
    weights = layer.attention_weights(query).view(2, -1, 4, 6).softmax(-1).view(offsets.shape)
    center, duration = segments[:, :, :, None, 0], segments[:, :, :, None, 2]
    out, first = 0, 0
    for level, length in enumerate(LENGTHS):
        time = (center + offsets[:, :, :, level] / 3 / 2 * duration) * length - 0.5
        share = (1 - (time[..., None] - torch.arange(length)).abs()).clamp(min=0)
        part = value[:, first : first + length]
        out = out + torch.einsum("bqmp,bqmpt,btmd->bqmd", weights[:, :, :, level], share, part)
        first += length
    return layer.output_proj(out.flatten(2))


def test_segments_sample_frames_by_linear_interpolation(rng):
    layer, segments = _layer(rng), _segments(rng, 11)
    query = torch.randn(2, 11, 32, generator=rng, dtype=torch.float64)
    frames = torch.randn(2, sum(LENGTHS), 32, generator=rng, dtype=torch.float64)
    leaves = [query.requires_grad_(), segments.requires_grad_(), frames.requires_grad_(), *layer.parameters()]
    expected = _attend_along_time(layer, query, segments, frames)
    found = layer(query, segments, frames, [(1, length) for length in LENGTHS])
    torch.testing.assert_close(found, expected)
    probe = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, probe)
    for got, want, leaf in zip(torch.autograd.grad(found, leaves, probe), wanted, leaves, strict=True):
        # The row of a segment is 0.5 and its height 0, by definition.
        kept = [0, 2] if leaf is segments else slice(None)
        torch.testing.assert_close(got[..., kept], want[..., kept])


def test_new_layers_stay_on_the_row_around_segments(rng):
    query = torch.zeros(2, 5, 32)
    segments = _segments(rng, 5).float()
    locations, _ = MSDeformAttn(32, 2, 4).sampling_locations_and_weights(query, segments, [(1, 9), (1, 4)])
    assert torch.equal(locations[..., 1], torch.full_like(locations[..., 1], 0.5))
    assert (locations[..., 0] != segments[:, :, :, None, None, 0]).any()


def test_slices_as_levels_give_trilinear_samples(rng):
    slices, height, width = 4, 5, 7
    volume = torch.randn(2, slices * height * width, 3, 5, generator=rng, dtype=torch.float64)
    locations = torch.rand(2, 6, 3, 2, 3, generator=rng, dtype=torch.float64) * 1.5 - 0.25
    weights = torch.rand(2, 6, 3, 2, generator=rng, dtype=torch.float64)
    distance = locations[..., None, :, 2] * slices - 0.5 - torch.arange(slices)[:, None]
    shares = weights[..., None, :] * (1 - distance.abs()).clamp(min=0)
    planes = locations[..., None, :, :2].expand(*shares.shape, 2)
    found = ms_deform_attn(volume, [(height, width)] * slices, planes, shares)

    maps = volume.view(2, slices, height, width, 3, 5).permute(0, 4, 5, 1, 2, 3).flatten(0, 1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)[:, :, :, None]
    sampled = F.grid_sample(maps, grid, align_corners=False)[..., 0].unflatten(0, (2, 3))
    expected = (sampled * weights.transpose(1, 2)[:, :, None]).sum(-1).permute(0, 3, 1, 2).flatten(2)
    torch.testing.assert_close(found, expected)
