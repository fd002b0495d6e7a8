"""Print how much memory a training step takes with and without gradient checkpointing.

`python -m benchmarks.gradient_checkpointing` prints the table of `docs/relatives.md`.
"""

import torch

from benchmarks.matching import draw_targets
from benchmarks.measure import peak_bytes
from benchmarks.pages import markdown
from deformdetr.config import DeformableDETRConfig, DETRConfig, preset
from deformdetr.engine import enable_gradient_checkpointing


def measure(config: DeformableDETRConfig | DETRConfig, images: torch.Tensor, *, checkpointing: bool) -> int:
    """Return the peak memory of forward, losses and backward, beyond the weights and their gradients."""
    model = config.build().train()
    if checkpointing:
        enable_gradient_checkpointing(model)
    criterion = config.build_criterion()
    targets = draw_targets([7] * len(images), 1, torch.default_generator)

    def step() -> None:
        criterion.total(criterion(model(images), targets)).backward()

    # The first step allocates the gradients.
    step()
    return peak_bytes(step, "cpu")


if __name__ == "__main__":
    images = torch.randn(2, 3, 480, 640)
    rows = []
    for name in ("deformable_detr_r50", "detr_r50"):
        peaks = (measure(preset(name), images, checkpointing=each) for each in (False, True))
        rows.append([f"`{name}`", *(f"{peak / 2**30:.2f} GiB" for peak in peaks)])
    print(markdown(["preset", "without checkpointing", "with checkpointing"], rows))
