"""Time whole models of transformers on the CPU, before and after they are accelerated, and write the table of a page.

`python -m benchmarks.transformers_speed --run` measures, writes `benchmarks/results/transformers_cpu.json` and, from
that, the table; without `--run` it only writes the table.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pages import RESULTS, ROOT, write_generated_part
from deformdetr.integrations.transformers import accelerate

STORED = RESULTS / "transformers_cpu.json"
PAGE = ROOT / "docs" / "existing_code.md"
SIZE = (480, 640)
ROUNDS = 5


def _deformable_detr() -> nn.Module:
    import transformers

    stages = ["stage2", "stage3", "stage4"]
    config = transformers.DeformableDetrConfig(backbone_config=transformers.ResNetConfig(out_features=stages))
    return transformers.DeformableDetrForObjectDetection(config)


def _rt_detr() -> nn.Module:
    import transformers

    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(anchor_image_size=None, num_denoising=0))


def _d_fine() -> nn.Module:
    import transformers

    return transformers.DFineForObjectDetection(transformers.DFineConfig(anchor_image_size=None, num_denoising=0))


def _mask2former() -> nn.Module:
    import transformers

    return transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig())


# Of the sizes that their configs have by default, with random weights.
CASES: dict[str, Callable[[], nn.Module]] = {
    "DeformableDetrForObjectDetection": _deformable_detr,
    "Mask2FormerForUniversalSegmentation": _mask2former,
    "RTDetrForObjectDetection": _rt_detr,
    "DFineForObjectDetection": _d_fine,
}


def measure(model: nn.Module, images: Tensor, *, backward: bool, rounds: int) -> dict[str, Any]:
    """Take turns between the two, so that whatever else the machine does hits both; a round is one pass of each.

    Times are those of the process, which is not charged for what others run in between.
    """

    def run() -> float:
        started = time.process_time()
        with torch.set_grad_enabled(backward):
            outputs = model(images)
            if backward:
                model.zero_grad()
                sum(value.mean() for value in _finite(outputs) if value.requires_grad).backward()
        return time.process_time() - started

    def run_accelerated() -> float:
        with accelerate(model):
            return run()

    run(), run_accelerated()
    pairs = [(run(), run_accelerated()) for _ in range(rounds)]
    return {
        "seconds": min(before for before, _ in pairs),
        "seconds_accelerated": min(after for _, after in pairs),
        "speed_up": statistics.median(before / after for before, after in pairs),
    }


def _finite(outputs: Any) -> list[Tensor]:
    return [value.clamp(-1e3, 1e3) for value in outputs.values() if isinstance(value, Tensor)]


def collect(commit: str) -> dict[str, Any]:
    """Measure all models, on one image each."""
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for name, build in CASES.items():
        model = build().eval()
        images = torch.randn(1, 3, *SIZE)
        for backward in (False, True):
            row = {"model": name, "backward": backward, **measure(model, images, backward=backward, rounds=ROUNDS)}
            print(row)
            rows.append(row)
    return {
        "command": "python -m benchmarks.transformers_speed --run",
        "commit": commit,
        "environment": {
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "image": SIZE,
        "rounds": ROUNDS,
        "rows": rows,
    }


def table(results: dict[str, Any]) -> str:
    """Write a row per model and what to know of the numbers."""
    lines = [
        "| model | forward | accelerated | speed-up | with backward | accelerated | speed-up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        by_model.setdefault(row["model"], []).append(row)
    for model, rows in by_model.items():
        cells = [
            f"{row['seconds']:.2f} s | {row['seconds_accelerated']:.2f} s | {row['speed_up']:.2f} ×"
            for row in sorted(rows, key=lambda row: row["backward"])
        ]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    environment, (height, width) = results["environment"], results["image"]
    note = (
        f"One image of {height} × {width} in float32, models of their default sizes with random weights, "
        f"one thread on a shared {environment['machine']} CPU: the least processor time of {results['rounds']} rounds "
        f"that take turns, and the median of their ratios. `{results['command']}`, torch "
        f"{environment['torch'].split('+')[0]}, transformers {environment['transformers']}, commit "
        f"{results['commit']}; stored in `benchmarks/results/transformers_cpu.json`."
    )
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure again")
    parser.add_argument("--commit", default="unknown", help="commit of the code that is measured")
    arguments = parser.parse_args()
    if arguments.run:
        STORED.write_text(json.dumps(collect(arguments.commit), indent=1) + "\n", encoding="utf-8")
    write_generated_part(PAGE, table(json.loads(STORED.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
