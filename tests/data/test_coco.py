import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coco_files import coco_document, write_coco
from deformdetr.data import Annotations, DatasetError, LabelMap, _documents, _index, read_coco

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(params=["whole", "in pieces"], autouse=True)
def how_files_are_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "in pieces":
        monkeypatch.setattr(_index, "_MIN_BYTES", 0)
        monkeypatch.setattr(_documents, "_PIECE_BYTES", 64)


def read(folder: Path, edit: Edit | None = None, **options: Any) -> Annotations:
    document = coco_document()
    if edit is not None:
        edit(document)
    return read_coco(folder, write_coco(folder, document), **options)


def box(values: list[Any], **fields: Any) -> Edit:
    """Return an edit of the first annotation's box. Its image is 20 pixels wide and 50 high."""

    def edit(document: dict[str, Any]) -> None:
        document["annotations"][0] |= {"bbox": values, **fields}

    return edit


def test_boxes_are_grouped_by_image_with_labels_in_order_of_category_ids(tmp_path: Path) -> None:
    annotations = read(tmp_path)
    assert annotations.label_map == LabelMap(names=("cat", "dog"), category_ids=(4, 20))
    boxes, labels = annotations.of_image(0)
    np.testing.assert_array_equal(boxes, np.float32([[5.5, 6, 15.5, 18], [0, 0, 40, 30]]))
    np.testing.assert_array_equal(labels, [0, 1])
    boxes, labels = annotations.of_image(1)
    np.testing.assert_array_equal(boxes, np.float32([[1, 2, 11, 22]]))
    np.testing.assert_array_equal(labels, [1])


def test_an_image_without_boxes_is_kept_and_counted(tmp_path: Path) -> None:
    annotations = read(tmp_path)
    boxes, labels = annotations.of_image(2)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)
    assert annotations.report.empty_images == 1
    assert annotations.report.images == 3


@pytest.mark.parametrize("sides", [(0, 0), (0, 5), (5, 0), (-4, 5), (5, -4), (1e-9, 5)])
def test_a_box_without_width_or_height_is_dropped_and_counted(tmp_path: Path, sides: tuple[float, float]) -> None:
    annotations = read(tmp_path, box([3, 4, *sides], area=min(sides)))
    assert annotations.report.degenerate == 1
    assert annotations.report.boxes == 2
    assert annotations.of_image(1)[0].shape == (0, 4)
    assert "1 without width or height" in str(annotations.report)
    assert len(annotations.to_coco()["annotations"]) == 2


def test_a_box_beyond_its_image_is_clipped_for_training_but_not_for_evaluation(tmp_path: Path) -> None:
    annotations = read(tmp_path, box([-3, 40, 30, 20.5]))
    np.testing.assert_array_equal(annotations.of_image(1)[0], np.float32([[0, 40, 20, 50]]))
    assert annotations.report.clipped == 1
    published = next(row for row in annotations.to_coco()["annotations"] if row["image_id"] == 3)
    assert published["bbox"] == [-3, 40, 30, 20.5]


def test_a_box_that_fills_its_image_is_not_clipped(tmp_path: Path) -> None:
    assert read(tmp_path).report.clipped == 0


def test_a_crowd_is_left_out_of_training_and_kept_for_evaluation(tmp_path: Path) -> None:
    annotations = read(tmp_path, box([1, 2, 10, 20], iscrowd=1))
    assert annotations.of_image(1)[0].shape == (0, 4)
    assert annotations.report.crowd == 1
    assert annotations.report.boxes == 2
    assert annotations.report.empty_images == 2
    assert [row["iscrowd"] for row in annotations.to_coco()["annotations"]] == [0, 0, 1]


def test_a_missing_area_defaults_to_that_of_the_box(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["annotations"][0]["area"], document["annotations"][0]["iscrowd"]

    coco = read(tmp_path, edit).to_coco()
    assert [row["area"] for row in coco["annotations"]] == [120, 1200, 200]


def test_no_annotation_gets_the_id_0_which_pycocotools_treats_as_unmatched(tmp_path: Path) -> None:
    assert [row["id"] for row in read(tmp_path).to_coco()["annotations"]] == [1, 2, 3]


def test_a_label_map_selects_and_orders_categories(tmp_path: Path) -> None:
    label_map = LabelMap(names=("dog", "cat"), category_ids=(20, 4))
    np.testing.assert_array_equal(read(tmp_path, label_map=label_map).of_image(0)[1], [1, 0])


def test_boxes_outside_the_label_map_are_refused_unless_ignored(tmp_path: Path) -> None:
    dogs = LabelMap(names=("dog",), category_ids=(20,))
    with pytest.raises(DatasetError, match=r"category 4 \('cat'\).*1 annotations.*first being annotation 5"):
        read(tmp_path, label_map=dogs)
    annotations = read(tmp_path, label_map=dogs, ignore_unknown_categories=True)
    assert annotations.report.unknown_category == 1
    assert annotations.report.boxes == 2
    assert annotations.to_coco()["categories"] == [{"id": 20, "name": "dog"}]


def test_an_unused_category_outside_the_label_map_is_accepted(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["categories"].append({"id": 0, "name": "animals"})

    label_map = LabelMap(names=("cat", "dog"), category_ids=(4, 20))
    assert read(tmp_path, edit, label_map=label_map).report.boxes == 3


@pytest.mark.parametrize(
    ("label_map", "named"),
    [
        (LabelMap(names=("cat", "wolf"), category_ids=(4, 20)), "category 20 is 'dog' here but 'wolf'"),
        (LabelMap(names=("cat", "dog"), category_ids=(4, 2)), "'dog' has the id 20 here but 2"),
    ],
)
def test_a_label_map_that_contradicts_the_file_is_refused(tmp_path: Path, label_map: LabelMap, named: str) -> None:
    with pytest.raises(DatasetError, match=named):
        read(tmp_path, label_map=label_map, ignore_unknown_categories=True)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([20, 4, 5, 5], r"annotation 0: 'bbox' \[20, 4, 5, 5\] lies outside.*b.png.*20 x 50"),
        ([3, -5, 5, 5], "annotation 0.*outside"),
        ([float("nan"), 4, 5, 5], r"annotation 0: 'bbox' is \[nan, 4, 5, 5\].*not finite"),
        ([1, 2, float("inf"), 5], "annotation 0.*inf.*not finite"),
        ([1, 2, 10**400, 5], "annotation 0.*not finite"),
        ([1, 2, 3], r"annotation 0: 'bbox' is \[1, 2, 3\]"),
        ([1, 2, "3", 4], "annotation 0.*'3' is not a number"),
        ([1, 2, True, 4], "annotation 0.*True is not a number"),
    ],
)
def test_an_invalid_box_is_reported_with_id_and_value(tmp_path: Path, values: list[Any], named: str) -> None:
    with pytest.raises(DatasetError, match=named) as caught:
        read(tmp_path, box(values))
    assert str(caught.value).startswith(f"{tmp_path / 'annotations.json'}: ")


def set_image(**fields: Any) -> Edit:
    return lambda document: document["images"][1].update(fields)


def set_annotation(**fields: Any) -> Edit:
    return lambda document: document["annotations"][0].update(fields)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (set_annotation(image_id=77), "annotation 0: image 77 is not in the list of images"),
        (set_annotation(category_id=78), "annotation 0: category 78 is not in the list of categories"),
        (set_annotation(image_id="seven"), "annotation 0: image seven is not in the list of images"),
        (set_annotation(image_id=3.5), "annotation 0: 'image_id' is 3.5, not an integer or text"),
        (lambda document: document["annotations"][0].pop("image_id"), "annotation 0: it has no 'image_id'"),
        (set_annotation(category_id=[4]), r"annotation 0: 'category_id' is \[4\], not an integer"),
        (set_annotation(bbox=None), "annotation 0: 'bbox' is None"),
        (set_annotation(iscrowd=2), "annotation 0: 'iscrowd' is 2"),
        (set_annotation(area=float("nan")), "annotation 0: 'area' is nan"),
        (set_annotation(area=-1), "annotation 0: 'area' is -1"),
        (set_annotation(area="x"), "annotation 0: 'area': 'x' is not a number"),
        (set_image(id=7), "image id 7 is used twice: 'a.png' and 'b.png'"),
        (set_image(id=2**63), "image number 2: 'id' is 9223372036854775808, which is no integer of 64 bits"),
        (set_image(id=3.5), "image number 2: 'id' is 3.5, not an integer or text"),
        (set_image(id=True), "image number 2: 'id' is True"),
        (set_image(width="wide"), r"image 3 \(b.png\): 'width' is 'wide'"),
        (set_image(height=2.5), r"image 3 \(b.png\): 'height' is 2.5"),
        (set_image(file_name=None), "image 3: 'file_name' is None"),
        (lambda document: document["images"].append("d.png"), "image number 4 is 'd.png'"),
        (lambda document: document["categories"][0].update(id="x"), "category number 1: 'id' is 'x'"),
        (lambda document: document["categories"][0].update(id=4), "category id 4 is used twice"),
        (lambda document: document["categories"][0].update(name=5), "category 20: 'name' is 5"),
        (lambda document: document.update(categories=[]), "there are no categories"),
        (lambda document: document.update(images=[]), "has no images"),
        (lambda document: document.pop("categories"), "is not a COCO annotation file: it has no 'categories'"),
        (lambda document: document.update(images={"7": "a.png"}), "'images' is {'7': 'a.png'}"),
    ],
)
def test_invalid_entries_are_reported_with_id_and_value(tmp_path: Path, edit: Edit, named: str) -> None:
    with pytest.raises(DatasetError, match=named) as caught:
        read(tmp_path, edit)
    assert str(tmp_path / "annotations.json") in str(caught.value)


def test_boxes_of_an_invalid_image_are_not_reported_again(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, set_image(width=2.5))
    assert len(caught.value.problems) == 1


def test_image_files_that_are_missing_empty_or_folders_are_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").unlink()
    (tmp_path / "c.png").mkdir()
    with pytest.raises(DatasetError) as caught:
        read_coco(tmp_path, path)
    assert [problem.removeprefix(f"{path}: ") for problem in caught.value.problems] == [
        f"image 7: {tmp_path / 'a.png'}: No such file or directory",
        f"image 3: {tmp_path / 'b.png'}: the file is empty",
        f"image 900: {tmp_path / 'c.png'}: is not a file",
    ]


def test_a_missing_image_folder_is_one_problem(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    with pytest.raises(DatasetError, match=r"image folder .*nowhere does not exist") as caught:
        read_coco(tmp_path / "nowhere", path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xd8\xff\xe0", "is not text in UTF-8"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'[{"image_id": 1}]', "is not a COCO annotation file: it holds a list"),
        (b"3", "it holds a int"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_by_name(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=named) as caught:
        read_coco(tmp_path, path)
    assert str(path) in str(caught.value)


def test_an_annotation_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "nowhere.json", "there is no file"), (tmp_path, "is a folder")):
        with pytest.raises(DatasetError, match=reason) as caught:
            read_coco(tmp_path, path)
        assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_coco(tmp_path, path).report.boxes == 3


def test_problems_are_grouped_by_kind_so_that_none_is_hidden(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["annotations"] += [
            {"id": number, "image_id": 12345, "category_id": 4, "bbox": [1, 1, 2, 2]} for number in range(100, 125)
        ]
        document["annotations"].append({"id": 200, "image_id": 7, "category_id": 4, "bbox": None})

    with pytest.raises(DatasetError) as caught:
        read(tmp_path, edit)
    assert len(caught.value.problems) == 26
    lines = str(caught.value).splitlines()
    path = tmp_path / "annotations.json"
    assert lines[0] == "26 problems in the dataset:"
    assert lines[1].startswith(f"  {path}: annotations of an image that is not in the list of images: 25 (")
    assert "deleted" in lines[1]
    assert lines[2] == "    annotation 100: image 12345 is not in the list of images"
    assert lines[7] == "    ... and 20 more of this kind"
    assert lines[8].startswith(f"  {path}: annotations without a valid box: 1 (")
    assert lines[9].startswith("    annotation 200: 'bbox' is None")
    assert len(lines) == 10


def test_all_faults_of_an_entry_are_reported_at_once(tmp_path: Path) -> None:
    faults = {"image_id": 77, "category_id": [4], "bbox": "[1, 2, 3, 4]", "iscrowd": "yes", "area": "600"}
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, set_annotation(**faults))
    assert len(caught.value.problems) == len(faults)
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, set_image(id=None, file_name=5, height="high"))
    # The annotation of the image without an id is reported, too.
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("boxes", "cause"),
    [
        ([[5, 5, 10, 10], [5, 5, 20, 10], [25, 2, 10, 10]], "exchanged"),
        ([[0, 0, 10, 10], [100, 100, 400, 600], [5, 800, 100, 200]], "scale of 0 to 1000"),
        ([[0, 0, 10, 10], [2000, 100, 400, 600], [5, 5, 5, 5]], "resized or cropped"),
    ],
)
def test_boxes_outside_their_images_come_with_the_usual_cause(
    tmp_path: Path, boxes: list[list[int]], cause: str
) -> None:
    def edit(document: dict[str, Any]) -> None:
        for row, values in zip(document["annotations"], reversed(boxes), strict=True):
            row["bbox"] = values

    with pytest.raises(DatasetError, match=cause):
        read(tmp_path, edit)


def test_ground_truth_has_the_values_of_the_file(tmp_path: Path) -> None:
    coco = read(tmp_path).ground_truth()
    assert sorted(coco.getImgIds()) == [3, 7, 900]
    assert sorted(coco.getCatIds()) == [4, 20]
    (row,) = coco.loadAnns(coco.getAnnIds(imgIds=[7], catIds=[4]))
    assert (row["bbox"], row["area"]) == ([5.5, 6, 10, 12], 120)
    json.dumps(coco.dataset)


def test_the_summary_counts_boxes_by_class(tmp_path: Path) -> None:
    lines = read(tmp_path).summary().splitlines()
    assert "3 images (1 without boxes), 3 boxes; nothing skipped" in lines[0]
    assert lines[2].split() == ["cat", "1", "1"]
    assert lines[3].split() == ["dog", "2", "2"]
    assert "quartiles 11 | 13 | 14 | 24 | 35" in lines[4]
    assert "small 2, medium 1, large 0" in lines[5]


def test_ids_beyond_double_precision_stay_exact(tmp_path: Path) -> None:
    large = 2**60 + 1

    def edit(document: dict[str, Any]) -> None:
        document["categories"][0]["id"] = large
        document["images"][1]["id"] = large
        for row in document["annotations"]:
            row["category_id"] = large if row["category_id"] == 20 else 4
            row["image_id"] = large if row["image_id"] == 3 else 7

    coco = read(tmp_path, edit).to_coco()
    assert [row["image_id"] for row in coco["annotations"]] == [7, 7, large]
    assert [row["category_id"] for row in coco["annotations"]] == [4, large, large]


ANNOTATION_IDS = [
    [None, None, None],
    [1, 1, 1],
    [0.0, 1.5, 2.0],
    ["0d3f", "0d3f", ""],
    [{"a": 1}, [], True],
    [2**70, -1, 0],
]


@pytest.mark.parametrize("ids", ANNOTATION_IDS, ids=repr)
def test_ids_of_annotations_do_not_matter(tmp_path: Path, ids: list[Any]) -> None:
    def edit(document: dict[str, Any]) -> None:
        for row, identifier in zip(document["annotations"], ids, strict=True):
            row["id"] = identifier

    assert read(tmp_path, edit).to_coco() == read(tmp_path).to_coco()


@pytest.mark.parametrize("key", ["id", "iscrowd", "area"])
@pytest.mark.parametrize("value", [None, ...])
def test_harmless_fields_may_be_missing_or_null(tmp_path: Path, key: str, value: Any) -> None:
    def edit(document: dict[str, Any]) -> None:
        for row in document["annotations"]:
            row[key] = value
            if value is ...:
                del row[key]

    assert read(tmp_path, edit).to_coco() == read(tmp_path).to_coco()


@pytest.mark.parametrize("convert", [float, str, lambda number: f"{number}"])
def test_whole_numbers_may_be_floats_or_text(tmp_path: Path, convert: Callable[[int], Any]) -> None:
    def edit(document: dict[str, Any]) -> None:
        for row in document["annotations"]:
            row |= {key: convert(row[key]) for key in ("image_id", "category_id", "iscrowd")}
            row["iscrowd"] = row["iscrowd"] if isinstance(row["iscrowd"], str) else 0.0
        for category in document["categories"]:
            category["id"] = convert(category["id"])
        for image in document["images"]:
            image |= {key: convert(image[key]) for key in ("width", "height")}

    assert read(tmp_path, edit).to_coco() == read(tmp_path).to_coco()


def test_image_ids_may_be_text_and_stay_so(tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["id"] = f"img{image['id']:03d}"
        for row in document["annotations"]:
            row["image_id"] = f"img{row['image_id']:03d}"

    annotations = read(tmp_path, edit)
    assert annotations.image_ids == ("img007", "img003", "img900")
    assert [row["image_id"] for row in annotations.ground_truth().dataset["annotations"]] == ["img007"] * 2 + ["img003"]


def test_image_ids_of_both_types_become_text(tmp_path: Path) -> None:
    assert read(tmp_path, set_image(id="3")).image_ids == ("7", "3", "900")
    assert read(tmp_path, set_image(id="3")).report.boxes == 3


@pytest.mark.parametrize("size", [{"width": -1, "height": -1}, {"width": 0}, {"height": None}])
def test_a_size_that_is_not_given_is_taken_from_the_file_and_said_once(tmp_path: Path, size: dict[str, Any]) -> None:
    path = write_coco(tmp_path, coco_document())
    document = coco_document()
    for image in document["images"][:2]:
        image |= size
    del document["images"][2]["width"]
    path.write_text(json.dumps(document))
    annotations = read_coco(tmp_path, path)
    np.testing.assert_array_equal(annotations.sizes, read(tmp_path).sizes)
    assert annotations.report.notes == ("3 images without width and height, which were taken from their files",)


def test_a_size_that_neither_entry_nor_file_has_is_one_problem(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    (tmp_path / "b.png").write_bytes(b"no picture")
    document = coco_document()
    document["images"][1]["width"] = -1
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"image 3 \(b.png\): it has no width and height, and .*cannot be read"):
        read_coco(tmp_path, path)


@pytest.mark.parametrize(
    ("written", "stored", "note"),
    [
        ("images\\b.png", "images/b.png", "backslashes"),
        ("caf\u00e9.png", "cafe\u0301.png", "Unicode"),
        ("cafe\u0301.png", "caf\u00e9.png", "Unicode"),
        ("images\\caf\u00e9.png", "images/cafe\u0301.png", "Unicode"),
    ],
)
def test_files_are_found_under_other_spellings_of_their_names(
    tmp_path: Path, written: str, stored: str, note: str
) -> None:
    path = write_coco(tmp_path, coco_document())
    (tmp_path / stored).parent.mkdir(exist_ok=True)
    (tmp_path / "b.png").rename(tmp_path / stored)
    document = coco_document()
    document["images"][1]["file_name"] = written
    path.write_text(json.dumps(document))
    annotations = read_coco(tmp_path, path)
    assert annotations.file_names[1] == stored
    (found,) = annotations.report.notes
    assert note in found


@pytest.mark.parametrize("stored", ["b.png", "val2017/b.png"])
def test_lvis_names_files_by_their_address(tmp_path: Path, stored: str) -> None:
    path = write_coco(tmp_path, coco_document())
    (tmp_path / stored).parent.mkdir(exist_ok=True)
    (tmp_path / "b.png").rename(tmp_path / stored)
    document = coco_document()
    del document["images"][1]["file_name"]
    document["images"][1] |= {"coco_url": "http://images.cocodataset.org/val2017/b.png", "neg_category_ids": [4]}
    path.write_text(json.dumps(document))
    annotations = read_coco(tmp_path, path)
    assert annotations.file_names[1] == stored
    assert "1 images annotated for some categories only" in str(annotations.report)


def test_a_file_that_lies_in_another_folder_is_pointed_out(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    document = coco_document()
    document["images"][1]["file_name"] = "..\\upload\\b.png"
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"No such file or directory; but .* holds b\.png"):
        read_coco(tmp_path, path)


def test_an_image_that_is_listed_twice_is_read_once(tmp_path: Path) -> None:
    annotations = read(tmp_path, lambda document: document["images"].append(dict(document["images"][0])))
    assert annotations.image_ids == (7, 3, 900)
    assert annotations.report.notes == ("1 images listed twice, read once",)
