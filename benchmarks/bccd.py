"""Store the results of a training run on photographs of blood cells, and write them into the README and the guide.

`python -m benchmarks.bccd RUN` reads a run directory of `configs/bccd_cpu.yaml`, after `deformdetr eval`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_source
from benchmarks.pages import DOCS, README, Parts, markdown, read, source, store, write
from deformdetr.engine import RunDirectory

STORED = "bccd_cpu.json"
COMMANDS = (
    "deformdetr train configs/bccd_cpu.yaml --output runs/bccd_cpu",
    "deformdetr eval runs/bccd_cpu",
)


def collect(run: RunDirectory) -> dict[str, Any]:
    """Read the files of a run, without those entries that depend on where it was stored."""
    environment = json.loads(run.environment.read_text(encoding="utf-8"))
    evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
    versions = {name: environment[name] for name in ("torch", "torchvision", "python", "deformdetr")}
    return {
        **describe_source(*COMMANDS),
        "versions": versions,
        "threads": environment["threads"],
        "epochs": run.read_metrics(),
        "evaluation": {name: value for name, value in evaluation.items() if name != "data"},
    }


def parts() -> Parts:
    """Return a summary for the README and, with loss and precision over the epochs, for the guide."""
    results = read(STORED)
    epochs, metrics = results["epochs"], results["evaluation"]
    minutes = sum(row["seconds"] for row in epochs) / 60
    summary = (
        "A two-stage Deformable DETR of 1.3 million parameters, trained from scratch on the 205 photographs of BCCD, a "
        f"dataset of blood cells: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on its 87 validation photographs "
        f"(pycocotools, best checkpoint, epoch {metrics['epoch']}). The {len(epochs)} epochs took {minutes:.0f} "
        f"minutes in all on {results['threads']} thread of a shared x86-64 CPU, and the loss fell from "
        f"{epochs[0]['loss']:.2f} to {epochs[-1]['loss']:.2f}. {source(STORED)}"
    )
    names = ("AP", "AP50", "AP75")
    rows = (
        [str(row["epoch"]), f"{row['loss']:.2f}", *(f"{row[name]:.3f}" for name in names)]
        for row in epochs
        if row.get("AP") is not None
    )
    table = markdown(["epoch", "loss", *names], rows, left=0)
    return {(README, ""): summary, (DOCS / "training.md", ""): f"{summary}\n\n{table}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory to read the results of")
    store(STORED, collect(RunDirectory(parser.parse_args().run)))
    write(parts())
