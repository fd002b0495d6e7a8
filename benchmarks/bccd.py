"""Store the results of a training run on photographs of blood cells, and write them into the README and the guide.

`python -m benchmarks.bccd RUN` reads a run directory of `configs/bccd_cpu.yaml`, after `deformdetr eval`. It writes
`benchmarks/results/bccd_cpu.json` and, from it, the tables; without RUN it only writes the tables.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import RESULTS, ROOT, Parts, Report, markdown

COMMANDS = (
    "deformdetr train configs/bccd_cpu.yaml --output runs/bccd_cpu",
    "deformdetr eval runs/bccd_cpu",
)


def collect(run: Path, commit: str) -> dict[str, Any]:
    """Read the files of a run, without those entries that depend on where it was stored."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "commands": COMMANDS,
        "commit": commit,
        "environment": {name: value for name, value in environment.items() if name not in ("command", "platform")},
        "epochs": [json.loads(line) for line in lines],
        "evaluation": {name: value for name, value in evaluation.items() if name != "data"},
    }


def parts(results: Mapping[str, Any]) -> Parts:
    """Return a summary for the README and, with loss and precision over the epochs, for the guide."""
    epochs, environment, metrics = results["epochs"], results["environment"], results["evaluation"]
    minutes = sum(row["seconds"] for row in epochs) / 60
    commands = " and ".join(f"`{command}`" for command in results["commands"])
    summary = (
        "A two-stage Deformable DETR of 1.3 million parameters, trained from scratch on the 205 photographs of BCCD, a "
        f"dataset of blood cells: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on its 87 validation photographs "
        f"(pycocotools, best checkpoint, epoch {metrics['epoch']}). The {len(epochs)} epochs took {minutes:.0f} "
        f"minutes in all on {environment['threads']} thread of a shared x86-64 CPU, and the loss fell from "
        f"{epochs[0]['loss']:.2f} to {epochs[-1]['loss']:.2f}. {commands}, torch "
        f"{environment['torch'].split('+')[0]}, commit {results['commit']}; every epoch is in "
        "`benchmarks/results/bccd_cpu.json`."
    )
    names = ("AP", "AP50", "AP75")
    table = markdown(
        ["epoch", "loss", *names],
        (
            [str(row["epoch"]), f"{row['loss']:.2f}", *(f"{row[name]:.3f}" for name in names)]
            for row in epochs
            if row.get("AP") is not None
        ),
        left=0,
    )
    return {ROOT / "README.md": {"": summary}, ROOT / "docs" / "training.md": {"": f"{summary}\n\n{table}"}}


REPORT = Report(RESULTS / "bccd_cpu.json", parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run directory to read the results of")
    parser.add_argument("--commit", default="unknown", help="commit of the code that the run was made with")
    options = parser.parse_args()
    REPORT.update(collect(options.run, options.commit) if options.run else None, indent=1)


if __name__ == "__main__":
    main()
