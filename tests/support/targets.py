"""Targets of the goldens, and random ones."""

import math
from collections.abc import Sequence

import torch

from deformdetr.structures import Target
from goldens import unit


def golden_targets(tag: str, counts: Sequence[int], num_classes: int = 91) -> list[Target]:
    """Return the targets of a golden in float64; `tests/goldens/README.md` has the formulas."""
    targets: list[Target] = []
    for image, count in enumerate(counts):
        centers = unit(f"{tag}.centers{image}", (count, 2)) / math.sqrt(3) * 0.3 + 0.5
        sizes = unit(f"{tag}.sizes{image}", (count, 2)) / math.sqrt(3) * 0.15 + 0.2
        labels = ((unit(f"{tag}.labels{image}", (count,)) / math.sqrt(3) + 1) / 2 * num_classes).floor()
        targets.append({"boxes": torch.cat([centers, sizes], dim=1), "labels": labels.long().clamp(0, num_classes - 1)})
    return targets


def random_targets(
    counts: Sequence[int], num_classes: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> list[Target]:
    """Return the wanted number of targets for each image, inside it."""
    targets: list[Target] = []
    for count in counts:
        sizes = torch.rand(count, 2, generator=generator, dtype=dtype) * 0.4 + 0.05
        centers = sizes / 2 + torch.rand(count, 2, generator=generator, dtype=dtype) * (1 - sizes)
        labels = torch.randint(num_classes, (count,), generator=generator)
        targets.append({"boxes": torch.cat([centers, sizes], dim=1), "labels": labels})
    return targets
