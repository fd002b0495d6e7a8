import pytest
import torch
from torch.nn import functional as F

from deformdetr._grids import image_grid, padding_to_multiple


def test_grid_of_an_unpadded_image_is_that_of_the_identity():
    expected = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 4, 6], align_corners=False)
    torch.testing.assert_close(image_grid(4, 6, torch.ones(2)), expected)


def test_grid_of_a_padded_image_reads_its_own_pixels(rng):
    image = torch.rand(1, 1, 4, 6, generator=rng)
    padded = F.pad(image, (0, 2, 0, 1))
    sampled = F.grid_sample(padded, image_grid(4, 6, torch.tensor([6 / 8, 4 / 5])), align_corners=False)
    torch.testing.assert_close(sampled, image)


@pytest.mark.parametrize(("size", "padding"), [(1, 6), (6, 1), (7, 0), (8, 6), (14, 0)])
def test_padding_lengthens_to_the_next_multiple(size, padding):
    assert padding_to_multiple(size, 7) == padding
