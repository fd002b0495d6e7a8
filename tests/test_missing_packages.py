"""What works without packages that are not installed by default, and what says which one is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deformdetr import __version__, preset

OPTIONAL = (
    "accelerate",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "rich",
    "timm",
    "transformers",
    "triton",
    "yaml",
)

# Finders that find nothing of these packages, as where they are not installed.
WITHOUT_THE_OPTIONAL = f"""
import sys

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {OPTIONAL} else self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Finder, sys.meta_path)
"""

# Runs commands, a list of lists of arguments, and prints the status and the output of each.
RUN_COMMANDS = """
import contextlib, io, json
from deformdetr.cli import main

results = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code or 0
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""

CALL_THE_OPERATOR = """
import torch
from deformdetr import ms_deform_attn
ms_deform_attn(torch.ones(1, 1, 1, 4), [(1, 1)], torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
"""


def run_without(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_OPTIONAL + code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def run_commands(*commands: list[str]) -> list[tuple[int, str, str]]:
    process = run_without(RUN_COMMANDS, json.dumps(commands))
    if process.returncode:
        pytest.fail(process.stderr)
    return [(status, out, err) for status, out, err in json.loads(process.stdout)]


def test_base_commands_run_on_base_dependencies(tmp_path: Path):
    model = preset("demo").build()
    source, target = tmp_path / "model.safetensors", tmp_path / "converted.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, source)
    words = {
        ("--help",): "Train, evaluate and use Deformable DETR detectors",
        ("--version",): __version__,
        ("presets",): "deformable_detr_r50_two_stage",
        ("train", "--help"): "--output",
        ("convert", str(source), str(target), "--to", "detrex"): "recognised",
    }
    for (status, out, err), expected in zip(run_commands(*map(list, words)), words.values(), strict=True):
        assert status == 0, err
        assert expected in out
    assert set(load_file(target)) != set(load_file(source))


def test_commands_that_need_more_say_what_to_install_and_nothing_else():
    for status, out, err in run_commands(["config"], ["train", "detector.yaml"]):
        assert (status, out) == (2, "")
        assert 'pip install "deformdetr[train]"' in err
        assert len(err.splitlines()) == 1


def test_cpu_needs_no_triton_and_gpu_says_what_to_install():
    assert run_without(CALL_THE_OPERATOR).returncode == 0
    # The interpreter stands for a GPU.
    process = run_without(CALL_THE_OPERATOR, TRITON_INTERPRET="1")
    assert "ModuleNotFoundError: the kernels for GPUs need triton" in process.stderr
    assert "pip install triton" in process.stderr
