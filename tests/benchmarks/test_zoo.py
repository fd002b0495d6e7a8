"""The table of what was trained here."""

import json

import pytest
from benchmarks import zoo

from deformdetr.engine import RunDirectory


def finished(path, content):
    path.mkdir()
    run = RunDirectory(path)
    run.best.write_bytes(content)
    versions = dict.fromkeys(("torch", "torchvision", "python", "deformdetr"), "1")
    run.environment.write_text(json.dumps(versions))
    run.evaluation.write_text(json.dumps({"AP": 0.25, "AP50": 0.5}))
    run.append_metrics({"epoch": 1, "seconds": 40.0})
    run.append_metrics({"epoch": 2, "seconds": 50.0})
    return run


def test_runs_of_one_command_must_give_one_checkpoint(tmp_path):
    runs = [finished(tmp_path / name, content) for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y"))]
    entry = zoo.collect("demo", runs[:2])
    assert (entry["epochs"], entry["seconds"], entry["AP"], entry["repeated"]) == (2, 90.0, 0.25, 2)
    assert len(entry["sha256"]) == 64
    with pytest.raises(ValueError, match="the best checkpoints of demo differ"):
        zoo.collect("demo", runs)
