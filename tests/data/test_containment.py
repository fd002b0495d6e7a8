"""Names of files that lead out of the folder of images."""

import json

import pytest
from PIL import Image

from deformdetr.data import DatasetError, DecodeConfig, PanopticFiles, _index, read_coco, read_voc, read_yolo


@pytest.fixture
def places(tmp_path):
    """Return a folder of images and an image outside of it."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (folder / "a.png", folder / "inner" / "b.png", outside / "secret.png"):
        Image.new("RGB", (40, 30)).save(path)
    (folder / "file_link.png").symlink_to(outside / "secret.png")
    (folder / "folder_link").symlink_to(outside)
    (folder / "inner" / "inside_link.png").symlink_to(folder / "a.png")
    return folder, outside / "secret.png"


def coco_file(folder, name):
    file = folder.parent / "annotations.json"
    image = {"id": 1, "file_name": str(name), "width": 40, "height": 30}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    document = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(document))
    return file


OUTSIDE = ["{secret}", "../outside/secret.png", "inner/../../outside/secret.png", "file_link.png"]
OUTSIDE += ["folder_link/secret.png", "..\\outside\\secret.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder_are_refused_unless_allowed(places, name):
    folder, secret = places
    file = coco_file(folder, name.format(secret=secret))
    with pytest.raises(DatasetError, match=r"leads out of .*allow_outside") as refused:
        read_coco(folder, file)
    assert "\n" not in str(refused.value)
    assert len(read_coco(folder, file, decode=DecodeConfig(allow_outside=True)).file_names) == 1


@pytest.mark.parametrize("name", ["a.png", "{folder}/a.png", "inner/../a.png", "inner/b.png", "inner/inside_link.png"])
def test_names_that_stay_in_the_folder_are_read(places, name):
    folder, _ = places
    assert len(read_coco(folder, coco_file(folder, name.format(folder=folder))).file_names) == 1


@pytest.mark.parametrize("name", [each for each in OUTSIDE if "\\" not in each])
def test_panoptic_files_do_not_lead_out_of_the_folder_either(places, name):
    folder, secret = places
    file = folder.parent / "panoptic.json"
    entry = {"image_id": 1, "file_name": name.format(secret=secret), "segments_info": []}
    categories = [{"id": 1, "name": "cat", "isthing": 1}]
    file.write_text(json.dumps({"images": [{"id": 1}], "annotations": [entry], "categories": categories}))
    with pytest.raises(DatasetError, match=r"leads out of .*allow_outside") as refused:
        PanopticFiles(file, folder)[0]
    assert "\n" not in str(refused.value)
    assert PanopticFiles(file, folder, allow_outside=True)[0]["segment_map"].shape == (30, 40)


def test_an_index_does_not_lead_out_of_the_folder_either(places, monkeypatch):
    monkeypatch.setattr(_index, "_MIN_BYTES", 0)
    folder, secret = places
    file = coco_file(folder, "a.png")
    # Once into the index, and once out of it.
    assert read_coco(folder, file).file_names == read_coco(folder, file).file_names
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(secret)
    for _ in range(2):
        assert len(read_coco(folder, file, decode=DecodeConfig(allow_outside=True)).file_names) == 1
    with pytest.raises(DatasetError, match=r"leads out of .*allow_outside"):
        read_coco(folder, file)


def test_the_folder_itself_may_be_a_link(places, tmp_path):
    folder, _ = places
    (tmp_path / "link").symlink_to(folder)
    assert len(read_coco(tmp_path / "link", coco_file(folder, "a.png")).file_names) == 1


def test_converters_refuse_links_out_of_the_dataset_unless_allowed(places):
    folder, _ = places
    (folder / "classes.txt").write_text("cat")
    (folder / "file_link.txt").write_text("0 0.5 0.5 0.5 0.5")
    (folder / "file_link.xml").write_text("<annotation><filename>file_link.png</filename></annotation>")
    for read in (read_yolo, read_voc):
        with pytest.raises(DatasetError, match=r"file_link\.png: leads out of"):
            read(folder)
        assert read(folder, decode=DecodeConfig(allow_outside=True)).documents["all"]["images"]


@pytest.mark.parametrize("place", ["../outside", "../../outside", "inner/../../outside"])
def test_settings_of_yolo_do_not_lead_out_of_the_dataset(places, place):
    folder, _ = places
    (folder.parent / "outside" / "list.txt").write_text("secret.png")
    for written in (place, f"{place}/list.txt"):
        (folder / "data.yaml").write_text(f"names: [cat]\ntrain: {written}\n")
        with pytest.raises(DatasetError, match="there is no folder or list of images"):
            read_yolo(folder)
