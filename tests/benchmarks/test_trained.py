"""The table of what was trained here."""

import json

import pytest
from benchmarks import trained

from deformdetr.engine import RunDirectory


def finished(path, content):
    path.mkdir()
    run = RunDirectory(path)
    run.best.write_bytes(content)
    versions = dict.fromkeys(("torch", "torchvision", "python", "deformdetr"), "1")
    run.environment.write_text(json.dumps({**versions, "threads": 1}))
    run.evaluation.write_text(json.dumps({"epoch": 2, "AP": 0.25, "AP50": 0.5, "AP75": 0.2, "images": 3}))
    run.append_metrics({"epoch": 1, "seconds": 40.0, "loss": 3.0})
    run.append_metrics({"epoch": 2, "seconds": 50.0, "loss": 2.0, "AP": 0.25, "AP50": 0.5, "AP75": 0.2})
    return run


def test_runs_of_one_command_must_give_one_checkpoint(tmp_path):
    runs = [finished(tmp_path / name, content) for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y"))]
    entry = trained.collect("demo", runs[:2])
    assert (entry["epochs"], entry["seconds"], entry["best"]["AP"], entry["repeated"]) == (2, 90.0, 0.25, 2)
    assert len(entry["sha256"]) == 64
    with pytest.raises(ValueError, match="the best checkpoints of demo differ"):
        trained.collect("demo", runs)
