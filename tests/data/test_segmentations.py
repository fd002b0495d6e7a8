"""Segmentations of every form compared with pycocotools, and the reasons for refusing one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from coco_files import coco_document, write_coco
from deformdetr.data import (
    AugmentConfig,
    DataConfig,
    ShapesConfig,
    build_dataset,
    build_datasets,
    check,
    make_sample,
    read_coco,
    split_sample,
    train_transforms,
    write_shapes,
)
from deformdetr.data._segmentations import Segmentations, decode, flaw
from deformdetr.evaluation import encode_masks

# The first image of the document is 40 pixels wide and 30 high.
HEIGHT, WIDTH = 30, 40
TRIANGLE = [3.0, 4.0, 30.0, 6.0, 12.0, 25.0]


def counts_of(mask: np.ndarray) -> list[int]:
    """Return the lengths of runs of 0 and 1 along the columns, starting with 0."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def encode(mask: np.ndarray) -> dict[str, Any]:
    return dict(encode_masks(torch.from_numpy(mask).bool()[None, None])[0])


def random_mask(rng: torch.Generator, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a random mask of a rectangle and single pixels."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    top, left = (int(torch.randint(side - 8, (), generator=rng)) for side in (height, width))
    mask[top : top + 8, left : left + 5] = 1
    noise = torch.rand(height, width, generator=rng) > 0.9
    return (mask ^ noise.to(torch.uint8)).numpy()


def test_all_three_forms_of_one_mask_decode_equally(rng: torch.Generator) -> None:
    for _ in range(20):
        mask = random_mask(rng)
        runs = {"size": [HEIGHT, WIDTH], "counts": counts_of(mask)}
        text = encode(mask)
        assert text["counts"] == coco_mask.frPyObjects(runs, HEIGHT, WIDTH)["counts"].decode()
        for form in (runs, text):
            assert flaw(form, HEIGHT, WIDTH) is None
            np.testing.assert_array_equal(decode(form, HEIGHT, WIDTH), mask)


# pycocotools' decoder warns with NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_decode_as_pycocotools_does_and_parts_are_one_object(rng: torch.Generator) -> None:
    for _ in range(20):
        polygons = [(torch.rand(2 * n, generator=rng) * 30).tolist() for n in (3, 7)]
        assert flaw(polygons, HEIGHT, WIDTH) is None
        parts = [coco_mask.decode(coco_mask.frPyObjects([each], HEIGHT, WIDTH))[..., 0] for each in polygons]
        np.testing.assert_array_equal(decode(polygons, HEIGHT, WIDTH), parts[0] | parts[1])


def test_a_rectangle_fills_its_pixels() -> None:
    mask = decode([[2.0, 3.0, 12.0, 3.0, 12.0, 8.0, 2.0, 8.0]], HEIGHT, WIDTH)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[3:8, 2:12] = 1
    np.testing.assert_array_equal(mask, expected)


FLAWED = [
    (None, "missing"),
    ([], "missing"),
    ({}, "missing"),
    ("abc", "neither polygons nor RLE"),
    (TRIANGLE, "neither polygons nor RLE"),
    ([TRIANGLE, 7], "neither polygons nor RLE"),
    ([[]], "polygon of fewer than three points"),
    ([[1, 2, 3, 4]], "polygon of fewer than three points"),
    ([TRIANGLE, [1, 2, 3, 4]], "polygon of fewer than three points"),
    ([[1, 2, 3, 4, 5, 6, 7]], "polygon that is not pairs of finite numbers"),
    ([[1, 2, 3, 4, 5, float("nan")]], "polygon that is not pairs of finite numbers"),
    ([[[1, 2], [3, 4], [5, 6], [1, 2], [3, 4], [5, 6]]], "polygon that is not pairs of finite numbers"),
    ([[1, 2, 3, 4, 5, "x"]], "polygon with values that are not numbers"),
    ([[1, 2, 3, 4, 5, [6]]], "polygon with values that are not numbers"),
    ([[1, 2, 3, 4, 5, 10**400]], "polygon with values that are not numbers"),
    ([[1, 2, 3, 4, 5, 1e12]], "polygon far outside its image"),
    ({"size": [WIDTH, HEIGHT], "counts": [1200]}, "RLE of a different size than the image"),
    ({"counts": [1200]}, "RLE of a different size than the image"),
    ({"size": [HEIGHT, WIDTH]}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": [600, 599]}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": [600, 601]}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": [1300, -100]}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": [600.0, 600.0]}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": "zz"}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": ""}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": "é5"}, "RLE with counts that do not fit its size"),
    ({"size": [HEIGHT, WIDTH], "counts": [1200]}, "RLE of an empty mask"),
    (encode(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)), "RLE of an empty mask"),
]


@pytest.mark.parametrize(("segmentation", "reason"), FLAWED)
def test_invalid_segmentations_are_reported_with_a_reason(segmentation: Any, reason: str) -> None:
    assert flaw(segmentation, HEIGHT, WIDTH) == reason


def test_truncated_counts_are_reported(rng: torch.Generator) -> None:
    form = encode(random_mask(rng))
    for length in range(len(form["counts"])):
        cut = {**form, "counts": form["counts"][:length]}
        assert flaw(cut, HEIGHT, WIDTH) == "RLE with counts that do not fit its size"


def test_packed_segmentations_are_unpacked_unchanged(rng: torch.Generator) -> None:
    given = [[TRIANGLE], encode(random_mask(rng)), {"size": [2, 2], "counts": [1, 3]}]
    packed = Segmentations.pack(given)
    assert [packed.of_box(index) for index in range(3)] == given
    assert len(Segmentations.pack([]).content) == 0


def document(*segmentations: Any, crowd: bool = False) -> dict[str, Any]:
    """Return the usual document with these segmentations, in order of its annotations. `...` omits one."""
    content = coco_document()
    for annotation, segmentation in zip(content["annotations"], segmentations, strict=True):
        if segmentation is not ...:
            annotation["segmentation"] = segmentation
    content["annotations"][1]["iscrowd"] = int(crowd)
    return content


# Of the second image, which is 20 pixels wide and 50 high, and of the first.
OTHER = [[1, 2, 11, 2, 11, 22, 1, 22]]
SQUARE = [[6, 6, 16, 6, 16, 18, 6, 18]]


def test_masks_match_the_boxes_of_their_image(tmp_path: Path, rng: torch.Generator) -> None:
    mask = random_mask(rng)
    annotations = read_coco(tmp_path, write_coco(tmp_path, document(OTHER, SQUARE, encode(mask))), masks=True)
    found = annotations.masks_of_image(0)
    assert found is not None
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [decode(SQUARE, 30, 40), mask])
    np.testing.assert_array_equal(annotations.masks_of_image(1), [decode(OTHER, 50, 20)])
    np.testing.assert_array_equal(annotations.masks_of_image(2), np.zeros((0, 16, 16)))
    assert [row["segmentation"] for row in annotations.to_coco()["annotations"]] == [SQUARE, encode(mask), OTHER]
    json.dumps(annotations.to_coco())


def test_segmentations_are_not_checked_unless_masks_are_read(tmp_path: Path) -> None:
    annotations = read_coco(tmp_path, write_coco(tmp_path, document("nonsense", ..., 3)))
    assert annotations.report.boxes == 3
    assert annotations.masks_of_image(0) is None
    assert not any("segmentation" in row for row in annotations.to_coco()["annotations"])


@pytest.mark.parametrize("flawed", [..., [], [[1, 2, 3, 4]], {"size": [1, 1], "counts": [1]}])
def test_a_box_without_a_mask_is_dropped_and_counted(tmp_path: Path, flawed: Any) -> None:
    path = write_coco(tmp_path, document(flawed, SQUARE, SQUARE))
    annotations = read_coco(tmp_path, path, masks=True)
    reason = flaw(None if flawed is ... else flawed, 50, 20)
    assert annotations.report.without_mask == {reason: 1}
    assert annotations.report.boxes == 2
    assert annotations.report.empty_images == 2
    assert annotations.of_image(1)[0].shape == (0, 4)
    assert len(annotations.to_coco()["annotations"]) == 2
    assert f"1 without a usable mask (dropped): 1 {reason}" in str(annotations.report)
    assert read_coco(tmp_path, path).report.boxes == 3


def test_a_crowd_has_a_mask_for_evaluation_only(tmp_path: Path, rng: torch.Generator) -> None:
    runs = {"size": [HEIGHT, WIDTH], "counts": counts_of(random_mask(rng))}
    path = write_coco(tmp_path, document(OTHER, runs, SQUARE, crowd=True))
    annotations = read_coco(tmp_path, path, masks=True)
    np.testing.assert_array_equal(annotations.masks_of_image(0), [decode(SQUARE, 30, 40)])
    assert [row["iscrowd"] for row in annotations.to_coco()["annotations"]] == [1, 0, 0]


def config(folder: Path) -> DataConfig:
    return DataConfig(
        train_images=folder,
        train_annotations=folder / "annotations.json",
        val_images=folder,
        val_annotations=folder / "annotations.json",
        # A crop may remove an object.
        augment=AugmentConfig(crop=False),
        eval_short_side=60,
    )


def test_one_option_adds_segmentations_to_targets(tmp_path: Path) -> None:
    write_coco(tmp_path, document(OTHER, SQUARE, ...))
    for split in ("train", "val"):
        dataset = build_dataset(config(tmp_path), split, masks=True)
        image, target = dataset[0]
        assert target["masks"].shape == (1, *image.shape[1:])
        assert target["masks"].dtype == torch.bool
        assert "masks" not in build_dataset(config(tmp_path), split)[0][1]
    plain, _ = build_datasets(config(tmp_path))
    assert "masks" not in plain.untransformed(0)[1]
    _, target = build_datasets(config(tmp_path), masks=True).val.untransformed(0)
    np.testing.assert_array_equal(target["masks"], [decode(SQUARE, 30, 40)])
    assert "1 without a usable mask" in str(check(config(tmp_path), masks=True))
    assert "mask" not in str(check(config(tmp_path)))


def _largest_around(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(mask[None].float(), 5, stride=1, padding=2)[0] > 0


def test_masks_stay_on_their_objects_through_augmentation(seed: int) -> None:
    augment = AugmentConfig(short_sides=(48, 80), crop=True, crop_resize=(90,), crop_min=40, crop_max=70)
    transform = train_transforms(augment, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    polygon = [[5, 5, 50, 10, 60, 45, 30, 20, 10, 52]]
    masks = torch.from_numpy(decode(polygon, 60, 70).copy())[None]
    boxes = torch.tensor([[5.0, 5, 60, 52], [62, 54, 69, 59]])
    masks = torch.cat([masks, torch.zeros_like(masks)])
    masks[1, 54:59, 62:69] = 1
    torch.manual_seed(seed)
    seen = 0
    for _ in range(30):
        sample = make_sample((masks.amax(0) * 255).expand(3, -1, -1), boxes, torch.tensor([0, 1]), masks)
        image, target = split_sample(transform(sample))
        assert target["masks"].shape == (len(target["labels"]), *image.shape[1:])
        assert target["masks"].dtype == torch.bool
        mask = target["masks"].any(0)
        differs = (image[0] > 0.5) != mask
        # Edges blur when they are resized, and an object cut down to a pixel or two is no target any more.
        is_edge = _largest_around(mask) & _largest_around(~mask)
        assert (differs & ~is_edge).float().mean() < 0.01
        seen += len(target["labels"])
    assert seen > 30


def test_shapes_have_the_masks_of_their_pixels(seed: int) -> None:
    data = ShapesConfig(seed=seed, num_train=30, num_val=1, min_objects=3, noise=0)
    dataset = build_dataset(data, "train", masks=True)
    for index in range(len(dataset)):
        picture, target = dataset.untransformed(index)
        assert target["masks"].sum(0).max() <= 1
        for mask in target["masks"]:
            assert mask.any()
            assert (picture[:, mask] == picture[:, mask][:, :1]).all()
    plain = build_dataset(data, "train")
    assert "masks" not in plain.untransformed(0)[1]
    np.testing.assert_array_equal(plain.annotations.boxes, dataset.annotations.boxes)


def test_written_shapes_are_read_with_the_same_masks(tmp_path: Path, seed: int) -> None:
    data = ShapesConfig(seed=seed, num_train=4, num_val=3, image_size=64)
    written = write_shapes(data, tmp_path / "shapes")
    for drawn, read in zip(build_datasets(data, masks=True), build_datasets(written, masks=True), strict=True):
        assert read.report.without_mask == {}
        assert read.coco_ground_truth().dataset == drawn.coco_ground_truth().dataset
        for index in range(len(drawn)):
            assert torch.equal(drawn.untransformed(index)[1]["masks"], read.untransformed(index)[1]["masks"])
