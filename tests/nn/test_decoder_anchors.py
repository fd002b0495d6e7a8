"""The decoder with positions from boxes, against its formulas written out."""

import pytest
import torch
from torch import nn

from deformdetr.nn import (
    MLP,
    AnchorPosition,
    DeformableDecoder,
    DeformableDecoderLayer,
    FeedForward,
    MSDeformAttn,
    valid_ratios,
)
from pyramids import SHAPES
from random_weights import shaken

D_MODEL = 16


def _layer():
    return DeformableDecoderLayer(
        nn.MultiheadAttention(D_MODEL, 4, batch_first=True),
        MSDeformAttn(D_MODEL, n_levels=3, n_heads=4, n_points=2),
        FeedForward(D_MODEL, 32, dropout=0.0),
        dropout=0.0,
    )


def _decoder(rng, n_heads=3, *, norm=False, has_scale=False, **settings):
    decoder = DeformableDecoder(
        [_layer() for _ in range(3)],
        [MLP(D_MODEL, D_MODEL, 4, 2) for _ in range(n_heads)],
        position=AnchorPosition(D_MODEL, has_scale=has_scale),
        with_box_refine=True,
        norm=nn.LayerNorm(D_MODEL) if norm else None,
        **settings,
    )
    return shaken(decoder, rng)


def _decode(decoder, content, boxes, pyramid, mask=None):
    ratios = valid_ratios(pyramid.masks)
    return decoder(content, None, boxes, pyramid.features, pyramid.spatial_shapes, ratios, pyramid.padding_mask, mask)


@pytest.fixture
def queries(rng):
    return torch.randn(2, 7, D_MODEL, generator=rng), torch.rand(2, 7, 4, generator=rng) * 0.8 + 0.1


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("look_forward_twice", [True, False])
@pytest.mark.parametrize("n_heads", [1, 3])
def test_layers_encode_and_refine_the_boxes(rng, pyramid, queries, norm, look_forward_twice, n_heads):
    decoder = _decoder(rng, n_heads, norm=norm, has_scale=True, look_forward_twice=look_forward_twice)
    output = _decode(decoder, *queries, pyramid)
    query, reference = queries
    start, ratios = reference, valid_ratios(pyramid.masks)
    losses = []
    for index, layer in enumerate(decoder.layers):
        on_levels = torch.stack([reference * ratios[:, level, [0, 1, 0, 1]][:, None] for level in range(3)], dim=2)
        position = decoder.position(on_levels[:, :, 0], None if index == 0 else query)
        query = layer(query, position, on_levels, pyramid.features, SHAPES, pyramid.padding_mask)
        head = decoder.box_heads[index if n_heads == 3 else 0]
        hidden = decoder.norm(query) if norm else query
        boxes = (head(hidden) + torch.logit(start)).sigmoid()
        torch.testing.assert_close(output.hidden_states[index], hidden)
        torch.testing.assert_close(output.boxes[index], boxes, rtol=1e-4, atol=1e-5)
        losses.append(boxes.square().sum())
        # Predicted boxes are relative to references with a gradient; attention uses detached ones.
        moved = (head(query) + torch.logit(reference)).sigmoid()
        start, reference = moved if look_forward_twice else moved.detach(), moved.detach()
    ours = torch.autograd.grad(sum(boxes.square().sum() for boxes in output.boxes), list(decoder.parameters()))
    expected = torch.autograd.grad(sum(losses), list(decoder.parameters()))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("look_forward_twice", "trained"), [(False, [False, False, True]), (True, [False, True, True])]
)
def test_boxes_train_the_layer_before_only_when_looking_forward_twice(
    rng, pyramid, queries, look_forward_twice, trained
):
    decoder = _decoder(rng, look_forward_twice=look_forward_twice)
    _decode(decoder, *queries, pyramid).boxes[-1].sum().backward()
    # Hidden states train all layers, but box heads have a gradient through boxes only.
    assert [all(p.grad is not None for p in head.parameters()) for head in decoder.box_heads] == trained


def test_masked_queries_do_not_influence_the_others(rng, pyramid, queries):
    decoder = _decoder(rng, norm=True, has_scale=True)
    group = torch.arange(7) >= 4
    forbidden = (group[:, None] != group) & group
    first = _decode(decoder, *queries, pyramid, forbidden)
    second = _decode(decoder, queries[0] + group[:, None], queries[1] * (1 - 0.3 * group[:, None]), pyramid, forbidden)
    for one, other in zip(first.boxes, second.boxes, strict=True):
        torch.testing.assert_close(one[:, ~group], other[:, ~group])
        assert not torch.allclose(one[:, group], other[:, group], atol=1e-3)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_references_at_the_edge_are_bounded_by_eps(rng, pyramid, queries, eps):
    decoder = _decoder(rng, eps=eps)
    for head in decoder.box_heads:
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    boxes = _decode(decoder, queries[0], torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(2, 7, 4), pyramid).boxes
    expected = torch.tensor([eps, 1, eps, 1]) / (1 + eps)
    torch.testing.assert_close(boxes[0], expected.expand(2, 7, 4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("autocast", [True, False])
def test_boxes_stay_in_float32_in_half_precision(rng, pyramid, queries, autocast):
    decoder, (content, boxes) = _decoder(rng, norm=True, has_scale=True), queries
    if not autocast:
        decoder, content = decoder.bfloat16(), content.bfloat16()
        pyramid = pyramid._replace(features=pyramid.features.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = _decode(decoder, content, boxes, pyramid)
    assert {layer.dtype for layer in output.boxes} == {torch.float32}


def test_fixed_positions_are_refused_where_the_decoder_computes_them(rng, pyramid, queries):
    content, boxes = queries
    ratios = valid_ratios(pyramid.masks)
    with pytest.raises(ValueError, match="query_position is needed by a decoder without `position`"):
        _decoder(rng)(content, content, boxes, pyramid.features, SHAPES, ratios)
    without = DeformableDecoder([_layer()], [MLP(D_MODEL, D_MODEL, 4, 2)])
    with pytest.raises(ValueError, match="query_position is needed by a decoder without `position`"):
        without(content, None, boxes, pyramid.features, SHAPES, ratios)


def test_looking_forward_twice_needs_refinement():
    with pytest.raises(ValueError, match="look_forward_twice=True needs with_box_refine=True"):
        DeformableDecoder([_layer()], [MLP(D_MODEL, D_MODEL, 4, 2)], look_forward_twice=True)
