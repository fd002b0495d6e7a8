import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import (
    MLP,
    DeformableDecoder,
    DeformableDecoderLayer,
    FeedForward,
    MSDeformAttn,
    box_head,
    offset_boxes,
    valid_ratios,
)
from pyramids import SHAPES, VALID, random_pyramid
from random_weights import shaken

D_MODEL = 16


def _layer(dropout=0.0, d_model=D_MODEL, d_ffn=32, n_heads=4):
    return DeformableDecoderLayer(
        nn.MultiheadAttention(d_model, n_heads, dropout=dropout, batch_first=True),
        MSDeformAttn(d_model, n_levels=3, n_heads=n_heads, n_points=2),
        FeedForward(d_model, d_ffn, dropout=dropout),
        dropout=dropout,
    )


def _decoder(rng, n_layers=3, n_heads=None, **settings):
    heads = [MLP(D_MODEL, D_MODEL, 4, 2) for _ in range(n_layers if n_heads is None else n_heads)]
    return shaken(DeformableDecoder([_layer() for _ in range(n_layers)], heads, **settings), rng)


def _queries(rng, count=7, coordinates=2):
    content, position = torch.randn(2, 2, count, D_MODEL, generator=rng)
    return content, position, torch.rand(2, count, coordinates, generator=rng) * 0.8 + 0.1


def _decode(decoder, queries, pyramid, attention_mask=None):
    ratios = valid_ratios(pyramid.masks)
    return decoder(*queries, pyramid.features, pyramid.spatial_shapes, ratios, pyramid.padding_mask, attention_mask)


def _multi_head_attention(attention, query, key, value, forbidden=None):
    """Compute plain attention of 4 heads, without dropout."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (4, -1)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, -torch.inf)
    return attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _norm(norm, x):
    return F.layer_norm(x, (D_MODEL,), norm.weight, norm.bias)


@pytest.mark.parametrize("masked", [True, False])
def test_layer_is_self_attention_then_cross_attention_then_feed_forward(rng, pyramid, masked):
    layer = shaken(_layer(), rng)
    query, position, _ = _queries(rng)
    reference = torch.rand(2, 7, 3, 2, generator=rng)
    forbidden = torch.rand(7, 7, generator=rng).fill_diagonal_(1) < 0.5 if masked else None
    memory, mask = pyramid.features, pyramid.padding_mask
    output = layer(query, position, reference, memory, SHAPES, mask, forbidden)

    asking = query + position
    x = query + _multi_head_attention(layer.self_attn, asking, asking, query, forbidden)
    x = _norm(layer.self_attn_norm, x)
    x = _norm(layer.cross_attn_norm, x + layer.cross_attn(x + position, reference, memory, SHAPES, None, mask))
    hidden = layer.feed_forward.linear2(layer.feed_forward.linear1(x).relu())
    torch.testing.assert_close(output, _norm(layer.feed_forward_norm, x + hidden), rtol=1e-5, atol=1e-5)


def test_dropout_drops_all_branches_in_training_only(rng, pyramid):
    layer = _layer(dropout=1.0)
    query, position, _ = _queries(rng)
    arguments = (query, position, torch.rand(2, 7, 3, 2, generator=rng), pyramid.features, SHAPES)
    expected = query
    for _ in range(3):
        expected = F.layer_norm(expected, (D_MODEL,))
    torch.testing.assert_close(layer(*arguments), expected)
    assert not torch.allclose(layer.eval()(*arguments), expected, atol=1e-2)


def test_self_attention_is_initialized_as_in_the_original():
    attention = _layer(d_model=256, n_heads=8).self_attn
    assert fills_uniform_bound(attention.in_proj_weight, 0.0765466)
    assert fills_uniform_bound(attention.out_proj.weight, 0.1082532)
    assert attention.out_proj.weight.abs().max() <= xavier_bound(256, 256)
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()


def test_masked_queries_do_not_influence_the_others(rng, pyramid):
    decoder, queries = _decoder(rng, with_box_refine=True), _queries(rng)
    # The last three queries form a group, like denoising queries.
    group = torch.arange(7) >= 4
    forbidden = group[:, None] != group
    content = torch.where(group[:, None], queries[0] + 1, queries[0])
    first = _decode(decoder, queries, pyramid, forbidden)
    second = _decode(decoder, (content, *queries[1:]), pyramid, forbidden)
    for name in ("hidden_states", "boxes"):
        for one, other in zip(getattr(first, name), getattr(second, name), strict=True):
            torch.testing.assert_close(one[:, ~group], other[:, ~group])
            assert not torch.allclose(one[:, group], other[:, group], atol=1e-3)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("with_box_refine", [True, False])
@pytest.mark.parametrize("n_heads", [1, 3])
def test_stack_moves_references_only_when_refining(rng, pyramid, coordinates, with_box_refine, n_heads):
    decoder = _decoder(rng, n_heads=n_heads, with_box_refine=with_box_refine)
    query, position, reference = _queries(rng, coordinates=coordinates)
    output = _decode(decoder, (query, position, reference), pyramid)
    ratios = valid_ratios(pyramid.masks)
    for index, layer in enumerate(decoder.layers):
        scale = ratios if reference.shape[-1] == 2 else torch.cat([ratios, ratios], dim=-1)
        on_levels = torch.stack([reference * scale[:, None, level] for level in range(3)], dim=2)
        query = layer(query, position, on_levels, pyramid.features, SHAPES, pyramid.padding_mask)
        deltas = decoder.box_heads[index if n_heads == 3 else 0](query)
        logits = torch.logit(reference)
        if reference.shape[-1] == 2:
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=-1)
        boxes = torch.sigmoid(deltas + logits)
        torch.testing.assert_close(output.hidden_states[index], query)
        torch.testing.assert_close(output.boxes[index], boxes)
        if with_box_refine:
            reference = boxes
    assert len(output.hidden_states) == len(output.boxes) == 3


def test_refined_references_are_detached(rng, pyramid):
    decoder = _decoder(rng, with_box_refine=True)
    output = _decode(decoder, _queries(rng), pyramid)
    output.boxes[-1].sum().backward()
    has_gradient = [all(p.grad is not None for p in head.parameters()) for head in decoder.box_heads]
    assert has_gradient == [False, False, True]


@pytest.mark.parametrize("with_box_refine", [True, False])
def test_every_parameter_has_a_gradient_from_all_layers_together(rng, pyramid, with_box_refine):
    decoder = _decoder(rng, with_box_refine=with_box_refine)
    output = _decode(decoder, _queries(rng), pyramid)
    sum(boxes.square().sum() for boxes in output.boxes).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_given_references_have_a_gradient(rng, pyramid):
    content, position, reference = _queries(rng)
    reference.requires_grad_()
    _decode(_decoder(rng), (content, position, reference), pyramid).boxes[-1].sum().backward()
    assert reference.grad.abs().min() > 0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_padded_memory_does_not_influence_queries(rng, pyramid, poison):
    decoder, queries = _decoder(rng, with_box_refine=True), _queries(rng)
    features = pyramid.features.masked_fill(pyramid.padding_mask[..., None], poison)
    poisoned = _decode(decoder, queries, pyramid._replace(features=features))
    for ours, expected in zip(poisoned.boxes, _decode(decoder, queries, pyramid).boxes, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_padded_image_gives_the_boxes_of_the_same_image_alone(rng, pyramid, coordinates):
    decoder, queries = _decoder(rng, with_box_refine=True), _queries(rng, coordinates=coordinates)
    valid = ~pyramid.padding_mask[1]
    alone = decoder(*(x[1:] for x in queries), pyramid.features[1:, valid], VALID[1], torch.ones(1, 3, 2))
    padded = _decode(decoder, queries, pyramid)
    for ours, expected in zip(padded.boxes, alone.boxes, strict=True):
        torch.testing.assert_close(ours[1:], expected, rtol=1e-4, atol=1e-5)


def test_order_of_queries_does_not_matter(rng, pyramid):
    decoder, queries = _decoder(rng, with_box_refine=True), _queries(rng)
    order = torch.randperm(7, generator=rng)
    shuffled = _decode(decoder, [x[:, order] for x in queries], pyramid)
    for ours, expected in zip(shuffled.boxes, _decode(decoder, queries, pyramid).boxes, strict=True):
        torch.testing.assert_close(ours, expected[:, order], rtol=1e-4, atol=1e-5)


def test_spatial_shapes_as_a_tensor_give_the_same(rng, pyramid):
    decoder, queries = _decoder(rng), _queries(rng)
    as_tensor = _decode(decoder, queries, pyramid._replace(spatial_shapes=torch.tensor(SHAPES)))
    assert torch.equal(as_tensor.boxes[-1], _decode(decoder, queries, pyramid).boxes[-1])


@pytest.mark.parametrize("autocast", [True, False])
def test_references_and_boxes_stay_in_float32_in_half_precision(rng, pyramid, autocast):
    decoder, (content, position, reference) = _decoder(rng, with_box_refine=True), _queries(rng)
    expected = _decode(decoder, (content, position, reference), pyramid)
    given = []
    for layer in decoder.layers:
        layer.cross_attn.register_forward_pre_hook(lambda module, arguments: given.append(arguments[1].dtype))
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            output = _decode(decoder, (content, position, reference), pyramid)
    else:
        halved = pyramid._replace(features=pyramid.features.bfloat16())
        output = _decode(decoder.bfloat16(), (content.bfloat16(), position.bfloat16(), reference), halved)
    assert given == [torch.float32] * 3
    for ours, full in zip(output.boxes, expected.boxes, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, full, rtol=0, atol=0.1)


def test_offset_boxes_moves_points_and_boxes_in_logit_space(rng):
    reference = torch.rand(2, 5, 4, generator=rng, dtype=torch.float64) * 0.9 + 0.05
    deltas = torch.randn(2, 5, 4, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(offset_boxes(reference, deltas), (torch.logit(reference) + deltas).sigmoid())
    from_points = offset_boxes(reference[..., :2], deltas)
    torch.testing.assert_close(from_points[..., :2], (torch.logit(reference[..., :2]) + deltas[..., :2]).sigmoid())
    torch.testing.assert_close(from_points[..., 2:], deltas[..., 2:].sigmoid())


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("reference_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("deltas_dtype", [torch.float32, torch.bfloat16])
def test_offset_boxes_has_at_least_float32_precision(rng, coordinates, reference_dtype, deltas_dtype):
    reference = (torch.rand(2, 5, coordinates, generator=rng) * 0.9 + 0.05).to(reference_dtype)
    deltas = torch.randn(2, 5, 4, generator=rng).to(deltas_dtype)
    boxes = offset_boxes(reference, deltas)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes.double(), offset_boxes(reference.double(), deltas.double()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_offset_boxes_keeps_references_at_the_edge_finite(edge):
    reference = torch.full((1, 1, 4), edge, requires_grad=True)
    deltas = torch.zeros(1, 1, 4, requires_grad=True)
    boxes = offset_boxes(reference, deltas)
    boxes.sum().backward()
    torch.testing.assert_close(boxes.detach(), reference.detach(), rtol=0, atol=1.1e-5)
    assert reference.grad.isfinite().all()
    assert deltas.grad.isfinite().all()


def test_self_attention_that_is_not_batch_first_is_refused():
    with pytest.raises(ValueError, match="batch_first=True"):
        DeformableDecoderLayer(nn.MultiheadAttention(8, 2), MSDeformAttn(8, 1, 2, 1), FeedForward(8, 8))


def test_attentions_of_different_channels_are_refused():
    self_attn = nn.MultiheadAttention(16, 2, batch_first=True)
    with pytest.raises(ValueError, match="self_attn has 16 channels, but cross_attn has 8"):
        DeformableDecoderLayer(self_attn, MSDeformAttn(8, 1, 2, 1), FeedForward(8, 8))


@pytest.mark.parametrize("n_heads", [0, 2, 4])
def test_another_number_of_box_heads_is_refused(n_heads):
    with pytest.raises(ValueError, match=f"one for each of 3 layers; got {n_heads}"):
        DeformableDecoder([_layer() for _ in range(3)], [box_head(D_MODEL) for _ in range(n_heads)])


@pytest.mark.compile
def test_compiled_decoder_trains_on_new_sizes_without_recompiling(rng):
    torch.compiler.reset()
    decoder = _decoder(rng, 2, with_box_refine=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(decoder, fullgraph=True, backend=counter)
    for index, (height, width) in enumerate([(9, 12), (13, 10), (16, 21)]):
        shapes = [(height, width), (height // 2, width // 2), (height // 3, width // 3)]
        pyramid, queries = random_pyramid(rng, D_MODEL, [shapes] * 2, shapes), _queries(rng)
        if index == 2:
            compilations = counter.frame_count
        results = []
        for module in (compiled, decoder):
            boxes = _decode(module, queries, pyramid).boxes
            loss = sum(layer.square().mean() for layer in boxes)
            results.append([*boxes, *torch.autograd.grad(loss, list(decoder.parameters()))])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == compilations <= 2
