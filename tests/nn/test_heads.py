import math

import pytest
import torch

from bounds import fills_uniform_bound
from deformdetr.nn import box_head, class_head, offset_boxes


def test_class_head_starts_at_the_published_bias():
    head = class_head(256, 91)
    torch.testing.assert_close(head.bias.detach(), torch.full((91,), -4.59512), rtol=0, atol=1e-5)
    assert fills_uniform_bound(head.weight, 1 / 16)
    assert head.weight.shape == (91, 256)


@pytest.mark.parametrize("prior", [0.01, 0.3, 0.5])
def test_class_head_gives_the_prior_to_a_query_of_zeros(prior):
    probabilities = class_head(8, 5, prior=prior)(torch.zeros(3, 8)).sigmoid()
    torch.testing.assert_close(probabilities, torch.full((3, 5), prior))


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.2, math.nan])
def test_class_head_refuses_priors_that_are_no_probabilities(prior):
    with pytest.raises(ValueError, match=rf"prior must lie in \(0, 1\), got {prior}"):
        class_head(8, 5, prior=prior)


@pytest.mark.parametrize("size_bias", [0.0, -2.0])
def test_box_head_starts_with_a_constant(rng, size_bias):
    head = box_head(256, size_bias=size_bias)
    assert [tuple(layer.weight.shape) for layer in head.layers] == [(256, 256), (256, 256), (4, 256)]
    assert not head.layers[-1].weight.any()
    assert head.layers[-1].bias.tolist() == [0, 0, size_bias, size_bias]
    for layer in head.layers[:2]:
        assert fills_uniform_bound(layer.weight, 1 / 16)
    output = head(torch.randn(7, 256, generator=rng))
    assert torch.equal(output, torch.tensor([0, 0, size_bias, size_bias]).expand(7, 4))


def test_box_head_starts_around_points_with_boxes_of_an_eighth_of_the_image(rng):
    points = torch.rand(2, 9, 2, generator=rng) * 0.98 + 0.01
    boxes = offset_boxes(points, box_head(8, size_bias=-2.0)(torch.randn(2, 9, 8, generator=rng)))
    torch.testing.assert_close(boxes[..., :2], points)
    torch.testing.assert_close(boxes[..., 2:], torch.full((2, 9, 2), 0.1192), rtol=0, atol=1e-4)


def test_box_head_learns_from_its_constant_start(rng):
    head = box_head(8)
    head(torch.randn(7, 8, generator=rng)).sum().backward()
    assert head.layers[-1].weight.grad.any()
