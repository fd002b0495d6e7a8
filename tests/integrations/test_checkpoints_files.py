"""Files of every format: written whole or not at all, and read back."""

import argparse
import pathlib

import pytest
import torch

from checkpoints import assert_equal, tiny_config
from deformdetr import Detector
from deformdetr.integrations import (
    CheckpointError,
    convert_checkpoint,
    load_checkpoint,
    save_checkpoint,
    to_original,
    translate_state_dict,
)
from disks import disk_space

FORMATS = ("deformdetr", "original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex")
CONTAINERS = {"original": "model", "mmdetection_2": "state_dict", "mmdetection_3": "state_dict", "detrex": "model"}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", FORMATS)
def test_written_files_load_again(name, suffix, tmp_path):
    source, model = (tiny_config(with_box_refine=True).build() for _ in range(2))
    path = tmp_path / f"model{suffix}"
    report = save_checkpoint(source, path, name)
    assert (report.source, report.target) == ("deformdetr", name)
    assert report.lossless
    loaded = load_checkpoint(model, path)
    assert (loaded.format, loaded.fits) == (name, True)
    assert_equal(model.state_dict(), source.state_dict())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_pytorch_have_the_layout_of_the_implementation(name, tmp_path):
    model = tiny_config().build()
    save_checkpoint(model, tmp_path / "model.pth", name)
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    state = content[CONTAINERS[name]] if name in CONTAINERS else content
    assert_equal(state, translate_state_dict(model.state_dict(), name)[0])


def test_second_names_take_no_place_in_files_of_pytorch(tmp_path):
    model = tiny_config().build()
    save_checkpoint(model, tmp_path / "shared.pth", "original")
    state = torch.load(tmp_path / "shared.pth", weights_only=True)["model"]
    assert state["class_embed.0.weight"].data_ptr() == state["class_embed.2.weight"].data_ptr()


def test_weights_of_a_detector_are_those_of_its_model(tmp_path):
    config = tiny_config()
    model = config.build()
    save_checkpoint(
        Detector(model, config.build_criterion(), config.build_postprocess()), tmp_path / "a.pth", "original"
    )
    assert_equal(torch.load(tmp_path / "a.pth", weights_only=True)["model"], to_original(model.state_dict()))


def test_a_training_checkpoint_of_the_original_becomes_any_other_file(tmp_path):
    state = to_original(tiny_config(two_stage=True, with_box_refine=True).build().state_dict())
    training = {"optimizer": {"state": {}}, "epoch": 49, "args": argparse.Namespace(lr=2e-4)}
    torch.save({"model": state, **training}, tmp_path / "checkpoint.pth")
    report = convert_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "detrex.safetensors", "detrex")
    assert (report.source, report.target, report.read) == ("original", "detrex", len(state))
    assert "two-stage" in str(report)
    assert "[0.00001, 0.99999]" in str(report)
    back = convert_checkpoint(tmp_path / "detrex.safetensors", tmp_path / "back.pth", "original")
    assert back.written == len(state)
    assert_equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)


def test_files_with_losses_are_written_only_if_allowed(tmp_path):
    model = tiny_config().build()
    torch.nn.init.ones_(model.neck.levels[0].conv.bias)
    path = tmp_path / "model.pth"
    path.write_text("precious")
    with pytest.raises(
        ValueError, match=r"4 entries, largest value 1: neck\.levels\.0\.conv\.bias, .*\npass allow_loss=True"
    ):
        save_checkpoint(model, path, "mmdetection_3", overwrite=True)
    assert path.read_text() == "precious"
    save_checkpoint(model, tmp_path / "ours.pth")
    with pytest.raises(
        CheckpointError, match=r"ours\.pth: deformdetr to mmdetection_3 would lose\n  biases of the neck"
    ):
        convert_checkpoint(tmp_path / "ours.pth", path, "mmdetection_3", overwrite=True)
    assert path.read_text() == "precious"
    report = convert_checkpoint(tmp_path / "ours.pth", path, "mmdetection_3", overwrite=True, allow_loss=True)
    assert [loss.largest for loss in report.unasked] == [1]
    assert load_checkpoint(tiny_config().build(), path).format == "mmdetection_3"


def test_a_value_that_is_not_a_number_is_a_loss(tmp_path):
    state = to_original(tiny_config().build().state_dict())
    for extra in (torch.tensor([0.0, torch.nan]), torch.tensor(True), torch.tensor(3)):
        with pytest.raises(
            ValueError, match=r"entries without a counterpart, 2 entries, largest value (nan|1|3): zero, "
        ):
            translate_state_dict(state | {"zero": torch.zeros(2), "zzz": extra}, "detrex")
    _, report = translate_state_dict(state | {"zero": torch.zeros(2), "none": torch.zeros(0)}, "detrex")
    assert report.lossless


def test_files_are_replaced_only_on_request(tmp_path):
    path = tmp_path / "model.pth"
    path.write_text("precious")
    model = tiny_config().build()
    with pytest.raises(FileExistsError, match=r"model\.pth exists already"):
        save_checkpoint(model, path)
    assert path.read_text() == "precious"
    save_checkpoint(model, path, overwrite=True)
    with pytest.raises(FileExistsError, match=r"model\.pth exists already"):
        convert_checkpoint(path, path, "original")
    convert_checkpoint(path, path, "original", overwrite=True)
    assert load_checkpoint(model, path).format == "original"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_text("precious")

    model = tiny_config().build()
    with (
        disk_space(20_000),
        pytest.raises(OSError, match=rf"model\{suffix}.*cannot be written|cannot be written.*model"),
    ):
        save_checkpoint(model, path, overwrite=True)
    assert path.read_text() == "precious"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_invalid_paths_raise(tmp_path):
    model = tiny_config().build()
    with pytest.raises(ValueError, match=r"model\.safetensor must end in one of \.pth, .*\.safetensors"):
        save_checkpoint(model, tmp_path / "model.safetensor")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        save_checkpoint(model, tmp_path / "nowhere" / "model.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        save_checkpoint(model, tmp_path / "folder.pth", overwrite=True)


def test_sources_that_cannot_be_converted_raise_with_the_reason(tmp_path):
    state = to_original(tiny_config().build().state_dict())
    torch.save({"model": state, "dir": pathlib.PurePosixPath("/")}, tmp_path / "path.pth")
    with pytest.raises(CheckpointError, match=r"it holds a pathlib\.(_local\.)?PurePosixPath, and only tensors"):
        convert_checkpoint(tmp_path / "path.pth", tmp_path / "out.pth", "detrex")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: not a checkpoint of Deformable DETR"):
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "out.pth", "detrex")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert_checkpoint(tmp_path / "none.pth", tmp_path / "out.pth", "detrex")
    assert not (tmp_path / "out.pth").exists()
