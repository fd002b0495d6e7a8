"""Layers of DETR; the whole published model is tested in `tests/models/test_goldens.py`."""

import math

import pytest
import torch
from torch import nn

from deformdetr.nn import (
    FeedForward,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)


def attention() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(16, 4, batch_first=True)


def encoder_layer() -> TransformerEncoderLayer:
    return TransformerEncoderLayer(attention(), FeedForward(16, 24))


def decoder_layer() -> TransformerDecoderLayer:
    return TransformerDecoderLayer(attention(), attention(), FeedForward(16, 24))


def test_padding_does_not_change_unpadded_pixels(rng):
    encoder = TransformerEncoder([encoder_layer(), encoder_layer()]).eval()
    decoder = TransformerDecoder([decoder_layer(), decoder_layer()], nn.LayerNorm(16)).eval()
    src, position = torch.randn(2, 12, 16, generator=rng), torch.randn(2, 12, 16, generator=rng)
    query, query_position = torch.randn(2, 5, 16, generator=rng), torch.randn(2, 5, 16, generator=rng)
    padding_mask = torch.zeros(2, 12, dtype=torch.bool)
    padding_mask[1, 7:] = True
    memory = encoder(src, position, padding_mask)
    outputs = decoder(query, query_position, memory, position, padding_mask)
    alone = encoder(src[1:, :7], position[1:, :7])
    outputs_alone = decoder(query[1:], query_position[1:], alone, position[1:, :7])
    torch.testing.assert_close(memory[1:, :7], alone)
    assert len(outputs) == 2
    for padded, expected in zip(outputs, outputs_alone, strict=True):
        torch.testing.assert_close(padded[1:], expected)


def test_decoder_normalizes_its_outputs_but_not_the_inputs_of_layers(rng):
    layers = [decoder_layer(), decoder_layer()]
    norm = nn.LayerNorm(16)
    nn.init.constant_(norm.bias, 3.0)
    decoder = TransformerDecoder(layers, norm).eval()
    inputs = [torch.randn(1, count, 16, generator=rng) for count in (5, 5, 9, 9)]
    first = layers[0](*inputs)
    second = layers[1](first, *inputs[1:])
    for output, hidden in zip(decoder(*inputs), (first, second), strict=True):
        torch.testing.assert_close(output, norm(hidden))


def test_positions_are_added_to_queries_and_keys_but_not_to_values(rng):
    layer = encoder_layer().eval()
    src, position = torch.randn(1, 6, 16, generator=rng), torch.randn(1, 6, 16, generator=rng)
    attended, _ = layer.self_attn(src + position, src + position, src)
    src_after = layer.self_attn_norm(src + attended)
    expected = layer.feed_forward_norm(src_after + layer.feed_forward(src_after))
    torch.testing.assert_close(layer(src, position), expected)


def test_projections_are_initialized_by_xavier():
    layer = decoder_layer()
    for projection, fans in (
        (layer.self_attn.in_proj_weight, 16 + 48),
        (layer.self_attn.out_proj.weight, 16 + 16),
        (layer.cross_attn.out_proj.weight, 16 + 16),
        (layer.feed_forward.linear1.weight, 16 + 24),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.9 * bound < projection.abs().max().item() <= bound


@pytest.mark.parametrize("name", ["self_attn", "cross_attn"])
def test_attention_that_is_not_batch_first_is_refused(name):
    layers = {"self_attn": attention(), "cross_attn": attention()} | {name: nn.MultiheadAttention(16, 4)}
    with pytest.raises(ValueError, match=f"{name} must be built with batch_first=True"):
        TransformerDecoderLayer(**layers, feed_forward=FeedForward(16, 24))
