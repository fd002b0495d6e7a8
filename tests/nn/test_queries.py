"""Queries that are parameters."""

import pytest
import torch
from torch import nn

from bounds import fills_uniform_bound
from deformdetr.nn import AnchorQueries, LearnedQueries, ProposalQueries

D_MODEL = 16


def _propose(module, pyramid):
    return module(pyramid.features, pyramid.spatial_shapes, pyramid.padding_mask)


def test_learned_queries_are_position_then_content(pyramid):
    module = LearnedQueries(7, D_MODEL)
    queries = _propose(module, pyramid)
    weight = module.embedding.weight
    for image in range(2):
        assert torch.equal(queries.position[image], weight[:, :D_MODEL])
        assert torch.equal(queries.content[image], weight[:, D_MODEL:])
        points = (weight[:, :D_MODEL] @ module.reference_points.weight.T + module.reference_points.bias).sigmoid()
        torch.testing.assert_close(queries.reference_points[image], points)
    assert queries.predictions == {}


def test_learned_queries_are_initialized_as_in_the_original():
    module = LearnedQueries(300, 256)
    weight = module.embedding.weight.detach()
    assert weight.shape == (300, 512)
    assert weight.mean().item() == pytest.approx(0, abs=0.02)
    assert weight.std().item() == pytest.approx(1, abs=0.02)
    assert fills_uniform_bound(module.reference_points.weight, 0.152499)
    assert not module.reference_points.bias.any()


def test_learned_queries_train_all_parameters(pyramid):
    module = LearnedQueries(7, D_MODEL)
    queries = _propose(module, pyramid)
    (queries.content.sum() + queries.position.sum() + queries.reference_points.square().sum()).backward()
    assert all(parameter.grad.all() for parameter in module.parameters())


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", [LearnedQueries, AnchorQueries])
def test_learned_reference_points_are_float32_in_half_precision(pyramid, kind, autocast):
    module = kind(7, D_MODEL)
    expected = _propose(module, pyramid).reference_points
    module = module if autocast else module.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        queries = _propose(module, pyramid)
    assert queries.reference_points.dtype == torch.float32
    torch.testing.assert_close(queries.reference_points, expected, rtol=0, atol=0.02)


def test_anchors_and_content_are_parameters(pyramid):
    module = AnchorQueries(7, D_MODEL)
    queries = _propose(module, pyramid)
    for image in range(2):
        assert torch.equal(queries.content[image], module.content.weight)
        torch.testing.assert_close(queries.reference_points[image], 1 / (1 + (-module.anchors.weight).exp()))
    assert queries.position is None
    assert queries.predictions == {}
    (queries.content.sum() + queries.reference_points.square().sum()).backward()
    assert all(parameter.grad.all() for parameter in module.parameters())


def test_the_indicator_of_queries_is_a_last_channel_of_zero(pyramid):
    heads = nn.Linear(D_MODEL, 5), nn.Linear(D_MODEL, 4)
    for module in (
        AnchorQueries(7, D_MODEL, has_indicator=True),
        ProposalQueries(7, D_MODEL, *heads, content=nn.Embedding(7, D_MODEL - 1)),
    ):
        content = _propose(module, pyramid).content
        assert module.content.weight.shape == (7, D_MODEL - 1)
        assert torch.equal(content[0, :, :-1], module.content.weight)
        assert not content[..., -1].any()


@pytest.mark.parametrize("num_queries", [0, -3])
def test_the_number_of_queries_must_be_positive(num_queries):
    for kind in (LearnedQueries, AnchorQueries):
        with pytest.raises(ValueError, match=f"num_queries must be at least 1, got {num_queries}"):
            kind(num_queries, 8)
    with pytest.raises(ValueError, match=f"num_queries must be at least 1, got {num_queries}"):
        ProposalQueries(num_queries, 8, nn.Identity(), nn.Identity())
