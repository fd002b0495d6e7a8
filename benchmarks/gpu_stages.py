"""The stages of `benchmarks.measure_gpu`, which runs them in this order, each with a time limit."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measure, tune
from benchmarks import rates as row_rates
from benchmarks.cases import Case, Device, ModelSizes, OperatorSizes, Task, select, tasks
from benchmarks.documents import long_table
from benchmarks.pages import digits, markdown
from benchmarks.providers import PROVIDERS
from benchmarks.results import Row, load
from benchmarks.runner import Settings, run_tasks
from deformdetr.kernels._triton import _launch_table

_DTYPES = ("float32", "float16", "bfloat16")
_SMALL = OperatorSizes(((4, 5), (2, 3)), 2, 9, heads=2, channels=32, points=2)
# Triton's interpreter takes a tenth of a second for one call.
_TINY = OperatorSizes(((2, 3),), 1, 2, heads=1, channels=8, points=1)
_CASES = ("encoder_800x1333_b2", "decoder300_800x1333_b4")


def smoke(options: argparse.Namespace) -> None:
    """Compare forward and backward with float64 in every dtype, on small inputs."""
    sizes, dtypes = (_SMALL, _DTYPES) if options.device == "cuda" else (_TINY, ("float16",))
    case = Case("operator", "small", sizes, ("forward_backward",))
    _run(options, "smoke", [Task(case, dtype, "forward_backward") for dtype in dtypes], rounds=1)


def operator(options: argparse.Namespace) -> None:
    """Time the operator beside all providers, in an encoder and in a decoder."""
    if options.device == "cuda":
        chosen = tasks(select(["operator"], _CASES), "cuda")
    else:
        chosen = [Task(Case("operator", "tiny", _TINY, ("forward",)), "float32", "forward")]
    _run(options, "operator", chosen)


def rates(options: argparse.Namespace) -> None:
    """Measure the rates of `benchmarks.rates`."""
    with _stream(options.device), (options.out / "rates.jsonl").open("w") as file:
        for row in row_rates.measure(options.device, row_rates.ACCESSES if options.device == "cuda" else 32):
            print(json.dumps(row), file=file, flush=True)


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
    if options.device == "cuda":
        _run(options, "model", tasks(select(["model"], ["multi_scale_640x800_b1"]), "cuda"), rounds=10, seconds=5)
    else:
        case = Case("model", "tiny", ModelSizes("demo", 32, 32, targets=1, queries=1, layers=1), ("forward",))
        # Interpreted, a model takes minutes.
        compiled = mock.patch.dict(os.environ, {"TRITON_INTERPRET": "0"})
        with compiled, mock.patch.object(measure, "PRODUCT_SIZES", {"cpu": (64,)}):
            _run(options, "model", [Task(case, "float32", "forward")])


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
    paths = [path for path in sorted(out.rglob("*_*.json")) if path.parent.name in ("smoke", "operator", "model")]
    parts = [f"## {path.relative_to(out)}\n\n{long_table(load(path))}" for path in paths]
    if (out / "rates.jsonl").exists():
        rows = [json.loads(line) for line in (out / "rates.jsonl").read_text().splitlines()]
        if rows:
            cells = [[each if isinstance(each, str) else digits(each) for each in row.values()] for row in rows]
            parts.append(f"## rates.jsonl\n\n{markdown(list(rows[0]), cells, left=3)}")
    return "\n\n".join(parts)


def _run(
    options: argparse.Namespace, name: str, chosen: Sequence[Task], *, rounds: int = 20, seconds: float = 1.0
) -> list[Row]:
    """Run tasks, store their results in a folder, and raise an error if ours are wrong."""
    patterns = options.providers or [each for each in PROVIDERS if not each.endswith(("_compiled", "_reference"))]
    is_operator = all(task.case.kind == "operator" for task in chosen)
    quick = options.device == "cpu"
    settings = Settings(options.device, 1 if quick else rounds, seconds, 0, patterns if is_operator else ())
    command = f"python -m benchmarks.measure_gpu --minutes {options.minutes:g}"
    rows = run_tasks(chosen, settings, command, options.out / name, commit=options.commit)
    wrong = [row for row in rows if row.provider.startswith("ours") and row.status in ("failed", "disagrees")]
    if wrong:
        raise RuntimeError("; ".join(f"{row.provider} {row.dtype} {row.status}: {row.reason}" for row in wrong))
    return rows


def _stream(device: Device) -> AbstractContextManager[Any]:
    """Return a stream in which graphs can be captured."""
    return torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()
