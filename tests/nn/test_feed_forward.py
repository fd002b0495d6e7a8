import math

import pytest
import torch
from torch import nn

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import MLP, FeedForward


def test_feed_forward_expands_activates_and_contracts(rng):
    layer = FeedForward(6, 10).eval()
    x = torch.randn(2, 3, 6, generator=rng)
    hidden = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    torch.testing.assert_close(layer(x), hidden @ layer.linear2.weight.T + layer.linear2.bias)


def test_feed_forward_uses_the_given_activation(rng):
    layer = FeedForward(6, 10, activation=nn.Tanh()).eval()
    x = torch.randn(5, 6, generator=rng)
    torch.testing.assert_close(layer(x), layer.linear2(layer.linear1(x).tanh()))


def test_feed_forward_drops_hidden_activations_in_training_only(rng):
    layer = FeedForward(6, 10, dropout=1.0)
    x = torch.randn(5, 6, generator=rng)
    torch.testing.assert_close(layer(x), layer.linear2.bias.expand(5, 6))
    assert not torch.allclose(layer.eval()(x), layer.linear2.bias.expand(5, 6))


def test_feed_forward_weights_are_xavier_and_biases_are_pytorchs():
    layer = FeedForward(256, 1024)
    for linear in (layer.linear1, layer.linear2):
        assert fills_uniform_bound(linear.weight, xavier_bound(256, 1024))
        assert fills_uniform_bound(linear.bias, 1 / math.sqrt(linear.in_features))


@pytest.mark.parametrize(
    ("n_layers", "widths"), [(1, [(6, 4)]), (2, [(6, 10), (10, 4)]), (3, [(6, 10), (10, 10), (10, 4)])]
)
def test_mlp_has_relu_between_its_layers_only(rng, n_layers, widths):
    mlp = MLP(6, 10, 4, n_layers)
    assert [(layer.in_features, layer.out_features) for layer in mlp.layers] == widths
    x = torch.randn(50, 6, generator=rng)
    expected = x
    for index, layer in enumerate(mlp.layers):
        expected = expected @ layer.weight.T + layer.bias
        if index < n_layers - 1:
            expected = expected.clamp(min=0)
    torch.testing.assert_close(mlp(x), expected)
    assert (mlp(x) < 0).any()


def test_mlp_keeps_pytorchs_initialization():
    for layer in MLP(256, 256, 256, 3).layers:
        assert fills_uniform_bound(layer.weight, 1 / 16)
        assert fills_uniform_bound(layer.bias, 1 / 16)


def test_mlp_parameters_have_the_original_names():
    names = {name for name, _ in MLP(6, 10, 4, 2).named_parameters()}
    assert names == {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"}


def test_mlp_without_layers_is_refused():
    with pytest.raises(ValueError, match="n_layers must be at least 1, got 0"):
        MLP(6, 10, 4, 0)
