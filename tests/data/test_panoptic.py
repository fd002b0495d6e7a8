"""COCO's panoptic format, and stuff in the synthetic shapes."""

import json

import pytest
import torch
from PIL import Image

from deformdetr.data import (
    SHAPES_STUFF,
    DatasetError,
    LabelMap,
    PanopticFiles,
    ShapesConfig,
    draw_shapes,
    panoptic_truth,
    read_coco,
    write_panoptic,
)
from deformdetr.data._panoptic import decode_ids, encode_ids

CATEGORIES = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 200, "name": "sky", "isthing": 0}]
IDS = torch.tensor([[0, 70000, 70000], [9, 9, 70000]])


def written(folder, *, segments=None, categories=CATEGORIES, ids=IDS, file_name="a.png"):
    """Write a dataset of one image, and return its JSON file."""
    Image.fromarray(encode_ids(ids).permute(1, 2, 0).numpy()).save(folder / "a.png")
    Image.new("RGB", (ids.shape[1], ids.shape[0])).save(folder / "a.jpg")
    if segments is None:
        segments = [{"id": 70000, "category_id": 3}, {"id": 9, "category_id": 200, "iscrowd": 1}]
    entry = {"image_id": 17, "file_name": file_name, "segments_info": segments}
    document = {"images": [{"id": 17, "file_name": "a.jpg", "height": 2, "width": 3}], "annotations": [entry]}
    path = folder / "panoptic.json"
    path.write_text(json.dumps(document | {"categories": categories}))
    return path


def test_ids_are_digits_to_the_base_of_256():
    ids = torch.tensor([[0, 255, 256, 2**24 - 1]])
    colors = encode_ids(ids)
    assert colors[:, 0].T.tolist() == [[0, 0, 0], [255, 0, 0], [0, 1, 0], [255, 255, 255]]
    assert torch.equal(decode_ids(colors), ids)


def test_segments_are_numbered_in_the_order_of_the_file(tmp_path):
    files = PanopticFiles(written(tmp_path), tmp_path)
    assert (len(files), files.image_ids, files.stuff) == (1, (17,), {1})
    found = files[0]
    assert found["segment_map"].tolist() == [[0, 1, 1], [2, 2, 1]]
    assert found["labels"].tolist() == [0, 1]
    assert found["iscrowd"].tolist() == [0, 1]
    sparse = PanopticFiles(written(tmp_path), tmp_path, label_map=LabelMap.sparse({3: "cat", 200: "sky"}))
    assert sparse[0]["labels"].tolist() == [3, 200]
    assert sparse.stuff == {200}


def test_converted_files_are_read_as_objects_with_masks(tmp_path):
    path = tmp_path / "coco.json"
    document = PanopticFiles(written(tmp_path), tmp_path).to_coco()
    path.write_text(json.dumps(document))
    assert document["annotations"][0]["bbox"] == [1, 0, 2, 2]
    annotations = read_coco(tmp_path, path, masks=True)
    assert annotations.report.boxes == 1
    assert annotations.report.crowd == 1
    assert annotations.label_map == LabelMap.contiguous({3: "cat", 200: "sky"}, stuff={200})
    assert annotations.label_map.stuff == (1,)
    assert [category["isthing"] for category in annotations.to_coco()["categories"]] == [1, 0]
    truth = panoptic_truth(annotations, 0)
    assert truth["segment_map"].tolist() == [[0, 1, 1], [2, 2, 1]]
    assert truth["iscrowd"].tolist() == [0, 1]


def test_stuff_of_a_label_map_is_some_of_its_labels():
    assert LabelMap.sparse({3: "cat", 20: "sky"}, stuff=[20]).stuff == (20,)
    with pytest.raises(ValueError, match=r"stuff must be labels from 0 to 1, got \[-1, 2\]"):
        LabelMap(names=("cat", "sky"), category_ids=(3, 200), stuff=(-1, 1, 2))


def test_written_segments_are_read_again(tmp_path):
    annotations, _ = draw_shapes(ShapesConfig(num_val=1, image_size=64, stuff=True), "val", masks=True)
    truth, label_map = panoptic_truth(annotations, 0), annotations.label_map
    segments = write_panoptic(truth, tmp_path / "a.png", label_map, stuff=SHAPES_STUFF)
    names = zip(label_map.category_ids, label_map.names, strict=True)
    categories = [{"id": number, "name": name, "isthing": int(number < 4)} for number, name in names]
    entry = {"image_id": 1, "file_name": "a.png", "segments_info": segments}
    (tmp_path / "a.json").write_text(
        json.dumps({"images": [{"id": 1}], "annotations": [entry], "categories": categories})
    )
    files = PanopticFiles(tmp_path / "a.json", tmp_path)
    assert files.stuff == SHAPES_STUFF
    assert [each["isthing"] for each in segments[:2]] == [0, 0]
    assert sum(each["area"] for each in segments) == 64 * 64
    for name in ("segment_map", "labels", "iscrowd"):
        assert torch.equal(files[0][name], truth[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": [{"id": 9, "category_id": 3}]}, r"all of its pixels', got \[9\] for \[0, 9, 70000\]"),
        ({"segments": [{"id": 9, "category_id": 3}] * 2}, "must be unique"),
        ({"segments": [{"id": 0, "category_id": 3}]}, r"id from 1 to 16777215.*'id': 0"),
        ({"segments": [{"id": -5, "category_id": 3}]}, r"id from 1 to 16777215.*'id': -5"),
        ({"segments": [{"id": 2**70, "category_id": 3}]}, "id from 1 to 16777215"),
        ({"segments": [{"id": 9, "category_id": 4}]}, "malformed segment of a.png.*'category_id': 4"),
        ({"segments": [{"id": "x", "category_id": 3}]}, "malformed segment of a.png.*'id': 'x'"),
        ({"segments": [{"id": 9, "category_id": 3, "iscrowd": 2}]}, "0 or 1 as iscrowd.*'iscrowd': 2"),
        ({"segments": [7]}, "malformed segment of a.png.*: 7"),
        ({"segments": 7}, "'segments_info' of a.png is 7, not a list"),
        ({"file_name": None}, "image 17: 'file_name' is None, not the name of a file"),
        ({"file_name": 3}, "image 17: 'file_name' is 3, not the name of a file"),
        ({"categories": [{"id": 1e999, "name": "cat", "isthing": 1}]}, "categories need id, name and isthing"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "categories need id, name and isthing"),
    ],
)
def test_files_in_another_format_raise(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        PanopticFiles(written(tmp_path, **changes), tmp_path)[0]


def test_categories_without_a_label_raise(tmp_path):
    with pytest.raises(DatasetError, match=r"lacks the categories \[200\]"):
        PanopticFiles(written(tmp_path), tmp_path, label_map=LabelMap.contiguous({3: "cat"}))
    (tmp_path / "a.png").unlink(missing_ok=True)
    files = PanopticFiles(written(tmp_path), tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"a\.png"):
        files[0]


def test_stuff_covers_the_background_and_changes_nothing_without():
    config = ShapesConfig(num_val=3, image_size=64, stuff=True)
    annotations, pictures = draw_shapes(config, "val", masks=True)
    assert annotations.label_map.names[3:] == ("plain", "striped")
    assert set(annotations.label_map.stuff) == SHAPES_STUFF
    for index in range(3):
        truth = panoptic_truth(annotations, index)
        assert truth["labels"][:2].tolist() == [3, 4]
        assert (truth["labels"][2:] < 3).all()
        assert (truth["segment_map"] > 0).all()
    again, same = draw_shapes(config, "val", masks=True)
    assert torch.equal(pictures, same)
    assert (again.boxes == annotations.boxes).all()
    with pytest.raises(ValueError, match="read without masks"):
        panoptic_truth(draw_shapes(config, "val")[0], 0)
