"""Levels with different numbers of points: every level has one or more groups, all with the same number of points."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deformdetr._dtypes import at_least_float32
from deformdetr._tracing import compares_sizes, fixed_size
from deformdetr.kernels._checks import check_floating, check_references


def count_groups(points_per_level: Any) -> list[int]:
    """Return the number of groups of every level; empty for one each.

    Raises:
        TypeError: If it is not a sequence of whole numbers.
        ValueError: If there is no level, or a level without points.
    """
    are_numbers = isinstance(points_per_level, Sequence) and all(
        isinstance(count, int | torch.SymInt) for count in points_per_level
    )
    if not are_numbers:
        raise TypeError(f"points_per_level must be whole numbers, one per level, got {points_per_level!r}")
    counts: Sequence[int] = points_per_level
    if not counts or min(counts) < 1:
        raise ValueError(f"points_per_level must be positive numbers, one per level, got {list(counts)}")
    size = math.gcd(*counts)
    repeats = [count // size for count in counts]
    return [] if max(repeats) == 1 else repeats


@compares_sizes
def group_points(name: str, tensor: Any, points_per_level: Sequence[int], *last: int) -> Tensor:
    """Split the axis of all points, in (batch, queries, heads, points, *last), into groups and their points.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has another shape.
    """
    grouped: Tensor = tensor
    check_floating(name, grouped)
    total = sum(points_per_level)
    if grouped.shape[3:] != (total, *last):
        axes = ", ".join(map(str, ("batch", "queries", "heads", total, *last)))
        raise ValueError(
            f"with points_per_level {list(points_per_level)}, {name} must have shape ({axes}), got "
            f"{tuple(grouped.shape)}"
        )
    size = math.gcd(*points_per_level)
    return grouped.reshape(*grouped.shape[:3], total // size, size, *last)


@compares_sizes
def group_references(references: Any, offsets: Tensor, repeats: Sequence[int]) -> Tensor:
    """Return the reference points of all groups, (batch, queries, groups, coordinates).

    Offsets count halves of a box divided by the number of points of a group. The box of a level is therefore divided by
    the level's number of groups.

    Args:
        references: (batch or 1, queries, levels or 1, 2 or 4).
        offsets: (batch, queries, heads, groups, points, 2).
        repeats: Number of groups of every level; empty for one each.

    Raises:
        TypeError: If references are not a floating-point tensor.
        ValueError: If shapes or devices disagree.
    """
    given: Tensor = references
    if not repeats:
        return given
    check_floating("reference_points", given)
    check_references(given, offsets, len(repeats))
    levels = torch.split(at_least_float32(given).expand(-1, -1, len(repeats), -1), 1, dim=2)
    groups = [(level, count) for level, count in zip(levels, repeats, strict=True) for _ in range(count)]
    centers = torch.cat([level[..., :2] for level, _ in groups], dim=2)
    if fixed_size(given.shape[3]) == 2:
        return centers
    return torch.cat([centers, torch.cat([level[..., 2:] / count for level, count in groups], dim=2)], dim=3)
