"""Print how much memory a training step takes with and without gradient checkpointing.

`python -m benchmarks.gradient_checkpointing` prints the table of `docs/relatives.md`.
"""

import argparse
from collections.abc import Sequence

import torch

from benchmarks.memory import peak_bytes
from benchmarks.pages import markdown
from benchmarks.problems.matching import draw_targets
from deformdetr.config import DeformableDETRConfig, DETRConfig, preset
from deformdetr.engine import enable_gradient_checkpointing

PRESETS = ("deformable_detr_r50", "detr_r50")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    sizes = parser.parse_args(arguments)
    rows = []
    for name in PRESETS:
        peaks = [
            measure(preset(name), sizes.batch, sizes.height, sizes.width, checkpointing=each) for each in (False, True)
        ]
        rows.append([f"`{name}`", *(f"{peak / 2**30:.2f} GiB" for peak in peaks)])
    print(markdown(["preset", "without", "with"], rows))


def measure(
    config: DeformableDETRConfig | DETRConfig, batch: int, height: int, width: int, *, checkpointing: bool
) -> int:
    """Return the peak memory of forward, losses and backward, beyond the weights and their gradients."""
    model = config.build().train()
    if checkpointing:
        enable_gradient_checkpointing(model)
    criterion = config.build_criterion()
    images = torch.randn(batch, 3, height, width)
    targets = draw_targets([7] * batch, 1, torch.default_generator)

    def step() -> None:
        criterion.total(criterion(model(images), targets)).backward()

    # The first step allocates the gradients.
    step()
    return peak_bytes(step, "cpu")


if __name__ == "__main__":
    main()
