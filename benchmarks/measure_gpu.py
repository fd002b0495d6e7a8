"""Measure in a few minutes all that a GPU can tell: `make measure-gpu`.

`python -m benchmarks.measure_gpu --out FOLDER` runs the stages of `benchmarks.gpu_stages` one after the other, each in
a process of its own, with a share of the time that is left. They write their results as they go, so that a stage that
fails or takes too long leaves what it has, and the next one begins. `FOLDER/summary.md` says after every stage what
has been done. This file imports nothing but Python's own modules: packages may come as wheels.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Stages in their order, with their shares of the time. What a stage leaves goes to those after it.
STAGES = {
    "smoke": 10,
    "operator": 22,
    "rates": 8,
    "launch": 20,
    "tuned": 14,
    "model": 10,
    "convolution": 4,
    "tests": 10,
    "sanitizer": 6,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if a stage failed or was cut off."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    options.out = options.out.resolve()
    packages = options.out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for path in options.wheels:
        for wheel in sorted(path.glob("*.whl")) if path.is_dir() else [path]:
            zipfile.ZipFile(wheel).extractall(packages)
    # After the packages that are installed, for this process and for those that it starts.
    sys.path.append(str(packages))
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", "."), str(packages)])
    if options.extension:
        # Compiling takes a minute or two, in which the first stages run.
        command = [sys.executable, "-m", "benchmarks.extension", str(options.extension), str(packages)]
        with (options.out / "extension.log").open("w") as log:
            subprocess.Popen(command, stdout=log, stderr=log)
    # Imported once, before the processes of the stages are forked.
    stages: Any = importlib.import_module("benchmarks.gpu_stages")
    chosen = options.stages or list(STAGES)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(chosen):
        left = deadline - time.monotonic()
        limit = left * STAGES[name] / sum(STAGES[each] for each in chosen[index:])
        rows.append({"stage": name, "status": "running", "limit": round(limit, 1)})
        _write(options.out, rows)
        rows[-1] |= run_stage(getattr(stages, name), options, options.out / f"{name}.log", limit)
        _write(options.out, rows)
        print(_describe(rows[-1]), flush=True)
    _write(options.out, rows, stages.tables(options.out))
    return int(any(row["status"] != "done" for row in rows))


def run_stage(stage: Callable[[argparse.Namespace], None], options: Any, log: Path, limit: float) -> dict[str, Any]:
    """Run a stage in a forked process, and return its status and how long it took.

    Args:
        stage: The function, which may write anything below `options.out`.
        options: Its argument.
        log: File for what it prints.
        limit: Seconds after which it and all that it started are killed.
    """
    started = time.monotonic()
    # The parent has not used the GPU, so that the child can.
    process = multiprocessing.get_context("fork").Process(target=_enter, args=(stage, options, log))
    process.start()
    try:
        process.join(max(0.0, limit))
    finally:
        is_cut = process.is_alive()
        if is_cut:
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    seconds = round(time.monotonic() - started, 1)
    if is_cut:
        return {"status": "cut off", "seconds": seconds}
    if process.exitcode == 0:
        return {"status": "done", "seconds": seconds}
    last = (log.read_text().strip().splitlines() or [""])[-1]
    return {"status": "failed", "seconds": seconds, "reason": last[:300] or f"exit code {process.exitcode}"}


def _enter(stage: Callable[[argparse.Namespace], None], options: argparse.Namespace, log: Path) -> None:
    # A group of its own, with all that it starts.
    os.setpgid(0, 0)
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(opened, descriptor)
    sys.stdout = sys.stderr = os.fdopen(opened, "w", buffering=1)
    stage(options)


def _write(out: Path, rows: Sequence[dict[str, Any]], tables: str = "") -> None:
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["# Stages", "", *(f"- {_describe(row)}" for row in rows), "", tables]
    (out / "summary.md").write_text("\n".join(lines).rstrip() + "\n")


def _describe(row: dict[str, Any]) -> str:
    taken = f" after {row['seconds']} of at most {row['limit']} s" if "seconds" in row else ""
    return f"{row['stage']}: {row['status']}{taken}" + (f": {row['reason']}" if "reason" in row else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to")
    add("--minutes", type=float, default=9.0, help="time for all stages (default: %(default)s)")
    add("--stages", choices=STAGES, nargs="+", help="only these, in this order")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to see that it works")
    add("--wheels", type=Path, nargs="+", default=[], help="wheels of packages that are missing, or folders of them")
    add("--extension", type=Path, help="folder of the original's CUDA sources (models/ops/src), to be compiled")
    add("--providers", nargs="+", default=[], help="patterns of providers of the operator; default: all but compiled")
    add("--tests", default="tests/kernels tests", help="what pytest runs, the longest last (default: %(default)s)")
    add("--commit", help="of the code, where there is no git to ask")
    return parser


if __name__ == "__main__":
    # So that the stage that runs is killed, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
