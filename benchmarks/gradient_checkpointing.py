"""How much memory gradient checkpointing saves in a training step: `python -m benchmarks.gradient_checkpointing`."""

import argparse
from collections.abc import Callable, Sequence

import torch

from benchmarks.memory import peak_bytes
from deformdetr.config import DeformableDETRConfig, DETRConfig, preset
from deformdetr.engine import enable_gradient_checkpointing
from deformdetr.structures import Target

PRESETS = ("deformable_detr_r50", "detr_r50")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of presets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    given = parser.parse_args(arguments)
    print("| preset | without | with |\n| --- | ---: | ---: |")
    for name in PRESETS:
        sizes = [measure(preset(name), given.batch, given.height, given.width, is_on=is_on) for is_on in (False, True)]
        print(f"| `{name}` | " + " | ".join(f"{size / 2**30:.2f} GiB" for size in sizes) + " |", flush=True)


def measure(config: DeformableDETRConfig | DETRConfig, batch: int, height: int, width: int, *, is_on: bool) -> int:
    """Give the most memory that forward, losses and backward take at once, beyond weights and their gradients."""
    model = config.build().train()
    if is_on:
        enable_gradient_checkpointing(model)
    step = _step(config, model, batch, height, width)
    # Afterwards there are gradients to add to.
    step()
    return peak_bytes(step, "cpu")


def _step(
    config: DeformableDETRConfig | DETRConfig, model: torch.nn.Module, batch: int, height: int, width: int
) -> Callable[[], None]:
    criterion = config.build_criterion()
    images = torch.randn(batch, 3, height, width)
    boxes = torch.cat([torch.rand(7, 2), torch.full((7, 2), 0.1)], dim=1)
    targets = [Target(labels=torch.zeros(7, dtype=torch.int64), boxes=boxes) for _ in range(batch)]

    def step() -> None:
        criterion.total(criterion(model(images), targets)).backward()

    return step


if __name__ == "__main__":
    main()
