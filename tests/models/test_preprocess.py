"""What becomes of an image before a model sees it."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from deformdetr.models import IMAGENET_MEAN, IMAGENET_STD, normalize_image, prepare_image, resize_image, resized_size


def published_size(height: int, width: int, short_side: int, max_size: int | None) -> tuple[int, int]:
    """Return the size that DETR's transforms resize to, in exact arithmetic."""
    ratio = Fraction(max(height, width), min(height, width))
    side = short_side
    if max_size is not None and ratio * short_side > max_size:
        # Ties go to the even number, as Python rounds.
        side = round(max_size / ratio)
    heights, widths = (math.floor(Fraction(side * each, min(height, width))) for each in (height, width))
    return heights, widths


@pytest.mark.parametrize(("short_side", "max_size"), [(800, 1333), (480, 1333), (600, None), (48, 80)])
def test_sizes_are_those_of_the_published_recipe(short_side: int, max_size: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sides = [(1080, 1920), (1920, 1080), *((a, b) for a in range(300, 2000, 49) for b in range(301, 2000, 49))]
    sides += rng.integers(20, 4000, (1200, 2)).tolist()
    assert len(sides) > 2400
    for height, width in sides:
        expected = published_size(height, width, short_side, max_size)
        if min(expected) > 0:
            assert resized_size(height, width, short_side, max_size) == expected, (height, width)


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),
        ((427, 640), 480, 1333, (480, 719)),
        ((200, 640), 800, 1333, (417, 1334)),
        ((1080, 1920), 800, 1333, (750, 1333)),
        ((100, 1000), 800, None, (800, 8000)),
        ((500, 500), 600, 1333, (600, 600)),
        ((1, 5000), 800, 1333, (1, 5000)),
    ],
)
def test_sizes_worked_out_by_hand(
    size: tuple[int, int], short_side: int, max_size: int | None, expected: tuple[int, int]
) -> None:
    assert resized_size(*size, short_side, max_size) == expected
    assert resized_size(*reversed(size), short_side, max_size) == expected[::-1]


@pytest.mark.parametrize("size", [(48, 64), (31, 77), (200, 150)])
def test_uint8_images_are_resized_as_torchvision_does_and_pillow_but_for_a_unit(
    size: tuple[int, int], rng: torch.Generator
) -> None:
    image = torch.randint(0, 256, (3, 90, 120), generator=rng, dtype=torch.uint8)
    resized = resize_image(image, size)
    assert resized.dtype == torch.uint8
    torch.testing.assert_close(resized, F.resize(image, list(size), antialias=True), rtol=0, atol=1)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    difference = resized.int() - torch.from_numpy(np.array(pillow)).permute(2, 0, 1).int()
    assert int(difference.abs().max()) <= 1
    assert resize_image(image, (90, 120)) is image


def test_normalized_images_are_those_of_torchvision(rng: torch.Generator) -> None:
    image = torch.randint(0, 256, (3, 9, 12), generator=rng, dtype=torch.uint8)
    expected = F.normalize(image.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    for mean, std in ((IMAGENET_MEAN, IMAGENET_STD), (torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))):
        assert torch.equal(normalize_image(image, mean, std), expected)
        assert torch.equal(normalize_image(image.float() / 255, mean, std), expected)
    assert normalize_image(image.double() / 255, IMAGENET_MEAN, IMAGENET_STD).dtype == torch.float64


def test_floating_point_images_differ_by_the_rounding_to_8_bits_alone(rng: torch.Generator) -> None:
    image = torch.randint(0, 256, (3, 90, 120), generator=rng, dtype=torch.uint8)
    plain = {"short_side": 48, "max_size": 100, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    rounded, exact = prepare_image(image, **plain), prepare_image(image.float() / 255, **plain)
    assert rounded.shape == exact.shape == (3, 48, 64)
    # Half a unit, and what the CPU's integers lose.
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1.01 / 255)
    assert float((rounded - exact).abs().mean()) < 0.3 / 255


@pytest.mark.gpu
def test_uint8_images_on_a_gpu_differ_by_a_unit_at_most(rng: torch.Generator) -> None:
    image = torch.randint(0, 256, (3, 90, 120), generator=rng, dtype=torch.uint8)
    torch.testing.assert_close(
        resize_image(image.cuda(), (48, 64)).cpu(), resize_image(image, (48, 64)), rtol=0, atol=1
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_images_shrink_to_a_pixel(size: tuple[int, int]) -> None:
    image = torch.full((3, 64, 48), 7, dtype=torch.uint8)
    assert torch.equal(resize_image(image, size), torch.full((3, *size), 7, dtype=torch.uint8))
