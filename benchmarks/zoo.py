"""Store what was trained here, with the hashes of its files, and write it into `docs/published_checkpoints.md`.

`python -m benchmarks.zoo NAME RUN [RUN ...]` reads finished run directories of one of the commands below, after
`deformdetr eval`. Several directories must hold the same checkpoint, bit for bit.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.bccd import STORED as BCCD
from benchmarks.environment import ROOT, describe_source
from benchmarks.pages import DOCS, RESULTS, Parts, markdown, read, store, write
from deformdetr.engine import Experiment, RunDirectory, demo_experiment, read_experiment

STORED = "zoo.json"
COMMANDS = {
    "demo": "deformdetr demo --output runs/demo",
    "bccd_cpu": "deformdetr train configs/bccd_cpu.yaml --output runs/bccd_cpu",
}
DATASETS = {"demo": "drawn shapes", "bccd_cpu": "BCCD"}


def experiment(name: str) -> Experiment:
    """Return the experiment of a command."""
    return demo_experiment() if name == "demo" else read_experiment(ROOT / "configs" / f"{name}.yaml")


def collect(name: str, runs: list[RunDirectory]) -> dict[str, Any]:
    """Read finished runs of one command.

    Raises:
        ValueError: If their best checkpoints differ.
    """
    hashes = {hashlib.sha256(run.best.read_bytes()).hexdigest() for run in runs}
    if len(hashes) > 1:
        raise ValueError(f"the best checkpoints of {name} differ: {', '.join(sorted(hashes))}")
    first = runs[0]
    environment = json.loads(first.environment.read_text(encoding="utf-8"))
    evaluation = json.loads(first.evaluation.read_text(encoding="utf-8"))
    epochs = first.read_metrics()
    return {
        **describe_source(COMMANDS[name]),
        "versions": {package: environment[package] for package in ("torch", "torchvision", "python", "deformdetr")},
        "epochs": len(epochs),
        "seconds": sum(row["seconds"] for row in epochs),
        "AP": evaluation["AP"],
        "AP50": evaluation["AP50"],
        "sha256": hashes.pop(),
        "repeated": len(runs),
    }


def parts() -> Parts:
    """Return the table of what was trained here."""
    entries = {**_before_hashes(), **read(STORED)}
    rows = [_row(name, entries[name]) for name in COMMANDS]
    heads = ["command", "dataset", "parameters", "epochs", "minutes", "AP", "AP50", "from", "SHA-256 of `best.pt`"]
    return {(DOCS / "published_checkpoints.md", "zoo"): markdown(heads, rows, left=2)}


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    with torch.device("meta"):
        model = experiment(name).model.replace(num_classes=3).build()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"`{COMMANDS[name]}`",
        DATASETS[name],
        f"{parameters:,}",
        str(entry["epochs"]),
        f"{entry['seconds'] / 60:.1f}",
        f"{entry['AP']:.3f}",
        f"{entry['AP50']:.3f}",
        f"torch {entry['versions']['torch'].split('+')[0]}, commit {entry['commit']}",
        f"`{entry['sha256']}`, {entry['repeated']} runs" if entry["sha256"] else "not kept",
    ]


def _before_hashes() -> dict[str, Any]:
    """Return the run on photographs that was stored without the hash of its checkpoint."""
    results = read(BCCD)
    epochs, evaluation = results["epochs"], results["evaluation"]
    measured = {"epochs": len(epochs), "seconds": sum(row["seconds"] for row in epochs), "sha256": None, "repeated": 1}
    return {"bccd_cpu": {**results, **measured, "AP": evaluation["AP"], "AP50": evaluation["AP50"]}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("runs", type=Path, nargs="+", help="finished run directories of the command")
    arguments = parser.parse_args()
    collected = collect(arguments.name, [RunDirectory(run) for run in arguments.runs])
    stored = read(STORED) if (RESULTS / STORED).exists() else {}
    store(STORED, {**stored, arguments.name: collected})
    write(parts())
