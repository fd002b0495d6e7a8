from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coco_files import coco_document, write_coco
from deformdetr.data import DataConfig, DatasetError, DecodeConfig, ObjectLimits, build_datasets, check, judge

Edit = Callable[[dict[str, Any]], Any]


def val_document() -> dict[str, Any]:
    """Return images of other names than those of training, so that nothing is warned of."""
    document = coco_document()
    for image in document["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    return document


def dataset(folder: Path, edit: Edit | None = None, **fields: Any) -> DataConfig:
    document = coco_document()
    if edit is not None:
        edit(document)
    return DataConfig(
        train_images=folder / "train",
        train_annotations=write_coco(folder / "train", document),
        val_images=folder / "val",
        val_annotations=write_coco(folder / "val", val_document()),
        **fields,
    )


def boxes(*values: list[float], **fields: Any) -> Edit:
    """Return an edit of all boxes. The first image is 20 pixels wide and 50 high, that of the others 40 and 30."""

    def edit(document: dict[str, Any]) -> None:
        for row, box in zip(document["annotations"], values, strict=True):
            row |= {"bbox": box, "area": None, **fields}

    return edit


def warned(config: DataConfig, **options: Any) -> str:
    """Return the only warning, which both the check and the start of a training must give."""
    (warning,) = check(config, **options).warnings
    assert judge(build_datasets(config), **options) == [warning]
    return warning


def test_a_plain_dataset_has_no_warnings(tmp_path: Path) -> None:
    report = check(dataset(tmp_path))
    assert report.warnings == ()
    assert "no warnings" in str(report)


def test_normalized_boxes(tmp_path: Path) -> None:
    config = dataset(tmp_path, boxes([0.5, 0.5, 0.2, 0.2], [0.1, 0.2, 0.3, 0.3], [3, 4, 5, 6]))
    warning = warned(config)
    assert warning.startswith("train: 2 of 3 boxes, the first in a.png, have only numbers from 0 to 1")
    assert f"warning: {warning}" in str(check(config))


def test_corners_written_as_width_and_height(tmp_path: Path) -> None:
    config = dataset(tmp_path, boxes([10, 10, 18, 40], [5, 6, 20, 25], [30, 20, 38, 28]))
    assert "3 of 3 boxes" not in (warning := warned(config))
    assert "2 of 3 boxes" in warning
    assert "corners written as width and height?" in warning


def test_boxes_beyond_their_images_without_that_pattern(tmp_path: Path) -> None:
    warning = warned(dataset(tmp_path, boxes([15, 10, 10, 20], [5, 6, 20, 10], [30, 20, 20, 8])))
    assert "2 of 3 boxes" in warning
    assert "more than 2 pixels beyond" in warning


def test_a_pixel_more_than_the_image_is_no_reason_to_warn(tmp_path: Path) -> None:
    assert check(dataset(tmp_path, boxes([0, 0, 21, 51], [-1, -1, 30, 31], [39, 29, 2, 2]))).warnings == ()


@pytest.mark.parametrize(("area", "count"), [(0, 3), (-0.0, 3), (10**6, 3), (150, 0)])
def test_areas_that_contradict_their_boxes(tmp_path: Path, area: float, count: int) -> None:
    config = dataset(tmp_path, boxes([1, 2, 10, 20], [5, 6, 10, 20], [0, 0, 10, 20], area=area))
    assert len(check(config).warnings) == bool(count)
    if count:
        assert f"{count} of 3 boxes, the first in a.png, have an area of 0 or one larger" in warned(config)


def test_more_objects_than_a_model_or_its_evaluation_can_find(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["annotations"] = [
            {"image_id": 7, "category_id": 4, "bbox": [x % 30, x // 30, 5, 5]} for x in range(150)
        ]
        document["annotations"].append({"image_id": 3, "category_id": 20, "bbox": [1, 1, 5, 5]})

    config = dataset(tmp_path, edit)
    evaluated = warned(config)
    assert evaluated == (
        "train: 1 times an image has more objects of one category than detections are evaluated (100): up to 150"
    )
    assert check(config, limits=ObjectLimits(150, 150, 150)).warnings == ()
    queries, kept = check(config, limits=ObjectLimits(12, 149, None)).warnings[:2]
    assert queries == "train: 1 images have more objects than the model has queries (12): up to 150"
    assert kept == "train: 1 images have more objects than detections are kept (149): up to 150"


def test_crowds_are_no_objects_to_find(tmp_path: Path) -> None:
    config = dataset(tmp_path, lambda document: document["annotations"][1].update(iscrowd=1, category_id=20))
    counted = ObjectLimits(num_queries=1)
    assert not [each for each in check(config, limits=counted).warnings if each.startswith("train: 1 images")]


def test_categories_of_one_name_or_without_boxes(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["categories"] += [{"id": 30, "name": "cat"}, {"id": 31, "name": "owl"}]

    config = dataset(tmp_path, edit, ignore_unknown_categories=True)
    shared, empty = check(config).warnings
    assert shared == "train: the name 'cat' belongs to categories 4, 30, which are trained as different ones"
    assert empty == "train: 2 of 4 categories have no boxes: cat, owl"


def test_two_entries_with_one_file(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["images"].append(document["images"][0] | {"id": 77})

    assert warned(dataset(tmp_path, edit)) == "train: 1 images have the file of another image"


def test_images_of_both_splits(tmp_path: Path) -> None:
    config = dataset(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "train")
    same = config.replace(val_images=tmp_path / "link", val_annotations=config.train_annotations)
    warning = warned(same)
    assert warning.startswith("3 of 3 evaluation images are training images too, the first: ")
    assert warning.endswith("a.png")
    copied = config.replace(
        val_images=tmp_path / "copy", val_annotations=write_coco(tmp_path / "copy", coco_document())
    )
    assert warned(copied) == "the evaluation images have the names and boxes of the training images: a copy?"


def test_images_of_another_depth(tmp_path: Path) -> None:
    config = dataset(tmp_path)
    Image.new("L", (20, 50)).save(config.train_images / "b.png")
    assert warned(config) == "train: images differ in their pixels: 2 color, 1 gray (b.png is gray); all become RGB"


@pytest.mark.parametrize(("bits", "rule"), [(None, "by the bits that it uses"), (12, "all as 12 bits")])
def test_deep_gray_is_said(tmp_path: Path, bits: int | None, rule: str) -> None:
    config = dataset(tmp_path, decode=DecodeConfig(gray_bits=bits))
    for name, size in {"a.png": (30, 40), "b.png": (50, 20), "c.png": (16, 16)}.items():
        Image.fromarray(np.full(size, 4095, np.uint16)).save(config.train_images / name)
    warning = warned(config)
    assert "3 of 3 images are 16-bit grayscale" in warning
    assert rule in warning


def test_orientation_tags_are_counted_with_what_the_sizes_tell(tmp_path: Path) -> None:
    config = dataset(tmp_path)
    for name, size, orientation in (("a.png", (30, 40), 6), ("c.png", (16, 16), 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(config.train_images / name, exif=exif)
    warning = warned(config)
    assert warning.startswith("train: 2 of 3 images have an EXIF orientation, the first being a.png, and are turned")
    assert "agrees for 1, and cannot tell for 1" in warning
    stored = config.replace(decode=DecodeConfig(orientation="stored"))
    for refuse in (check, lambda config: judge(build_datasets(config))):
        with pytest.raises(DatasetError, match=r"a\.png: .*set data\.decode\.orientation to upright"):
            refuse(stored)


def test_a_training_looks_at_a_sample_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deformdetr.data._check._SAMPLE", 2)
    config = dataset(tmp_path)
    for name in ("a.png", "c.png"):
        with Image.open(config.train_images / name) as image:
            image.convert("L").save(config.train_images / name)
    assert judge(build_datasets(config)) == []
    assert len(check(config).warnings) == 1


@pytest.mark.parametrize("is_crowd", [False, True])
def test_evaluation_without_boxes_is_warned_of(is_crowd: bool, tmp_path: Path) -> None:
    config = dataset(tmp_path)
    document = val_document()
    document["annotations"] = [{**each, "iscrowd": 1} for each in document["annotations"]] if is_crowd else []
    write_coco(tmp_path / "val", document)
    (warning,) = judge(build_datasets(config))
    assert warning.startswith("val: no box to evaluate")


def test_many_classes_are_shown_in_part(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["categories"] += [{"id": 100 + number, "name": f"class {number}"} for number in range(1200)]

    lines = str(check(dataset(tmp_path, edit, ignore_unknown_categories=True))).splitlines()
    assert [line.split() for line in lines[2:4]] == [["dog", "2", "2"], ["cat", "1", "1"]]
    assert lines[4] == "  ... and 1,200 classes with fewer boxes or none"
