"""The commands for a model with masks."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from commands import shown
from deformdetr.data import write_shapes
from deformdetr.engine import demo_experiment, evaluate_run, load_run
from experiments import SETTINGS, tiny_experiment


@pytest.fixture
def config(tmp_path):
    """Return a config file with masks, for things and stuff whose second object has no segmentation."""
    files = write_shapes(tiny_experiment().data.replace(stuff=True), tmp_path / "shapes")
    path = tmp_path / "shapes" / "train.json"
    document = json.loads(path.read_text())
    del document["annotations"][1]["segmentation"]
    path.write_text(json.dumps(document))
    data = files.model_dump(mode="json", exclude_unset=True) | {"kind": "coco", "num_workers": 0}
    written = tmp_path / "tiny.yaml"
    written.write_text(yaml.safe_dump(SETTINGS | {"model": SETTINGS["model"] | {"masks": True}, "data": data}))
    return written


@pytest.mark.parametrize("options", [[], ["--decode"]], ids=["annotations", "images"])
def test_check_counts_objects_without_a_mask(options, capsys, config):
    assert "1 without a usable mask (dropped): 1 missing" in shown(capsys, "check", config, *options)


def test_train_eval_and_predict_succeed(capsys, config, tmp_path):
    run = tmp_path / "run"
    trained = shown(capsys, "train", config, "--output", run, "--train.epochs", "1")
    assert re.search(r"mask AP 0\.\d+  PQ 0\.\d+ ", trained)
    lines = shown(capsys, "eval", run).splitlines()
    assert [line for line in lines if line in ("boxes", "masks")] == ["boxes", "masks", "boxes", "masks"]
    quality = lines.index("panoptic quality")
    assert [line.split()[0] for line in lines[quality + 1 : quality + 5]] == ["PQ", "all", "things", "stuff"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["segm"]["AP"] is not None
    assert evaluation["panoptic"]["PQ"] is not None
    shown(capsys, "predict", run, tmp_path / "shapes" / "val", "--output", tmp_path / "found")
    written = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert all(len(image["masks"]) == len(image["boxes"]) for image in written["images"])
    names = [f"{number:06}.png" for number in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "found" / "panoptic").iterdir()) == names


def test_masks_are_an_option_of_training(capsys, config, tmp_path):
    shown(capsys, "train", config, "--output", tmp_path / "run", "--train.epochs", "1", "--model.masks", "false")
    assert "segm" not in load_run(tmp_path / "run")[1].metrics


@pytest.mark.parametrize(("options", "masks"), [([], False), (["--masks"], True)])
def test_the_demonstration_has_an_option_for_masks(options, masks, monkeypatch, tmp_path, capsys):
    asked = []

    def run_demo(out, experiment):
        asked.append(demo_experiment() if experiment is None else experiment)
        return SimpleNamespace(
            evaluation=SimpleNamespace(table="a table"), detections=out / "a.png", sampling_points=out / "b.png"
        )

    monkeypatch.setattr("deformdetr.cli._commands.run_demo", run_demo)
    assert "a table" in shown(capsys, "demo", "--output", tmp_path, *options)
    assert [experiment.model.masks for experiment in asked] == [masks]


@pytest.mark.slow
def test_two_processes_evaluate_masks_together(tmp_path, config):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = ["-m", "deformdetr", "train", str(config), "--output", str(tmp_path / "two"), "--train.batch_size", "2"]
    process = subprocess.run([*launch, *command], capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    _, checkpoint = load_run(tmp_path / "two", prefer=["last.pt"])
    found = evaluate_run(tmp_path / "two" / "last.pt", output=tmp_path / "alone.json")
    assert found.metrics == checkpoint.metrics
    assert found.metrics["segm"]["AP"] is not None
