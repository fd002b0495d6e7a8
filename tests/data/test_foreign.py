"""Datasets of YOLO and Pascal VOC, in the layouts of several tools."""

import json
from pathlib import Path
from typing import Any

import pytest

from deformdetr.data import DatasetError, ForeignDataset, read_coco, read_voc, read_yolo, write_documents
from foreign_datasets import (
    CAT_PIXELS,
    DOG_PIXELS,
    Write,
    picture,
    put,
    voc_cvat,
    voc_devkit,
    voc_labelimg,
    voc_roboflow,
    yolo_cvat,
    yolo_label_studio,
    yolo_roboflow,
    yolo_ultralytics,
)


def check_document(dataset: ForeignDataset, split: str, offset: float = 0) -> None:
    document = dataset.documents[split]
    assert [category["name"] for category in document["categories"]] == ["cat", "dog"]
    (image,) = document["images"]
    assert (image["width"], image["height"]) == (80, 40)
    assert (dataset.root / image["file_name"]).is_file()
    names = {category["id"]: category["name"] for category in document["categories"]}
    found = {names[row["category_id"]]: row["bbox"] for row in document["annotations"]}
    moved = {"cat": CAT_PIXELS, "dog": DOG_PIXELS}
    assert found == {name: [x + offset, y + offset, w, h] for name, (x, y, w, h) in moved.items()}


@pytest.mark.parametrize(
    ("write", "splits"),
    [
        (yolo_roboflow, ["train", "val"]),
        (yolo_ultralytics, ["train", "val"]),
        (yolo_cvat, ["train", "valid"]),
        (yolo_label_studio, ["all"]),
    ],
)
def test_layouts_of_yolo(tmp_path: Path, write: Write, splits: list[str]) -> None:
    write(tmp_path)
    dataset = read_yolo(tmp_path)
    assert list(dataset.documents) == splits
    for split in splits:
        check_document(dataset, split)


@pytest.mark.parametrize(
    ("write", "splits", "offset"),
    [
        (voc_devkit, ["train", "val"], 0),
        (voc_roboflow, ["train", "valid"], 0),
        (voc_cvat, ["train", "val"], 0.5),
        (voc_labelimg, ["all"], 0),
    ],
)
def test_layouts_of_pascal_voc(tmp_path: Path, write: Write, splits: list[str], offset: float) -> None:
    write(tmp_path)
    dataset = read_voc(tmp_path)
    assert list(dataset.documents) == splits
    for split in splits:
        check_document(dataset, split, offset)


def test_what_was_decided_and_left_out_is_noted(tmp_path: Path) -> None:
    yolo_roboflow(tmp_path / "yolo")
    picture(tmp_path / "yolo" / "train" / "images" / "background.jpg")
    assert read_yolo(tmp_path / "yolo").notes == [
        "1 images without a text file, which have no objects",
        "1 folders or lists of images that do not exist (test: ../test/images)",
    ]
    voc_labelimg(tmp_path / "voc")
    assert read_voc(tmp_path / "voc").notes == [
        "1 images without an XML file, left out",
        "coordinates are read as counted from 1",
    ]


def test_the_first_pixel_can_be_given(tmp_path: Path) -> None:
    voc_labelimg(tmp_path)
    document = read_voc(tmp_path, first_pixel=0).documents["all"]
    assert document["annotations"][0]["bbox"] == [11, 11, 19, 19]


def test_polygons_become_segmentations_with_their_own_area(tmp_path: Path) -> None:
    yolo_label_studio(tmp_path)
    put(tmp_path / "labels" / "a.txt", "1 0.1 0.1 0.6 0.1 0.1 0.6 0.97\n0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n")
    triangle, square = read_yolo(tmp_path).documents["all"]["annotations"]
    assert triangle["bbox"] == square["bbox"] == [8, 4, 40, 20]
    assert triangle["segmentation"] == [[8, 4, 48, 4, 8, 24]]
    assert (triangle["area"], square["area"]) == (400, 800)


def test_keypoints_are_left_out(tmp_path: Path) -> None:
    yolo_ultralytics(tmp_path)
    path = tmp_path / "pets.yaml"
    path.write_text(path.read_text() + "kpt_shape: [2, 3]\n")
    put(tmp_path / "labels" / "train" / "sub" / "a.txt", "0 0.25 0.5 0.25 0.5 0.2 0.4 2 0.3 0.6 2\n")
    (row,) = read_yolo(tmp_path).documents["train"]["annotations"]
    assert row["bbox"] == CAT_PIXELS
    assert "segmentation" not in row


def test_all_problems_of_yolo_are_reported_by_kind(tmp_path: Path) -> None:
    yolo_roboflow(tmp_path)
    labels = tmp_path / "train" / "labels" / "a.v1.txt"
    picture(tmp_path / "train" / "images" / "b.jpg")
    put(labels.with_name("b.txt"), "0 1\n" * 4)
    put(labels, "0 0.5 0.5 0.1\n2 0.5 0.5 0.1 0.1\ncat 0.5 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n0.5 0.5 0.5 0.1 0.1\n")
    (tmp_path / "valid" / "images" / "a.v1.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError) as caught:
        read_yolo(tmp_path)
    text = str(caught.value)
    assert len(caught.value.problems) == 10
    # Of all files together, since each image has one.
    assert "\n  lines that are neither boxes nor polygons: 7\n" in text
    assert "\n    ... and 2 more of this kind\n" in text
    assert f"\n    {labels}: line 1 is" in text
    assert "line 2: class 2 is none of 2 names" in text
    assert "image files that cannot be read: 1" in text


def test_a_folder_that_is_no_dataset_says_what_is_missing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"neither a data\.yaml with `names` nor obj\.data nor classes\.txt"):
        read_yolo(tmp_path)
    with pytest.raises(DatasetError, match="no XML files"):
        read_voc(tmp_path)
    put(tmp_path / "classes.txt", "cat\n")
    with pytest.raises(DatasetError, match="no text file for any image"):
        read_yolo(tmp_path)
    put(tmp_path / "data.yaml", "names: 3\n")
    with pytest.raises(DatasetError, match="`names` is 3"):
        read_yolo(tmp_path)


def test_all_problems_of_pascal_voc_are_reported_by_kind(tmp_path: Path) -> None:
    voc_devkit(tmp_path)
    annotations = tmp_path / "Annotations"
    put(annotations / "a.xml", (annotations / "a.xml").read_text().replace("<xmin>11<", "<xmin>left<"))
    put(
        annotations / "b.xml",
        "<annotation><filename>b.jpg</filename><object/><object><name>cat</name></object></annotation>",
    )
    put(annotations / "c.xml", "<annotation><filename>c.jpg</filename></annotation>")
    put(annotations / "d.xml", "<annotation>")
    put(annotations / "e.xml", "<html/>")
    with pytest.raises(DatasetError) as caught:
        read_voc(tmp_path)
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    for words in (
        "<xmin> of 'cat' is 'left', not a number",
        "object number 1: it has no <name>",
        "object number 2: 'cat' has no <bndbox>",
        "there is no image 'c.jpg'",
        "its root is <html>",
    ):
        assert words in text


def test_images_of_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    voc_cvat(tmp_path)
    voc_roboflow(tmp_path / "more")
    document = read_voc(tmp_path).documents
    assert [image["file_name"] for image in document["train"]["images"]] == [
        "JPEGImages/train/a.png",
        "more/train/a.rf.jpg",
    ]


def test_documents_are_written_and_read(tmp_path: Path) -> None:
    voc_roboflow(tmp_path / "voc")
    dataset = read_voc(tmp_path / "voc")
    files = write_documents(dataset, tmp_path / "out")
    assert files == {name: tmp_path / "out" / f"{name}.json" for name in ("train", "val")}
    assert read_coco(dataset.root, files["val"]).report.boxes == 2
    before = files["train"].read_bytes()
    files["val"].unlink()
    with pytest.raises(FileExistsError, match=r"train\.json exists"):
        write_documents(dataset, tmp_path / "out")
    assert not files["val"].exists()
    write_documents(dataset, tmp_path / "out", overwrite=True)
    assert files["train"].read_bytes() == before
    assert json.loads(before)["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"names: [",
        b"names: {a: cat}",
        b"names: []",
        b"- 1",
        b"",
        b"names: [cat]\nkpt_shape: three",
        b"names: [cat]\ntrain: 7",
        b"a: &a [1, 2]\nb: *a",
    ],
)
def test_settings_of_any_content_end_in_the_documented_error(tmp_path: Path, content: bytes) -> None:
    yolo_roboflow(tmp_path)
    (tmp_path / "data.yaml").write_bytes(content)
    with pytest.raises(DatasetError, match=str(tmp_path)):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\xff\xfe<", b"<?xml version='1.0' encoding='no'?><a/>", b"plain text"]
)
def test_annotations_of_any_content_end_in_the_documented_error(tmp_path: Path, content: bytes) -> None:
    voc_labelimg(tmp_path)
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.xml"):
        read_voc(tmp_path)


def test_splits_of_one_name_are_refused_instead_of_replacing_each_other(tmp_path: Path) -> None:
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    dataset = ForeignDataset(Path("pets"), {"val": document, "train": document, "valid": document}, [])
    with pytest.raises(ValueError, match=r"the splits val, valid of pets would share the file val\.json"):
        write_documents(dataset, tmp_path)
    assert not list(tmp_path.iterdir())
