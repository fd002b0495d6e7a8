"""The stages of `benchmarks.measure_gpu`, which runs them in this order, each with a time limit."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch

from benchmarks import deform_conv, measure, tune
from benchmarks.cases import Case, Device, Dtype, ModelSizes, OperatorSizes, Task, select, tasks
from benchmarks.documents import long_table
from benchmarks.pages import digits, markdown
from benchmarks.providers import PROVIDERS
from benchmarks.results import load, wrong_rows_of_ours
from benchmarks.runner import Settings, run_tasks
from deformdetr.kernels._triton import _launch_table

# Triton's interpreter, which the CPU needs, takes a tenth of a second for one call.
_TINY = OperatorSizes(((2, 3),), 1, 2, heads=1, channels=8, points=1)
_SMALL = OperatorSizes(((4, 5), (2, 3)), 2, 9, heads=2, channels=32, points=2)
_TINY_MODEL = ModelSizes("demo", 32, 32, targets=1, queries=1, layers=1)
TASKS: Mapping[Device, Mapping[str, Sequence[Task]]] = {
    "cuda": {
        "smoke": tasks([Case("operator", "small", _SMALL, ("forward_backward",), cuda=get_args(Dtype))], "cuda"),
        "operator": tasks(select(["operator"], ["encoder_800x1333_b2", "decoder300_800x1333_b4"]), "cuda"),
        "rates": tasks(select(["rates"]), "cuda"),
        "model": tasks(select(["model"], ["multi_scale_640x800_b1"]), "cuda"),
    },
    "cpu": {
        "smoke": tasks([Case("operator", "tiny", _TINY, ("forward_backward",), cpu=("float16",))], "cpu"),
        "operator": tasks([Case("operator", "tiny", _TINY, ("forward",), cpu=("float32",))], "cpu"),
        "rates": tasks([replace(case.quick(), cpu=("float32",)) for case in select(["rates"])], "cpu"),
        "model": tasks([Case("model", "tiny", _TINY_MODEL, ("forward",), cpu=("float32",))], "cpu"),
    },
}


def smoke(options: argparse.Namespace) -> None:
    """Compare forward and backward with float64 in every dtype, on small inputs."""
    _run(options, "smoke", rounds=1)


def operator(options: argparse.Namespace) -> None:
    """Time the operator beside all providers, in an encoder and in a decoder."""
    _run(options, "operator")


def rates(options: argparse.Namespace) -> None:
    """Time additions to rows and reads of rows, in vectors of every dtype."""
    _run(options, "rates")


def launch(options: argparse.Namespace) -> None:
    """Write the fastest launch parameters into a table for the architecture."""
    if options.device == "cuda":
        with _stream(options.device):
            for entries in tune.tune():
                tune.write(options.out / _launch_table.TABLE, entries)
    else:
        found = tune.tune({"few": _TINY}, lambda sizes, dtype: tune.calls(sizes, dtype, "cpu"), lambda call: 1.0)
        tune.write(options.out / _launch_table.TABLE, next(found), "cpu")


def tuned(options: argparse.Namespace) -> None:
    """Time the operator again, with the launch parameters found."""
    table = json.loads((options.out / _launch_table.TABLE).read_text())
    with mock.patch.object(_launch_table, "read_table", return_value=table):
        operator(argparse.Namespace(**vars(options) | {"out": options.out / "tuned"}))


def model(options: argparse.Namespace) -> None:
    """Time a whole model's forward and training step."""
    # Without a GPU, products are small, and the model is not interpreted, which would take minutes.
    compiled = mock.patch.dict(os.environ, {} if options.device == "cuda" else {"TRITON_INTERPRET": "0"})
    with compiled, mock.patch.dict(measure.PRODUCT_SIZES, {"cpu": (64,)}):
        _run(options, "model", rounds=10, seconds=5)


def convolution(options: argparse.Namespace) -> None:
    """Time torchvision's deformable convolution beside the same by our operator."""
    sizes = deform_conv.SIZES if options.device == "cuda" else ((1, 2, 2, 3),)
    with _stream(options.device), (options.out / "convolution.jsonl").open("w") as file:
        for row in deform_conv.measure(options.device, sizes):
            print(json.dumps(row), file=file, flush=True)


def tests(options: argparse.Namespace) -> None:
    """Run the tests that need a GPU."""
    marked = "gpu" if options.device == "cuda" else "not gpu and not slow"
    results = options.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-v", "-m", marked, f"--junitxml={results}", *shlex.split(options.tests)]
    subprocess.run(command, check=True, env={**os.environ, "JAXTYPING_DISABLE": "1"})


def sanitizer(options: argparse.Namespace) -> None:
    """Run the first stage under compute-sanitizer, which checks every access to memory."""
    command = ["compute-sanitizer", "--target-processes", "all", "--error-exitcode", "9", sys.executable]
    command += ["-m", "benchmarks.measure_gpu", "--stages", "smoke", "--device", options.device]
    command += ["--out", str(options.out / "sanitizer"), "--minutes", str(options.minutes), "--providers", "ours*"]
    # Memory that PyTorch keeps would hide accesses beyond a tensor.
    subprocess.run(command, check=True, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def tables(out: Path) -> str:
    """Return the tables of all results that have been written."""
    paths = [path for path in sorted(out.rglob("*_*.json")) if path.parent.name in TASKS["cuda"]]
    parts = [f"## {path.relative_to(out)}\n\n{long_table(load(path))}" for path in paths]
    path = out / "convolution.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if rows:
        cells = [[each if isinstance(each, str) else digits(each) for each in row.values()] for row in rows]
        parts.append(f"## {path.name}\n\n{markdown(list(rows[0]), cells, left=2)}")
    return "\n\n".join(parts)


def _run(options: argparse.Namespace, stage: str, *, rounds: int = 20, seconds: float = 1.0) -> None:
    """Run a stage's tasks, store their results in its folder, and raise an error if ours are wrong."""
    patterns = options.providers or [each for each in PROVIDERS if not each.endswith(("_compiled", "_reference"))]
    rounds = rounds if options.device == "cuda" else 1
    settings = Settings(options.device, rounds, seconds, 0, patterns if stage in ("smoke", "operator") else ())
    command = f"python -m benchmarks.measure_gpu --minutes {options.minutes:g}"
    rows = run_tasks(TASKS[options.device][stage], settings, command, options.out / stage, commit=options.commit)
    if wrong := wrong_rows_of_ours(rows):
        raise RuntimeError("; ".join(wrong))


def _stream(device: Device) -> AbstractContextManager[Any]:
    """Return a stream in which graphs can be captured."""
    return torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()
