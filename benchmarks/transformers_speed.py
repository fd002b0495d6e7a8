"""Time whole models of transformers on the CPU, before and after they are accelerated.

`python -m benchmarks.transformers_speed` measures, and writes the table of `docs/existing_code.md`.
"""

from collections.abc import Mapping
from operator import truediv
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import describe_source
from benchmarks.measure import processor_times
from benchmarks.pages import DOCS, Parts, markdown, read, source, store, write
from deformdetr.integrations.transformers import accelerate

STORED = "transformers_cpu.json"
SIZE = (480, 640)
ROUNDS = 5
_ANY_SIZE = {"anchor_image_size": None, "num_denoising": 0}
# Models and their configs, which set no more than is needed for random weights and images of any size.
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DeformableDetrForObjectDetection": ("DeformableDetrConfig", {}),
    "Mask2FormerForUniversalSegmentation": ("Mask2FormerConfig", {}),
    "RTDetrForObjectDetection": ("RTDetrConfig", _ANY_SIZE),
    "DFineForObjectDetection": ("DFineConfig", _ANY_SIZE),
}


def build(name: str) -> nn.Module:
    """Build a model of transformers with random weights."""
    import transformers

    config, options = CASES[name]
    if config == "DeformableDetrConfig":
        options = {"backbone_config": transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])}
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
    return model


def measure(model: nn.Module, images: Tensor, *, backward: bool, rounds: int = ROUNDS) -> dict[str, float]:
    """Time a model and the accelerated model in turns, by the processor time of this process."""

    def call() -> None:
        with torch.set_grad_enabled(backward):
            outputs = model(images)
            if backward:
                model.zero_grad()
                tensors = [value for value in outputs.values() if isinstance(value, Tensor) and value.requires_grad]
                sum(value.clamp(-1e3, 1e3).mean() for value in tensors).backward()

    def call_accelerated() -> None:
        with accelerate(model):
            call()

    before, after = processor_times({"before": call, "after": call_accelerated}, rounds).values()
    speed_up = median(map(truediv, before, after))
    return {"seconds": min(before), "seconds_accelerated": min(after), "speed_up": speed_up}


def collect() -> dict[str, Any]:
    """Measure all models, on one image each."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for name in CASES:
        model, images = build(name).eval(), torch.randn(1, 3, *SIZE)
        for backward in (False, True):
            rows.append({"model": name, "backward": backward, **measure(model, images, backward=backward)})
            print(rows[-1], flush=True)
    origin = describe_source("python -m benchmarks.transformers_speed", packages=("torch", "transformers"))
    return {**origin, "image": SIZE, "rounds": ROUNDS, "rows": rows}


def parts() -> Parts:
    """Return the table of the page."""
    results = read(STORED)
    cells: dict[str, list[str]] = {}
    for row in sorted(results["rows"], key=lambda row: row["backward"]):
        numbers = [f"{row['seconds']:.2f} s", f"{row['seconds_accelerated']:.2f} s", f"{row['speed_up']:.2f} ×"]
        cells.setdefault(row["model"], [f"`{row['model']}`"]).extend(numbers)
    heads = ["model", "forward", "accelerated", "speed-up", "with backward", "accelerated", "speed-up"]
    return {(DOCS / "existing_code.md", ""): f"{markdown(heads, cells.values())}\n\n{source(STORED)}"}


if __name__ == "__main__":
    store(STORED, collect())
    write(parts())
