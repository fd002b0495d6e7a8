"""Store what was trained here, with the hashes of its files, and write it into the README and the pages.

`python -m benchmarks.trained NAME RUN [RUN ...]` reads finished run directories of one of the commands below, after
`deformdetr eval`. Several directories must hold the same checkpoint, bit for bit.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT, describe_source
from benchmarks.pages import DOCS, README, Parts, markdown, read, source, store, write
from deformdetr.engine import Experiment, RunDirectory, demo_experiment, read_experiment

STORED = "trained.json"
COMMANDS = {
    "demo": "deformdetr demo --output runs/demo",
    "bccd_cpu": "deformdetr train configs/bccd_cpu.yaml --output runs/bccd_cpu",
}
DATASETS = {"demo": "drawn shapes", "bccd_cpu": "BCCD"}
_METRICS = ("AP", "AP50", "AP75")


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
    environment, evaluation = (
        json.loads(path.read_text(encoding="utf-8")) for path in (runs[0].environment, runs[0].evaluation)
    )
    rows = runs[0].read_metrics()
    return {
        **describe_source(COMMANDS[name], f"deformdetr eval runs/{name}"),
        "versions": {package: environment[package] for package in ("torch", "torchvision", "python", "deformdetr")},
        "threads": environment["threads"],
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "best": {each: evaluation[each] for each in ("epoch", *_METRICS)},
        "curve": [{each: row.get(each) for each in ("epoch", "loss", *_METRICS)} for row in rows],
        "sha256": hashes.pop(),
        "repeated": len(runs),
    }


def parts() -> Parts:
    """Return the table of what was trained here, and summary and curve of the training on photographs."""
    entries = read(STORED)
    heads = ["command", "dataset", "parameters", "epochs", "minutes", "AP", "AP50", "from", "SHA-256 of `best.pt`"]
    table = markdown(heads, (_row(name, entries[name]) for name in COMMANDS), left=2)
    photographs = entries["bccd_cpu"]
    summary = f"{_summary(photographs)} {source(STORED, 'bccd_cpu')}"
    rows = (
        [str(row["epoch"]), f"{row['loss']:.2f}", *(f"{row[name]:.3f}" for name in _METRICS)]
        for row in photographs["curve"]
        if row["AP"] is not None
    )
    return {
        (README, ""): summary,
        (DOCS / "training.md", ""): f"{summary}\n\n{markdown(['epoch', 'loss', *_METRICS], rows, left=0)}",
        (DOCS / "published_checkpoints.md", "zoo"): table,
    }


def _summary(entry: dict[str, Any]) -> str:
    best, curve = entry["best"], entry["curve"]
    return (
        "A two-stage Deformable DETR of 1.3 million parameters, trained from scratch on the 205 photographs of BCCD, a "
        f"dataset of blood cells: AP {best['AP']:.3f}, AP50 {best['AP50']:.3f} on its 87 validation photographs "
        f"(pycocotools, best checkpoint, epoch {best['epoch']}). The {entry['epochs']} epochs took "
        f"{entry['seconds'] / 60:.0f} minutes in all on {entry['threads']} thread of a shared x86-64 CPU, and the loss "
        f"fell from {curve[0]['loss']:.2f} to {curve[-1]['loss']:.2f}."
    )


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    with torch.device("meta"):
        model = experiment(name).model.replace(num_classes=3).build()
    return [
        f"`{COMMANDS[name]}`",
        DATASETS[name],
        f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        str(entry["epochs"]),
        f"{entry['seconds'] / 60:.1f}",
        *(f"{entry['best'][metric]:.3f}" for metric in ("AP", "AP50")),
        f"torch {entry['versions']['torch'].split('+')[0]}, commit {entry['commit']}",
        f"`{entry['sha256']}`, {entry['repeated']} runs" if entry["sha256"] else "not kept",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("runs", type=Path, nargs="+", help="finished run directories of the command")
    arguments = parser.parse_args()
    collected = collect(arguments.name, [RunDirectory(run) for run in arguments.runs])
    store(STORED, {**read(STORED), arguments.name: collected})
    write(parts())
