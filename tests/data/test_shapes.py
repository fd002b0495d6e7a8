from pathlib import Path

import numpy as np
import torch

from deformdetr.data import ShapesConfig, build_datasets, check, draw_shapes, write_shapes


def test_the_seed_determines_the_images(seed: int) -> None:
    config = ShapesConfig(seed=seed, num_train=6)
    annotations, pictures = draw_shapes(config, "train")
    again, same = draw_shapes(config, "train")
    assert torch.equal(pictures, same)
    np.testing.assert_array_equal(annotations.boxes, again.boxes)
    _, other = draw_shapes(config.replace(seed=seed + 1), "train")
    assert not torch.equal(pictures, other)


def test_an_image_does_not_depend_on_their_number() -> None:
    _, few = draw_shapes(ShapesConfig(num_train=3), "train")
    _, many = draw_shapes(ShapesConfig(num_train=5), "train")
    assert torch.equal(few, many[:3])


def test_splits_differ() -> None:
    config = ShapesConfig(num_train=4, num_val=4)
    assert not torch.equal(draw_shapes(config, "train")[1], draw_shapes(config, "val")[1])


def test_boxes_are_tight_around_the_drawn_pixels() -> None:
    config = ShapesConfig(num_train=40, max_objects=1, noise=0)
    annotations, pictures = draw_shapes(config, "train")
    for index, picture in enumerate(pictures):
        boxes, _ = annotations.of_image(index)
        left, top, right, bottom = boxes[0].astype(int).tolist()
        # The shape is drawn last and in one color, which the background hardly ever repeats.
        color = picture[:, (top + bottom) // 2, (left + right) // 2]
        same = (picture == color[:, None, None]).all(dim=0)
        rows, columns = same.nonzero(as_tuple=True)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)


def test_boxes_lie_inside_with_sizes_as_configured(seed: int) -> None:
    config = ShapesConfig(seed=seed, num_train=60, min_size=0.2, max_size=0.5)
    annotations, _ = draw_shapes(config, "train")
    longer = (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).max(axis=1)
    assert annotations.boxes.min() >= 0
    assert annotations.boxes.max() <= 128
    assert longer.min() >= 0.2 * 128 - 1
    assert longer.max() <= 0.5 * 128 + 2


def test_there_are_small_medium_and_large_shapes_of_every_class() -> None:
    annotations, _ = draw_shapes(ShapesConfig(), "val")
    areas = annotations.areas
    assert min((areas < 32**2).sum(), ((areas > 32**2) & (areas < 96**2)).sum(), (areas > 96**2).sum()) >= 10
    assert np.bincount(annotations.labels).min() > 100


def test_shapes_hardly_overlap() -> None:
    annotations, _ = draw_shapes(ShapesConfig(num_train=60, max_objects=8, min_objects=8), "train")
    for index in range(60):
        boxes, _ = annotations.of_image(index)
        assert len(boxes) >= 1
        sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        common = sides.clip(0).prod(axis=-1)
        own = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
        share = common / np.minimum(own[:, None], own[None])
        np.fill_diagonal(share, 0)
        # Placement looks at exact outlines, boxes at whole pixels.
        assert share.max() < 0.4


def test_images_without_shapes_are_possible() -> None:
    config = ShapesConfig(num_train=30, min_objects=0, max_objects=1)
    annotations, _ = draw_shapes(config, "train")
    assert 0 < annotations.report.empty_images < 30


def test_written_files_are_read_as_the_same_dataset(tmp_path: Path, seed: int) -> None:
    config = ShapesConfig(seed=seed, num_train=5, num_val=3, image_size=64)
    written = write_shapes(config, tmp_path / "shapes")
    assert check(written, decode=True).decoded == 8
    for drawn, read in zip(build_datasets(config), build_datasets(written), strict=True):
        assert read.label_map == drawn.label_map
        assert read.coco_ground_truth().dataset == drawn.coco_ground_truth().dataset
        for index in range(len(drawn)):
            (image, target), (same, same_target) = drawn.untransformed(index), read.untransformed(index)
            assert torch.equal(image, same)
            assert torch.equal(target["boxes"], same_target["boxes"])
            assert target["image_id"] == same_target["image_id"]


def test_drawn_datasets_have_the_interface_of_files() -> None:
    train, val = build_datasets(ShapesConfig(num_train=4, num_val=2))
    image, target = train[0]
    assert image.shape == (3, 128, 128)
    assert target["orig_size"].tolist() == target["size"].tolist() == [128, 128]
    assert sorted(val.coco_ground_truth().getImgIds()) == [1, 2]
    assert "circle" in train.summary()
