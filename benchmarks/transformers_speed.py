"""Time whole models of transformers on the CPU, before and after they are accelerated, and write the table of a page.

`python -m benchmarks.transformers_speed --run` measures, writes `benchmarks/results/transformers_cpu.json` and, from
it, the table; without `--run` it only writes the table.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import interleave
from benchmarks.pages import RESULTS, ROOT, Report, markdown
from deformdetr.integrations.transformers import accelerate

SIZE = (480, 640)
ROUNDS = 5
# Models and their configs, which set no more than is needed for random weights and images of any size.
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DeformableDetrForObjectDetection": ("DeformableDetrConfig", {}),
    "Mask2FormerForUniversalSegmentation": ("Mask2FormerConfig", {}),
    "RTDetrForObjectDetection": ("RTDetrConfig", {"anchor_image_size": None, "num_denoising": 0}),
    "DFineForObjectDetection": ("DFineConfig", {"anchor_image_size": None, "num_denoising": 0}),
}


def build(name: str) -> nn.Module:
    """Build a model of transformers with random weights."""
    import transformers

    config_name, options = CASES[name]
    if config_name == "DeformableDetrConfig":
        stages = ["stage2", "stage3", "stage4"]
        options = {"backbone_config": transformers.ResNetConfig(out_features=stages)}
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config_name)(**options))
    return model


def measure(model: nn.Module, images: Tensor, *, backward: bool, rounds: int) -> dict[str, float]:
    """Time a model and the accelerated model in turns, by the processor time of this process."""

    def sample(*, accelerated: bool) -> float:
        with accelerate(model) if accelerated else nullcontext():
            started = time.process_time()
            with torch.set_grad_enabled(backward):
                outputs = model(images)
                if backward:
                    model.zero_grad()
                    tensors = [value for value in outputs.values() if isinstance(value, Tensor) and value.requires_grad]
                    sum(value.clamp(-1e3, 1e3).mean() for value in tensors).backward()
            return time.process_time() - started

    samples = {
        "seconds": lambda: sample(accelerated=False),
        "seconds_accelerated": lambda: sample(accelerated=True),
    }
    for call in samples.values():
        call()
    before, after = interleave(samples, dict.fromkeys(samples, rounds)).values()
    ratios = [slow / fast for slow, fast in zip(before, after, strict=True)]
    return {"seconds": min(before), "seconds_accelerated": min(after), "speed_up": statistics.median(ratios)}


def collect(commit: str) -> dict[str, Any]:
    """Measure all models, on one image each."""
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for name in CASES:
        model = build(name).eval()
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


def table(results: Mapping[str, Any]) -> str:
    """Return a table of the models, and how they were timed."""
    cells: dict[str, list[str]] = {}
    for row in sorted(results["rows"], key=lambda row: row["backward"]):
        numbers = [f"{row['seconds']:.2f} s", f"{row['seconds_accelerated']:.2f} s", f"{row['speed_up']:.2f} ×"]
        cells.setdefault(row["model"], [f"`{row['model']}`"]).extend(numbers)
    heads = ["model", "forward", "accelerated", "speed-up", "with backward", "accelerated", "speed-up"]
    rows = [cells[model] for model in dict.fromkeys(row["model"] for row in results["rows"])]
    environment, (height, width) = results["environment"], results["image"]
    return f"{markdown(heads, rows)}\n\n" + (
        f"One image of {height} × {width} in float32, models of their default sizes with random weights, "
        f"one thread on a shared {environment['machine']} CPU: the shortest processor time of {results['rounds']} "
        f"alternating rounds, and the median of their ratios. `{results['command']}`, torch "
        f"{environment['torch'].split('+')[0]}, transformers {environment['transformers']}, commit "
        f"{results['commit']}; stored in `benchmarks/results/transformers_cpu.json`."
    )


REPORT = Report(
    RESULTS / "transformers_cpu.json", lambda results: {ROOT / "docs" / "existing_code.md": {"": table(results)}}
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure again")
    parser.add_argument("--commit", default="unknown", help="commit of the code that is measured")
    options = parser.parse_args()
    REPORT.update(collect(options.commit) if options.run else None, indent=1)


if __name__ == "__main__":
    main()
