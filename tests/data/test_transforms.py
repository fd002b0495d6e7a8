import itertools

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from deformdetr.boxes import cxcywh_to_xyxy
from deformdetr.data import (
    AugmentConfig,
    ColorConfig,
    RandomSizeCrop,
    ResizeShortSide,
    Sample,
    ZoomOutConfig,
    eval_transforms,
    make_sample,
    split_sample,
    train_transforms,
)

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def bright_rectangles(corners: list[tuple[int, int, int, int]], height: int, width: int) -> Sample:
    """Return a black image with rectangle i drawn in channel i, so that boxes can be found in the pixels."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (left, top, right, bottom) in enumerate(corners):
        image[channel, top:bottom, left:right] = 255
    return make_sample(image, torch.tensor(corners, dtype=torch.float32).reshape(-1, 4), torch.arange(len(corners)))


def found_in_pixels(image: torch.Tensor, channel: int) -> torch.Tensor | None:
    """Return the corners of the bright pixels of a channel."""
    rows, columns = (torch.nonzero(image[channel].float().amax(axis) > image.max() / 2) for axis in (1, 0))
    if not len(rows):
        return None
    return torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()


def test_boxes_follow_their_pixels_through_a_resize() -> None:
    sample = ResizeShortSide([90])(bright_rectangles([(5, 6, 20, 26), (0, 0, 40, 30)], 30, 40))
    assert sample["image"].shape == (3, 90, 120)
    for channel, corners in enumerate(sample["boxes"]):
        torch.testing.assert_close(corners.as_subclass(torch.Tensor), found_in_pixels(sample["image"], channel))


def test_every_short_side_is_drawn() -> None:
    resize = ResizeShortSide([20, 30, 40])
    sample = bright_rectangles([], 10, 10)
    assert {resize(sample)["image"].shape[-1] for _ in range(60)} == {20, 30, 40}


def test_a_crop_keeps_boxes_on_their_pixels_and_drops_those_cut_away() -> None:
    whole = bright_rectangles([(2, 3, 9, 8), (20, 10, 30, 28), (35, 25, 40, 30)], 30, 40)
    crop = RandomSizeCrop(8, 25)
    counts = set()
    for _ in range(200):
        sample = crop(whole)
        visible = [channel for channel in range(3) if found_in_pixels(sample["image"], channel) is not None]
        assert sample["labels"].tolist() == visible
        for corners, channel in zip(sample["boxes"].as_subclass(torch.Tensor), visible, strict=True):
            torch.testing.assert_close(corners, found_in_pixels(sample["image"], channel))
        counts.add(len(visible))
        assert all(8 <= side <= 25 for side in sample["image"].shape[1:])
        assert sample["boxes"].canvas_size == tuple(sample["image"].shape[1:])
    assert len(counts) > 1


def test_crop_sides_reach_both_limits_and_never_exceed_the_image() -> None:
    crop = RandomSizeCrop(4, 6)
    sample = bright_rectangles([], 5, 40)
    sizes = [crop(sample)["image"].shape for _ in range(200)]
    assert {shape[1] for shape in sizes} == {4, 5}
    assert {shape[2] for shape in sizes} == {4, 5, 6}
    assert crop(bright_rectangles([], 2, 3))["image"].shape == (3, 2, 3)


def test_the_training_recipe_keeps_boxes_on_their_pixels() -> None:
    augment = AugmentConfig(short_sides=(64, 96), max_size=160, crop_resize=(48, 56), crop_min=30, crop_max=44)
    transform = train_transforms(augment, *PLAIN)
    whole = bright_rectangles([(4, 6, 20, 18), (12, 14, 34, 44)], 48, 60)
    flips = 0
    for _ in range(60):
        image, target = split_sample(transform(whole))
        height, width = target["size"].tolist()
        assert min(height, width) in (64, 96)
        corners = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        for label, box in zip(target["labels"].tolist(), corners, strict=True):
            seen = found_in_pixels(image, label)
            if seen is None:
                # Boxes narrower than a pixel are too dark to be found.
                assert (box[2:] - box[:2]).min() < 4
            else:
                torch.testing.assert_close(box, seen, atol=4, rtol=0)
        assert image.dtype == torch.float32
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        first, second = (found_in_pixels(image, channel) for channel in (0, 1))
        flips += first is not None and second is not None and bool(first[0] > second[0])
    assert 2 < flips < 58


def test_boxes_are_float32_fractions_of_the_transformed_image() -> None:
    sample = bright_rectangles([(10, 6, 30, 12)], 24, 40)
    _, target = split_sample(eval_transforms(48, 100, *PLAIN)(sample))
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.5, 9 / 24, 0.5, 0.25]]))
    assert target["boxes"].dtype == torch.float32
    assert type(target["boxes"]) is torch.Tensor
    assert target["size"].tolist() == [48, 80]


def test_evaluation_without_a_short_side_keeps_the_size_and_normalizes() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    sample = bright_rectangles([(0, 0, 4, 5)], 5, 8)
    image, _ = split_sample(eval_transforms(None, 1333, mean, std)(sample))
    expected = (sample["image"].float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(image, expected.as_subclass(torch.Tensor))
    assert type(image) is torch.Tensor


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(short_sides=(), crop=False)])
def test_an_image_without_boxes_is_transformed(augment: AugmentConfig) -> None:
    transform = train_transforms(augment, *PLAIN)
    for _ in range(6):
        image, target = split_sample(transform(bright_rectangles([], 60, 50)))
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert image.shape[0] == 3


def test_without_crop_and_sizes_an_image_is_only_flipped(rng: torch.Generator) -> None:
    image = torch.randint(256, (3, 8, 9), generator=rng, dtype=torch.uint8)
    sample = make_sample(image, torch.tensor([[1.0, 2, 4, 7]]), torch.tensor([0]))
    transform = train_transforms(AugmentConfig(flip=1, short_sides=(), crop=False), *PLAIN)
    flipped, target = split_sample(transform(sample))
    torch.testing.assert_close(flipped, F.to_dtype(image.flip(2), torch.float32, scale=True))
    torch.testing.assert_close(target["boxes"][0, 0], torch.tensor(1 - 2.5 / 9))


UNTOUCHED = {"short_sides": (), "crop": False, "flip": 0.0}


def test_zooming_out_keeps_boxes_and_masks_on_their_pixels_and_fills_with_the_mean() -> None:
    augment = AugmentConfig(**UNTOUCHED, zoom_out=ZoomOutConfig(probability=0.5, max_side=3))
    transform = train_transforms(augment, (0.4, 0.3, 0.2), (1.0, 1.0, 1.0))
    whole = bright_rectangles([(4, 6, 20, 18), (12, 14, 34, 44)], 48, 60)
    whole["masks"] = tv_tensors.Mask((whole["image"][:2] > 0).to(torch.uint8))
    sizes = set()
    for _ in range(30):
        image, target = split_sample(transform(whole))
        height, width = target["size"].tolist()
        sizes.add((height, width))
        corners = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        for channel, box in enumerate(corners):
            bright = image + torch.tensor([0.4, 0.3, 0.2]).view(3, 1, 1)
            torch.testing.assert_close(box, found_in_pixels(bright, channel), atol=1e-3, rtol=0)
            torch.testing.assert_close(box, found_in_pixels(target["masks"].float(), channel), atol=1e-3, rtol=0)
        # The canvas has the mean color, which normalizes to 0.
        assert (image.abs().amax(0) < 3e-3).sum() == height * width - 48 * 60
    assert (48, 60) in sizes
    assert len(sizes) > 5
    assert max(sizes)[0] <= 3 * 48


def test_colors_change_within_their_limits_and_boxes_stay() -> None:
    color = ColorConfig(probability=1, brightness=(0.5, 0.5), contrast=(1, 1), saturation=(1, 1), hue=0)
    transform = train_transforms(AugmentConfig(**UNTOUCHED, color=color), *PLAIN)
    sample = bright_rectangles([(4, 6, 20, 18), (12, 14, 34, 44)], 48, 60)
    orders = set()
    for _ in range(30):
        image, target = split_sample(transform(sample))
        torch.testing.assert_close(image.max(), torch.tensor(127 / 255), atol=1e-2, rtol=0)
        # Its channels are in another order.
        (order,) = [
            order
            for order in itertools.permutations(range(3))
            if torch.equal(image > 0.25, (sample["image"].as_subclass(torch.Tensor) > 0)[list(order)])
        ]
        orders.add(order)
        expected = torch.tensor([4 / 60, 6 / 48, 20 / 60, 18 / 48])
        torch.testing.assert_close(cxcywh_to_xyxy(target["boxes"])[0], expected)
    assert len(orders) > 2


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_vertical_flip_has_its_probability(probability: float, rng: torch.Generator) -> None:
    image = torch.randint(256, (3, 8, 9), generator=rng, dtype=torch.uint8)
    sample = make_sample(image, torch.tensor([[1.0, 2, 4, 7]]), torch.tensor([0]))
    transform = train_transforms(AugmentConfig(**UNTOUCHED, vertical_flip=probability), *PLAIN)
    flipped, target = split_sample(transform(sample))
    expected = image.flip(1) if probability else image
    torch.testing.assert_close(flipped, F.to_dtype(expected, torch.float32, scale=True))
    center = 4.5 / 8
    torch.testing.assert_close(target["boxes"][0, 1], torch.tensor(1 - center if probability else center))


def test_empty_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        ResizeShortSide([])
    with pytest.raises(ValueError, match=r"7.*6"):
        RandomSizeCrop(7, 6)
