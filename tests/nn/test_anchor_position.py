"""Position encodings of queries that are boxes."""

import math

import pytest
import torch

from bounds import fills_uniform_bound, xavier_bound
from deformdetr.nn import AnchorPosition

D_MODEL = 16


def test_position_is_an_mlp_of_the_sines_of_y_x_width_and_height(rng):
    module = AnchorPosition(D_MODEL, has_scale=True)
    boxes, content = torch.rand(2, 3, 4, generator=rng), torch.randn(2, 3, D_MODEL, generator=rng)
    for image in range(2):
        for query in range(3):
            x, y, width, height = boxes[image, query].tolist()
            sines = []
            for number in (y, x, width, height):
                for i in range(0, D_MODEL // 2, 2):
                    angle = 2 * math.pi * number / 10000 ** (i / (D_MODEL // 2))
                    sines += [math.sin(angle), math.cos(angle)]
            first, second = module.encoding.layers
            expected = second(first(torch.tensor(sines)).relu())
            torch.testing.assert_close(module(boxes)[image, query], expected, rtol=1e-4, atol=1e-5)
            first, second = module.scale.layers
            expected = expected * second(first(content[image, query]).relu())
            torch.testing.assert_close(module(boxes, content)[image, query], expected, rtol=1e-4, atol=1e-5)


def test_position_is_initialized_by_xavier_and_needs_a_multiple_of_four_channels():
    module = AnchorPosition(64)
    assert module.scale is None
    assert fills_uniform_bound(module.encoding.layers[0].weight, xavier_bound(128, 64))
    with pytest.raises(ValueError, match="d_model must be a multiple of 4, got 10"):
        AnchorPosition(10)
