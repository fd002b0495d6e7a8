"""`deformdetr convert`, with arguments as typed."""

import re

import pytest
import torch

from checkpoints import tiny_config
from deformdetr.cli import main
from deformdetr.integrations import load_checkpoint, to_original, translate_state_dict
from local_server import point_hub_to, serving


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_config(num_classes=91, with_box_refine=True, two_stage=True).build()
    with torch.no_grad():
        model.neck.levels[2].conv.bias[1] = 0.125
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": to_original(model.state_dict()), "epoch": 49}, path)
    return path


def run(capsys, *arguments):
    status = main(["convert", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    # The report may break its lines anywhere.
    return status, re.sub(r"[\s│]+", " ", printed.out), printed.err


def test_report_says_what_was_recognized_changed_and_lost(capsys, checkpoint, tmp_path):
    target = tmp_path / "mmdetection.pth"
    status, text, error = run(capsys, checkpoint, target, "--to", "mmdetection_3")
    assert status == 2
    assert "biases of the neck's convolutions" in error
    assert "largest value 0.125: neck.levels.0.conv.bias" in error
    assert "--allow_loss" in error
    assert not target.exists()
    status, text, _ = run(capsys, checkpoint, target, "--to", "mmdetection_3", "--allow_loss")
    assert status == 0
    assert "weights from entry model" in text
    assert "recognized: original, Deformable DETR: box refinement, two-stage, 4 feature levels" in text
    assert re.search(r"second names of heads dropped (\d+) (?!\1)\d+", text)
    assert re.search(r"\d+ renamed", text)
    assert "neck.levels.0.conv.bias" in text
    assert "4 0.125" in text
    assert f"{target}: 0." in text
    model = tiny_config(num_classes=91, with_box_refine=True, two_stage=True).build()
    assert load_checkpoint(model, target).format == "mmdetection_3"


def test_lossless_conversion_is_reported_with_notes(capsys, checkpoint, tmp_path):
    status, text, _ = run(capsys, checkpoint, tmp_path / "model.safetensors", "--to", "detrex")
    assert status == 0
    assert "nothing lost" in text
    assert "note: detrex clips references" in text


def test_equal_heads_are_converted_if_told_whether_they_are_shared(capsys, tmp_path):
    state = tiny_config(with_box_refine=True).build().state_dict()
    for name in state:
        state[name] = state[re.sub(r"(_heads)\.\d", r"\1.0", name)].clone()
    theirs, _ = translate_state_dict(state, "mmdetection_3")
    torch.save({"state_dict": {name: tensor.clone() for name, tensor in theirs.items()}}, tmp_path / "fresh.pth")
    status, _, error = run(capsys, tmp_path / "fresh.pth", tmp_path / "out.pth", "--to", "deformdetr")
    assert status == 2
    assert "--share_heads" in error
    for answer, heads in (("true", {"0"}), ("false", {"0", "1", "2"})):
        options = ("--to", "deformdetr", "--share_heads", answer, "--force")
        assert run(capsys, tmp_path / "fresh.pth", tmp_path / "out.pth", *options)[0] == 0
        written = torch.load(tmp_path / "out.pth", weights_only=True)
        assert {name.split(".")[1] for name in written if name.startswith("class_heads.")} == heads


def test_classes_of_coco_are_selected_only_on_request(capsys, checkpoint, tmp_path):
    run(capsys, checkpoint, tmp_path / "all.pth", "--to", "detrex")
    assert len(torch.load(tmp_path / "all.pth", weights_only=True)["model"]["class_embed.0.bias"]) == 91
    status, text, _ = run(capsys, checkpoint, tmp_path / "some.pth", "--to", "detrex", "--coco_91_to_80")
    assert status == 0
    assert "80 of which are kept" in text
    assert len(torch.load(tmp_path / "some.pth", weights_only=True)["model"]["class_embed.0.bias"]) == 80


def test_an_existing_file_is_replaced_only_with_force(capsys, checkpoint, tmp_path):
    target = tmp_path / "out.pth"
    target.write_text("precious")
    status, _, error = run(capsys, checkpoint, target, "--to", "detrex")
    assert status == 2
    assert "--force" in error
    assert target.read_text() == "precious"
    assert run(capsys, checkpoint, target, "--to", "detrex", "--force")[0] == 0
    assert target.read_bytes()[:2] == b"PK"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth", "out.pth", "--to", "detrex"], "there is no file none.pth"),
        (["checkpoint.pth", "out.txt", "--to", "detrex"], "out.txt must end in one of"),
        (["checkpoint.pth", "out.pth", "--to", "detectron"], "--to: Input should be 'deformdetr', 'original'"),
        (["checkpoint.pth", "out.pth"], "--to"),
        (["checkpoint.pth", "out.pth", "--to", "detrex", "--backbone", "resnet"], "detrex has no ResNet of its own"),
    ],
)
def test_errors_are_one_message(capsys, checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert message in error
    assert not (tmp_path / "out.pth").exists()


def test_checkpoints_are_converted_by_url_and_by_name(capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.files["/checkpoint.pth"] = checkpoint.read_bytes()
        server.repositories["user/cells"] = {"checkpoint.pth": checkpoint.read_bytes()}
        for number, source in enumerate((f"{server.url}/checkpoint.pth", "user/cells", "user/cells:checkpoint.pth")):
            target = tmp_path / f"{number}.safetensors"
            status, text, _ = run(capsys, source, target, "--to", "deformdetr")
            assert (status, target.exists()) == (0, True)
            assert "recognized: original" in text
        for source, message in {
            "user/gone": "no repository on the Hub of this name",
            f"{server.url}/gone.pth": "there is nothing at",
        }.items():
            status, _, error = run(capsys, source, tmp_path / "gone.safetensors", "--to", "deformdetr")
            assert status == 2
            assert message in error
