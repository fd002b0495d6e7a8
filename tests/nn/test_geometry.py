import math

import pytest
import torch

from deformdetr.nn import pixel_centers, valid_ratios
from goldens import load_golden
from pyramids import masks_of

SHAPES = [(6, 9), (3, 5), (2, 3)]
# (height, width) of the valid part, by image and level.
VALID = [[(6, 9), (3, 5), (2, 3)], [(4, 7), (2, 4), (2, 2)], [(1, 2), (1, 1), (1, 1)]]
PARTS = load_golden("parts").arrays
GOLDEN_MASKS = [torch.from_numpy(PARTS[f"transformer/mask{level}"]) for level in range(3)]
GOLDEN_SHAPES = [(8, 10), (4, 5), (2, 3)]


def test_valid_ratios_are_the_golden_ones():
    assert torch.equal(valid_ratios(GOLDEN_MASKS), torch.from_numpy(PARTS["transformer/valid_ratios"]))


def test_pixel_centers_are_the_golden_reference_points():
    centers = pixel_centers(GOLDEN_SHAPES, torch.from_numpy(PARTS["transformer/valid_ratios"]))
    torch.testing.assert_close(centers, torch.from_numpy(PARTS["transformer/reference_points"]), rtol=0, atol=2e-7)


def test_valid_ratios_are_shares_of_width_and_height():
    expected = [
        [(w / width, h / height) for (h, w), (height, width) in zip(image, SHAPES, strict=True)] for image in VALID
    ]
    torch.testing.assert_close(valid_ratios(masks_of(VALID, SHAPES)), torch.tensor(expected))


def test_pixel_centers_agree_with_loops_over_pixels_and_levels():
    centers = pixel_centers(SHAPES, valid_ratios(masks_of(VALID, SHAPES)))
    for image, sizes in enumerate(VALID):
        place = 0
        for (height, width), (valid_height, valid_width) in zip(SHAPES, sizes, strict=True):
            for y in range(height):
                for x in range(width):
                    for level, (level_height, level_width) in enumerate(SHAPES):
                        share_x = sizes[level][1] / level_width
                        share_y = sizes[level][0] / level_height
                        expected = [(x + 0.5) / valid_width * share_x, (y + 0.5) / valid_height * share_y]
                        assert centers[image, place, level].tolist() == pytest.approx(expected, rel=1e-6)
                    place += 1
        assert place == centers.shape[1]


def test_pixel_centers_without_padding_are_the_same_on_every_level():
    centers = pixel_centers(SHAPES, torch.ones(2, 3, 2))
    assert torch.equal(centers, centers[:1, :, :1].expand_as(centers))
    assert centers.min() > 0
    assert centers.max() < 1


def test_geometry_stays_in_float32_under_autocast():
    ratios = valid_ratios(masks_of(VALID, SHAPES))
    expected = pixel_centers(SHAPES, ratios)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(valid_ratios(masks_of(VALID, SHAPES)), ratios)
        assert torch.equal(pixel_centers(SHAPES, ratios), expected)
    assert (ratios.dtype, expected.dtype) == (torch.float32, torch.float32)


def test_centers_of_a_wide_level_are_told_apart():
    centers = pixel_centers([(1, 4001)], torch.ones(1, 1, 2))[0, :, 0, 0]
    expected = torch.tensor([(x + 0.5) / 4001 for x in range(4001)], dtype=torch.float64)
    torch.testing.assert_close(centers.double(), expected, rtol=0, atol=2**-23)
    assert math.isclose(centers[-1].item(), 1 - 0.5 / 4001, abs_tol=1e-6)
