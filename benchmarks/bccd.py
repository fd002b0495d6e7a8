"""Keep what a training run on the photographs of blood cells came to, and write it into README and guide.

`python -m benchmarks.bccd RUN` reads a run directory of `configs/bccd_cpu.yaml` that `deformdetr eval` has been called
on, writes `benchmarks/results/bccd_cpu.json` and, from that, the tables; without RUN it only writes the tables.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.pages import RESULTS, ROOT, write_generated_part

STORED = RESULTS / "bccd_cpu.json"
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "training.md"
COMMANDS = (
    "deformdetr train configs/bccd_cpu.yaml --output runs/bccd_cpu",
    "deformdetr eval runs/bccd_cpu",
)


def collect(run: Path, commit: str) -> dict[str, Any]:
    """Read the files of a run."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "commands": COMMANDS,
        "commit": commit,
        "environment": {name: value for name, value in environment.items() if name not in ("command", "platform")},
        "epochs": [json.loads(line) for line in lines],
        # Where the files lay says something of the machine, not of the run.
        "evaluation": {name: value for name, value in evaluation.items() if name != "data"},
    }


def table(results: dict[str, Any]) -> str:
    """Write loss and precision over the epochs."""
    evaluated = [row for row in results["epochs"] if row.get("AP") is not None]
    heads = ["epoch", "loss", "AP", "AP50", "AP75"]
    rows = [heads, ["---:"] * len(heads)]
    rows += [
        [str(row["epoch"]), f"{row['loss']:.2f}", *(f"{row[name]:.3f}" for name in heads[2:])] for row in evaluated
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def summary(results: dict[str, Any]) -> str:
    """Say in two sentences what came out, and how to repeat it."""
    epochs, environment = results["epochs"], results["environment"]
    metrics = results["evaluation"]
    minutes = sum(row["seconds"] for row in epochs) / 60
    commands = " and ".join(f"`{command}`" for command in results["commands"])
    return (
        "A two-stage Deformable DETR of 1.3 million parameters, trained from scratch on the 205 photographs of BCCD, a "
        f"dataset of blood cells: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on its 87 validation photographs "
        f"(pycocotools, best checkpoint, epoch {metrics['epoch']}). The {len(epochs)} epochs took {minutes:.0f} "
        f"minutes in all on {environment['threads']} thread of a shared x86-64 CPU, and the loss fell from "
        f"{epochs[0]['loss']:.2f} to {epochs[-1]['loss']:.2f}. {commands}, torch "
        f"{environment['torch'].split('+')[0]}, commit {results['commit']}; every epoch is in "
        "`benchmarks/results/bccd_cpu.json`."
    )


def write_pages(results: dict[str, Any]) -> None:
    """Put the results into README and guide."""
    write_generated_part(README, summary(results))
    write_generated_part(GUIDE, f"{summary(results)}\n\n{table(results)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run directory to read the results of")
    parser.add_argument("--commit", default="unknown", help="commit of the code that the run was made with")
    arguments = parser.parse_args()
    if arguments.run is not None:
        results = collect(arguments.run, arguments.commit)
        STORED.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(STORED.read_text(encoding="utf-8"))
    write_pages(results)
    print(summary(results), table(results), sep="\n\n")


if __name__ == "__main__":
    main()
