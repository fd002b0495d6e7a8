"""The measurements for a GPU, run on a CPU at tiny sizes, and what is left of stages that fail or are cut off."""

import argparse
import json
import os
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest
import torch
from benchmarks import extension, gpu_stages, measure_gpu
from benchmarks.cases import OperatorSizes
from benchmarks.environment import ROOT
from benchmarks.operator import prepare_operator
from benchmarks.problem import largest_error

from deformdetr.kernels import ms_deform_attn, ms_deform_attn_backward


def test_every_stage_runs_without_a_gpu(tmp_path):
    # Stands in for NVIDIA's tool, and shows what it would have been given.
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    with zipfile.ZipFile(tmp_path / "missing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("missing/__init__.py", "")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.measure_gpu", "--device", "cpu", "--out", str(out), "--commit", "abc"]
    command += ["--wheels", str(tmp_path), "--tests=--version", "--providers", "ours", "ours_fused", "ours_half_sums"]
    changes = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | changes, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads((out / "summary.json").read_text())
    assert [(row["stage"], row["status"]) for row in rows] == [(name, "done") for name in measure_gpu.STAGES]
    assert sum(row["limit"] for row in rows[:1]) < 60
    assert (out / "packages" / "missing" / "__init__.py").exists()
    for stage in ("smoke", "operator", "tuned/operator", "model"):
        (path,) = (out / stage).glob("*.json")
        results = json.loads(path.read_text())
        assert results["runs"][0]["environment"]["commit"] == "abc"
        measured = {row["provider"] for row in results["rows"] if row["status"] == "measured"}
        assert measured >= ({"ours"} if stage == "model" else {"ours", "ours_fused", "grid_sample"})
    (path,) = (out / "rates").glob("*.json")
    assert [row["status"] for row in json.loads(path.read_text())["rows"]].count("measured") == 3 * (3 + 4)
    rows = [json.loads(line) for line in (out / "convolution.jsonl").read_text().splitlines()]
    assert [row["direction"] for row in rows] == ["forward", "forward and backward"]
    assert all(row["operator, microseconds"] > 0 < row["torchvision, microseconds"] for row in rows)
    assert "none" in json.loads((out / "launch_table.json").read_text())["launches"]
    assert "benchmarks.measure_gpu --stages smoke" in (out / "sanitizer.log").read_text()
    summary = (out / "summary.md").read_text()
    assert all(text in summary for text in ("- model: done", "## rates/", "| float32 x 4 |", "## operator/"))


# The tests run threads, and these processes do not.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_stage_that_is_cut_off_leaves_what_it_wrote_and_no_process(tmp_path):
    def slow(options):
        child = subprocess.Popen(["sleep", "60"])
        (options.out / "child").write_text(str(child.pid))
        os.write(1, b"begun\n")
        time.sleep(60)

    options = argparse.Namespace(out=tmp_path)
    row = measure_gpu.run_stage(slow, options, tmp_path / "slow.log", 1.0)
    assert row["status"] == "cut off"
    assert 1 <= row["seconds"] < 30
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    # It is gone, or a zombie until somebody asks for its exit status.
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_stage_that_fails_says_why_and_the_next_ones_run(tmp_path, monkeypatch, capsys):
    def failing(options):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(gpu_stages, "smoke", failing)
    monkeypatch.setattr(gpu_stages, "rates", lambda options: None)
    assert measure_gpu.main(["--out", str(tmp_path), "--stages", "smoke", "rates", "--device", "cpu"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("smoke: failed after")
    assert first.endswith("RuntimeError: no kernel image is available")
    assert second.startswith("rates: done")
    assert first in (tmp_path / "summary.md").read_text()


def test_wrong_results_of_ours_fail_a_stage(tmp_path, monkeypatch, make_row):
    wrong = make_row(seconds=None, status="disagrees", reason="error 0.5 exceeds 0.0001")
    monkeypatch.setattr(gpu_stages, "run_tasks", lambda *arguments, **options: [wrong])
    options = argparse.Namespace(device="cpu", out=tmp_path, minutes=1, providers=[], commit=None)
    with pytest.raises(RuntimeError, match=r"ours disagrees in .* float32 forward: error 0\.5"):
        gpu_stages.operator(options)


def test_the_extension_of_the_original_is_called_with_the_arguments_it_takes(monkeypatch, seed):
    def shapes_of(shapes, starts):
        assert torch.equal(starts, shapes.prod(1).cumsum(0) - shapes.prod(1))
        return [tuple(shape) for shape in shapes.tolist()]

    def forward(value, shapes, starts, locations, weights, step):
        assert step == len(value)
        return ms_deform_attn(value, shapes_of(shapes, starts), locations, weights)

    def backward(value, shapes, starts, locations, weights, grad_output, step):
        assert step == len(value)
        return ms_deform_attn_backward(grad_output, value, shapes_of(shapes, starts), locations, weights)

    stand_in = types.ModuleType(extension.NAME)
    stand_in.ms_deform_attn_forward, stand_in.ms_deform_attn_backward = forward, backward
    monkeypatch.setitem(sys.modules, extension.NAME, stand_in)
    sizes = OperatorSizes(((4, 5), (2, 3)), 2, 7, heads=4, channels=4, points=2)
    problem = prepare_operator(sizes, "float32", "forward_backward", "cpu", seed)
    contender = problem.candidates["original_extension"]()
    assert largest_error(contender.outputs(), contender.expected()) < problem.tolerance


def test_sources_of_the_original_are_made_to_compile():
    old = "if (value.type().is_cuda())\nAT_DISPATCH_FLOATING_TYPES(value.type(), f, value.data<scalar_t>() + 1)"
    new = "if (value.is_cuda())\nAT_DISPATCH_FLOATING_TYPES(value.scalar_type(), f, value.data_ptr<scalar_t>() + 1)"
    assert extension.modernize(old) == new
    assert extension.modernize(new) == new
