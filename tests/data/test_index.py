"""Large annotation files: read in pieces, and kept as arrays in a file that nothing outdated is read from."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coco_files import coco_document, write_coco
from deformdetr.data import Annotations, DatasetError, LabelMap, _documents, _index, read_coco


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_index, "_MIN_BYTES", 0)
    monkeypatch.setattr(_documents, "_PIECE_BYTES", 64)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))


def many_boxes() -> dict[str, Any]:
    document = coco_document()
    document["annotations"] = [
        {**row, "id": 3 * turn + number, "segmentation": [[1, 2, 9, 2, 9, 8.5 + turn]], "note": {"by": '"}, {" \\'}}
        for turn in range(9)
        for number, row in enumerate(document["annotations"])
    ]
    return document


def indexes(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".*.safetensors")) + sorted(folder.rglob("cache/**/*.safetensors"))


def assert_same(found: Annotations, expected: Annotations) -> None:
    for field in fields(Annotations):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        elif field.name == "segmentations" and theirs is not None:
            assert [array.tolist() for array in ours] == [array.tolist() for array in theirs]
        else:
            assert ours == theirs, field.name


def refuse_reading(*_: Any) -> None:
    raise AssertionError("the annotation file was read again")


@pytest.fixture
def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function from whose call on annotation files must not be decoded."""

    def apply() -> None:
        monkeypatch.setattr("deformdetr.data._coco.open_document", refuse_reading)
        monkeypatch.setattr("deformdetr.data._coco.whole_document", refuse_reading)

    return apply


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_and_index_give_what_the_whole_file_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbid_decoding: Any, masks: bool, indent: int | None
) -> None:
    path = write_coco(tmp_path, many_boxes())
    path.write_text(json.dumps(many_boxes(), indent=indent))
    with monkeypatch.context() as small:
        small.setattr(_index, "_MIN_BYTES", 2**30)
        expected = read_coco(tmp_path, path, masks=masks)
    assert not indexes(tmp_path)
    with monkeypatch.context() as pieces:
        pieces.setattr("deformdetr.data._coco.whole_document", refuse_reading)
        assert_same(read_coco(tmp_path, path, masks=masks), expected)
    assert len(indexes(tmp_path)) == 1
    forbid_decoding()
    assert_same(read_coco(tmp_path, path, masks=masks), expected)


def test_a_changed_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    read_coco(tmp_path, path)
    times = path.stat()
    path.write_text(path.read_text().replace("[1, 2, 10, 20]", "[1, 2, 10, 30]"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert [1, 2, 10, 30] in read_coco(tmp_path, path).published.tolist()
    assert len(indexes(tmp_path)) == 1


def test_other_options_and_other_code_have_other_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_coco(tmp_path, many_boxes())
    dogs = LabelMap(names=("dog",), category_ids=(20,))
    assert read_coco(tmp_path, path).report.boxes == 27
    assert read_coco(tmp_path, path, label_map=dogs, ignore_unknown_categories=True).report.boxes == 18
    with pytest.raises(DatasetError, match="category 4"):
        read_coco(tmp_path, path, label_map=dogs)
    assert read_coco(tmp_path, path, masks=True).segmentations is not None
    assert len(indexes(tmp_path)) == 3
    monkeypatch.setattr(_index, "_hash_of_code", lambda: "other")
    monkeypatch.setattr("deformdetr.data._coco.open_document", refuse_reading)
    with pytest.raises(AssertionError, match="read again"):
        read_coco(tmp_path, path)


def test_the_label_map_of_the_file_itself_needs_no_index_of_its_own(tmp_path: Path, forbid_decoding: Any) -> None:
    path = write_coco(tmp_path, coco_document())
    label_map = read_coco(tmp_path, path).label_map
    forbid_decoding()
    assert read_coco(tmp_path, path, label_map=label_map).report.boxes == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "folder"])
def test_a_damaged_index_is_written_again(tmp_path: Path, forbid_decoding: Any, damage: str) -> None:
    path = write_coco(tmp_path, many_boxes())
    expected = read_coco(tmp_path, path)
    (index,) = indexes(tmp_path)
    whole = index.read_bytes()
    if damage == "folder":
        index.unlink()
        index.mkdir()
    else:
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        damaged = {"cut": whole[:-9], "flipped": bytes(flipped), "empty": b"", "text": b"no index" * 99}
        index.write_bytes(damaged[damage])
    assert_same(read_coco(tmp_path, path), expected)
    forbid_decoding()
    assert_same(read_coco(tmp_path, path), expected)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image_index", lambda array: array + 1000),
        ("image_index", lambda array: array[::-1]),
        pytest.param("image_index", lambda array: array[1:], marks=pytest.mark.unchecked),
        ("labels", lambda array: array - 9),
        ("labels", lambda array: array + 1000),
        pytest.param("sizes", lambda array: array[:-1], marks=pytest.mark.unchecked),
        pytest.param("areas", lambda array: array.astype(np.float32), marks=pytest.mark.unchecked),
        ("starts", lambda array: array * 2),
        ("starts", lambda array: array[::-1]),
        ("content", lambda array: array[:-1]),
    ],
)
def test_an_index_whose_arrays_do_not_fit_each_other_is_written_again(
    name: str, change: Any, tmp_path: Path, forbid_decoding: Any
) -> None:
    path = write_coco(tmp_path, many_boxes())
    expected = read_coco(tmp_path, path, masks=True)
    (index,) = indexes(tmp_path)
    content = load_file(index)
    del content["checksum"]
    content[name] = np.ascontiguousarray(change(content[name]))
    save_file(content | {"checksum": np.array([_index._checksum(content)])}, index)
    assert_same(read_coco(tmp_path, path, masks=True), expected)
    forbid_decoding()
    assert_same(read_coco(tmp_path, path, masks=True), expected)


def test_a_missing_image_is_reported_although_there_is_an_index(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    read_coco(tmp_path, path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"image 3: .*b\.png: No such file"):
        read_coco(tmp_path, path)


def test_a_file_under_the_name_that_was_looked_for_first_precedes_the_index(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][1]["file_name"] = "in\\b.png"
    (tmp_path / "in").mkdir()
    path = write_coco(tmp_path, document)
    (tmp_path / "in\\b.png").rename(tmp_path / "in" / "b.png")
    for _ in range(2):
        assert read_coco(tmp_path, path).file_names[1] == "in/b.png"
    (tmp_path / "in\\b.png").write_bytes((tmp_path / "in" / "b.png").read_bytes())
    assert read_coco(tmp_path, path).file_names[1] == "in\\b.png"


def test_sizes_that_come_from_image_files_are_not_kept(tmp_path: Path) -> None:
    document = coco_document()
    path = write_coco(tmp_path, document)
    del document["images"][0]["width"]
    path.write_text(json.dumps(document))
    assert read_coco(tmp_path, path).report.boxes == 3
    assert not indexes(tmp_path)


def test_the_index_of_a_read_only_folder_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    path = write_coco(folder, coco_document())
    write = _index.write_arrays

    def write_elsewhere(place: Path, *content: Any) -> None:
        if place.parent == folder:
            raise PermissionError("read-only")
        write(place, *content)

    monkeypatch.setattr(_index, "write_arrays", write_elsewhere)
    read_coco(folder, path)
    (index,) = indexes(tmp_path)
    assert index.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr("deformdetr.data._coco.open_document", refuse_reading)
    assert read_coco(folder, path).report.boxes == 3


def test_an_annotation_file_that_changes_while_it_is_read_has_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_coco(tmp_path, coco_document())
    hashes = iter(["before", "after"])
    monkeypatch.setattr(_index, "hash_of", lambda _: next(hashes))
    read_coco(tmp_path, path)
    assert not indexes(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "images": [IMAGE], "annotations": [], "categories": [CATEGORY]}',
        '{"images": [IMAGE], "annotations": [], "categories": [CATEGORY], "info": {"a": 1, "a": 2}}',
        '{"images": [IMAGE], "annotations": [{"id": 1, "id": 2}], "categories": [CATEGORY]}',
        '{"images": [IMAGE], "annotations": [{"x" : 1, "y": 2, "y": 3}], "categories": [CATEGORY]}',
        '{"images": [IMAGE], "annotations": [{"x": {"y": 2, "y": 3}}], "categories": [CATEGORY]}',
        '{"images": [IMAGE], "annotations": [{"x": 1, "\\u0078": 2}], "categories": [CATEGORY]}',
        '{"images": [IMAGE], "annotations": [[{"x": ":", "z": 1, "z": 2}]], "categories": [CATEGORY]}',
    ],
)
def test_a_repeated_key_is_refused_wherever_it_is(tmp_path: Path, text: str) -> None:
    path = write_coco(tmp_path, coco_document())
    image, category = coco_document()["images"][0], coco_document()["categories"][0]
    path.write_text(text.replace("IMAGE", json.dumps(image)).replace("CATEGORY", json.dumps(category)))
    with pytest.raises(DatasetError, match="occurs twice in one object"):
        read_coco(tmp_path, path)


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"', "1" * 5000])
def test_what_only_the_reader_of_whole_files_knows_is_read_by_it(tmp_path: Path, value: str) -> None:
    path = write_coco(tmp_path, coco_document())
    path.write_text(path.read_text().replace('"iscrowd": 0', f'"iscrowd": 0, "note": {value}'))
    if value.isdigit():
        with pytest.raises(DatasetError, match="is not valid JSON"):
            read_coco(tmp_path, path)
    else:
        assert read_coco(tmp_path, path).report.boxes == 3


def _read_boxes(path: Path) -> int:
    _index._MIN_BYTES = 0
    return read_coco(path.parent, path).report.boxes


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_first_readers_may_come_at_once(tmp_path: Path) -> None:
    path = write_coco(tmp_path, many_boxes())
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_read_boxes, [path] * 6)) == [27] * 6
    assert len(indexes(tmp_path)) == 1
    assert not list(tmp_path.glob(".*unfinished"))
