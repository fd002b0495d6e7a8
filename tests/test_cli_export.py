"""`deformdetr export`, with arguments as typed."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from coco_files import coco_document, write_coco
from deformdetr.cli import _export, main
from deformdetr.data import DataConfig, build_dataset
from deformdetr.engine import load_run, train
from deformdetr.integrations._export import _onnx
from experiments import tiny_experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    # The time that tracing takes grows with levels and layers.
    small = {"num_feature_levels": 1, "num_decoder_layers": 1, "two_stage": False, "with_box_refine": False}
    experiment = tiny_experiment(epochs=1)
    return train(
        experiment.replace(model=experiment.model.replace(**small)), tmp_path_factory.mktemp("export") / "run"
    ).run


def exported(capsys, *arguments):
    status = main(["export", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    # The report may break its lines anywhere.
    return status, re.sub(r"[\s│┃]+", " ", printed.out), printed.err


def test_evaluation_images_are_used_for_the_comparison_if_available(tmp_path, capsys):
    annotations = write_coco(tmp_path, coco_document())
    places = {"images": tmp_path, "annotations": annotations}
    files = {f"{split}_{kind}": path for split in ("train", "val") for kind, path in places.items()}
    data = DataConfig(**files, eval_short_side=32)
    label_map = build_dataset(data, "val").label_map
    images = _export._own_images(data, label_map)
    assert len(images) == 2
    assert all(min(image.shape[1:]) == 32 for image in images)
    assert capsys.readouterr().err == ""
    annotations.unlink()
    assert [image.shape[1:] for image in _export._own_images(data, label_map)] == [(320, 256), (224, 320)]
    assert "comparing on drawn shapes, because the evaluation images are not available:" in capsys.readouterr().err


@pytest.mark.compile
def test_file_is_compared_and_detects_in_other_sizes(capsys, run, tmp_path, monkeypatch):
    import onnx
    import onnxruntime

    path, photograph = tmp_path / "model.onnx", tmp_path / "photograph.png"
    Image.effect_noise((120, 90), 80).convert("RGB").save(photograph)
    status, text, error = exported(
        capsys, run, "--onnx", path, "--postprocess", "--sampling", "gather", "--images", photograph
    )
    assert status == 0, error
    assert "images height width logits boxes detections" in text
    assert re.search(r" 1 90 120 \d\.\de-\d\d ", text)
    assert re.search(r" 2 90 120 \d\.\de-\d\d ", text)
    assert "opset 18, gather" in text

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kept = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert kept["names"] == ["circle", "rectangle", "triangle"]
    assert len(kept["image_mean"]) == len(kept["image_std"]) == 3
    _, checkpoint = load_run(run)
    images, sizes = torch.randn(3, 3, 100, 70), torch.tensor([[200, 140]] * 3)
    mask = torch.zeros(3, 100, 70, dtype=torch.bool)
    with torch.no_grad():
        expected = checkpoint.experiment.model.build_postprocess()(checkpoint.build()(images, mask), sizes)
    inputs = {"images": images.numpy(), "padding_mask": mask.numpy(), "image_sizes": sizes.numpy()}
    boxes, scores = session.run(["boxes", "scores"], inputs)
    torch.testing.assert_close(torch.from_numpy(scores), torch.stack([each["scores"] for each in expected]))
    assert boxes.shape == (3, 20, 4)

    # The example detects with nothing but the file.
    example = Path(__file__).parents[1] / "examples" / "onnx_detector.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(path), str(photograph)])
    runpy.run_path(str(example), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert re.fullmatch(r"(circle|rectangle|triangle) 0\.\d\d at \[.*\]", lines[0])

    # A tolerance below any rounding error, on the drawn shapes that are used if no images are given.
    before, content = path.read_bytes(), onnx.load(path)
    monkeypatch.setattr(_onnx, "_translate", lambda *_: content)
    status, _, error = exported(capsys, run, "--onnx", path, "--postprocess", "--tolerance", "1e-12", "--force")
    assert status == 2
    assert "differs from the model by more than 1e-12, and is not kept" in error
    assert "3 images of 320 x 320: logits" in error
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "photograph.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--onnx", "out.onnx"], "there is no file none"),
        (["RUN", "--onnx", "out.pt"], "out.pt must end in .onnx"),
        (["RUN", "--onnx", "there.onnx"], "there.onnx exists already; overwrite=True, or --force"),
        (["RUN", "--onnx", "out.onnx", "--opset", "16"], "opset must be 17 or newer"),
        (
            ["RUN", "--onnx", "out.onnx", "--sampling", "nearest"],
            "--sampling: Input should be 'grid_sample', 'gather', 'tensorrt_v1' or 'tensorrt_v2'",
        ),
        (["RUN", "--onnx", "out.onnx", "--images", "there.onnx"], "there.onnx: cannot be read as an image"),
        (["RUN"], "--onnx"),
    ],
)
def test_errors_are_one_message(capsys, run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("precious")
    status, _, error = exported(capsys, *(run if argument == "RUN" else argument for argument in arguments))
    assert status == 2
    assert message in error
    assert [each.read_text() for each in tmp_path.iterdir()] == ["precious"]


def test_missing_packages_are_named_with_the_extra(capsys, run, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else found(name, *rest))
    status, _, error = exported(capsys, run, "--onnx", tmp_path / "out.onnx")
    assert status == 2
    assert error == 'deformdetr: onnx is not installed: pip install "deformdetr[onnx]"\n'
