"""Queries that are boxes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import AnchorQueries, MixedQueries, proposal_logits
from pyramids import random_pyramid

D_MODEL = 16
SHAPES = [(6, 9), (3, 5), (2, 3)]
VALID = [[(6, 9), (3, 5), (2, 3)], [(4, 6), (2, 3), (1, 2)]]


@pytest.fixture
def pyramid(rng):
    return random_pyramid(rng, D_MODEL, VALID, SHAPES)


def _choose(module, pyramid):
    return module(pyramid.features, pyramid.spatial_shapes, pyramid.padding_mask)


def _mixed(rng, num_queries=11, **settings):
    module = MixedQueries(num_queries, D_MODEL, nn.Linear(D_MODEL, 5), nn.Linear(D_MODEL, 4), **settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.2)
    return module


def _scored(module, pyramid):
    """Compute logits and boxes of all pixels, one part after the other."""
    grid = proposal_logits(SHAPES, pyramid.padding_mask)
    memory = pyramid.features.masked_fill(grid.isinf().any(-1, keepdim=True), 0)
    memory = F.linear(memory, module.memory_projection.weight, module.memory_projection.bias)
    memory = F.layer_norm(memory, (D_MODEL,), module.memory_norm.weight, module.memory_norm.bias)
    return module.class_head(memory), (module.box_head(memory) + grid).sigmoid()


def test_anchors_and_content_are_parameters(pyramid):
    module = AnchorQueries(7, D_MODEL)
    queries = _choose(module, pyramid)
    for image in range(2):
        assert torch.equal(queries.content[image], module.content.weight)
        torch.testing.assert_close(queries.reference_points[image], 1 / (1 + (-module.anchors.weight).exp()))
    assert queries.position is queries.proposals is queries.chosen is None
    (queries.content.sum() + queries.reference_points.square().sum()).backward()
    assert all(parameter.grad.all() for parameter in module.parameters())


def test_the_indicator_of_queries_is_a_last_channel_of_zero(rng, pyramid):
    for module in (AnchorQueries(7, D_MODEL, has_indicator=True), _mixed(rng, 7, has_indicator=True)):
        content = _choose(module, pyramid).content
        assert module.content.weight.shape == (7, D_MODEL - 1)
        assert torch.equal(content[0, :, :-1], module.content.weight)
        assert not content[..., -1].any()


@pytest.mark.parametrize("num_queries", [1, 11, 25])
def test_boxes_of_the_pixels_with_the_best_class_are_chosen(rng, pyramid, num_queries):
    module = _mixed(rng, num_queries)
    queries, (logits, boxes) = _choose(module, pyramid), _scored(module, pyramid)
    for image in range(2):
        best = sorted(range(logits.shape[1]), key=lambda pixel: -logits[image, pixel].max().item())[:num_queries]
        # Pixels that propose nothing tie.
        usable = boxes[image, best].amax(-1) < 1
        torch.testing.assert_close(queries.chosen["pred_logits"][image], logits[image, best])
        torch.testing.assert_close(queries.reference_points[image][usable], boxes[image, best][usable])
        assert torch.equal(queries.reference_points[image], queries.chosen["pred_boxes"][image])
    assert not torch.equal(logits.amax(-1).argsort(stable=True), logits[..., 0].argsort(stable=True))


def test_chosen_boxes_are_detached_and_content_is_learned(rng, pyramid):
    module = _mixed(rng)
    queries = _choose(module, pyramid)
    assert not queries.reference_points.requires_grad
    assert torch.equal(queries.content[1], module.content.weight)
    assert queries.position is queries.proposals is None
    (queries.chosen["pred_logits"].square().sum() + queries.chosen["pred_boxes"].square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == name.startswith("content"), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_fewer_pixels_than_queries_give_all_of_them(rng, pyramid):
    queries = _choose(_mixed(rng, 300), pyramid)
    assert queries.content.shape == (2, 75, D_MODEL)
    assert queries.reference_points.shape == (2, 75, 4)


def test_mixed_queries_start_xavier():
    module = MixedQueries(300, 256, nn.Identity(), nn.Identity())
    assert fills_uniform_bound(module.content.weight, xavier_bound(300, 256))
    assert fills_uniform_bound(module.memory_projection.weight, xavier_bound(256, 256))


@pytest.mark.parametrize("autocast", [True, False])
def test_boxes_stay_in_float32_in_half_precision(rng, pyramid, autocast):
    for module in (_mixed(rng), AnchorQueries(7, D_MODEL)):
        features = pyramid.features if autocast else pyramid.features.bfloat16()
        module = module if autocast else module.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            queries = _choose(module, pyramid._replace(features=features))
        assert queries.reference_points.dtype == torch.float32


@pytest.mark.parametrize("num_queries", [0, -3])
def test_queries_must_be_some(num_queries):
    for build in (AnchorQueries, lambda n, d: MixedQueries(n, d, nn.Identity(), nn.Identity())):
        with pytest.raises(ValueError, match=f"num_queries must be at least 1, got {num_queries}"):
            build(num_queries, 8)
