"""The commands that make COCO files from other datasets and from each other."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from commands import refused, shown
from deformdetr.data import ShapesConfig, write_shapes
from foreign_datasets import CAT, put, voc_labelimg, voc_roboflow, yolo_label_studio, yolo_roboflow


@pytest.mark.parametrize("write", [yolo_roboflow, voc_roboflow])
def test_dataset_with_splits_is_converted_checked_and_ready_for_a_config(capsys, tmp_path, write):
    write(tmp_path / "pets")
    text = shown(capsys, "coco", tmp_path / "pets", "--output", tmp_path / "coco")
    assert text.count("1 images (0 without boxes), 2 boxes; nothing skipped") == 2
    settings = yaml.safe_load(text[text.index("data:") :])
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert "2 image files decoded" in shown(capsys, "check", config, "--decode")
    message = refused(capsys, "coco", tmp_path / "pets", "--output", tmp_path / "coco")
    assert "train.json exists already" in message
    shown(capsys, "coco", tmp_path / "pets", "--output", tmp_path / "coco", "--force")


def test_dataset_without_splits_is_split_by_the_next_command(capsys, tmp_path):
    voc_labelimg(tmp_path / "pets")
    text = shown(capsys, "coco", tmp_path / "pets", "--output", tmp_path)
    assert "1 images (0 without boxes), 2 boxes" in text
    assert text.endswith(f"no warnings\nnext: deformdetr split {tmp_path / 'all.json'}\n")


def test_warnings_about_a_dataset_without_splits_come_before_it_is_split(capsys, tmp_path):
    yolo_label_studio(tmp_path / "pets")
    put(tmp_path / "pets" / "labels" / "a.txt", f"0 {CAT}\n")
    put(tmp_path / "pets" / "labels" / "copy.txt", f"0 {CAT}\n")
    Image.new("L", (80, 40)).save(tmp_path / "pets" / "images" / "copy.png")
    text = shown(capsys, "coco", tmp_path / "pets", "--output", tmp_path)
    assert "warning: 1 of 2 categories have no boxes: dog\n" in text
    assert "warning: images differ in their pixels: 1 color, 1 gray" in text


def test_converted_boxes_are_checked(capsys, tmp_path):
    yolo_roboflow(tmp_path)
    put(tmp_path / "train" / "labels" / "a.v1.txt", "0 1.5 0.5 0.1 0.1\n")
    assert "boxes outside" not in (message := refused(capsys, "coco", tmp_path, "--output", tmp_path / "out"))
    assert "lies outside its image" in message


def test_file_is_split_beside_itself(capsys, tmp_path):
    write_shapes(ShapesConfig(num_train=10, num_val=1), tmp_path)
    whole = tmp_path / "train.json"
    assert "train.json exists already" in refused(capsys, "split", whole)
    out = tmp_path / "parts"
    text = shown(capsys, "split", whole, "--output", out, "--val_share", "0.3")
    assert f"{out / 'train.json'}: 7 images" in text
    assert len(json.loads((out / "val.json").read_text())["images"]) == 3
    assert "too few" in refused(capsys, "split", out / "val.json", "--output", tmp_path / "more", "--val_share", "0.01")


def test_a_dataset_is_written_as_shards_and_ready_for_a_config(capsys, tmp_path):
    files = write_shapes(ShapesConfig(num_train=4, num_val=1, image_size=64), tmp_path)
    sources = ("--images", files.train_images, "--annotations", files.train_annotations)
    shards = tmp_path / "shards"
    text = shown(capsys, "shards", "--output", shards, *sources, "--shard_mb", "0.01")
    assert f"{shards}: 4 shards and their index" in text
    settings = yaml.safe_load(text[text.index("data:") :])
    settings["data"]["val"] = settings["data"]["train"]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert "8 image files decoded" in shown(capsys, "check", config, "--decode")
    assert "is not an empty folder" in refused(capsys, "shards", "--output", shards, *sources)
    assert "belong together" in refused(capsys, "shards", "--output", shards, *sources[:2])
    (shards / "000003.tar").unlink()
    assert "000003.tar: No such file" in refused(capsys, "check", config)
    assert f"{shards}: 3 shards and their index" in shown(capsys, "shards", "--output", shards)
    assert "6 image files decoded" in shown(capsys, "check", config, "--decode")
    (shards / "000002.tar").write_bytes((shards / "000002.tar").read_bytes()[:2000])
    assert "000002.tar: it is no whole tar file" in refused(capsys, "shards", "--output", shards)


def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path):
    voc_labelimg(tmp_path)
    xml = tmp_path / "a.xml"
    xml.write_text(xml.read_text().replace("cat", "\u732b"), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "deformdetr", "coco", str(tmp_path), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 0, process.stderr
    assert "\\u732b" in process.stdout
