"""Random objects on images."""

from collections.abc import Sequence

import torch

from deformdetr.structures import Target


def draw_targets(counts: Sequence[int], classes: int, rng: torch.Generator) -> list[Target]:
    """Draw boxes (cx, cy, w, h) inside the image and labels, on the generator's device."""
    targets: list[Target] = []
    for count in counts:
        sizes = 0.05 + 0.4 * torch.rand(count, 2, generator=rng, device=rng.device)
        centers = sizes / 2 + (1 - sizes) * torch.rand(count, 2, generator=rng, device=rng.device)
        labels = torch.randint(classes, (count,), generator=rng, device=rng.device)
        targets.append({"boxes": torch.cat([centers, sizes], dim=1), "labels": labels})
    return targets
