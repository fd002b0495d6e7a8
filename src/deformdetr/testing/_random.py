"""Random calls of the operator of every kind that it takes."""

import random
from dataclasses import replace

import torch
from torch import Tensor

from deformdetr.testing._inputs import LAYOUTS, Problem, away_from_pixel_borders, make_problem, random_inputs

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NOWHERE = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 300.0)


def random_problem(seed: int, dtype: torch.dtype | None = None) -> Problem:
    """Draw sizes, dtypes, memory layout and numbers of a call, for fuzzing.

    Sizes may be 0. Locations are exact in every dtype, or away from where rounding decides between pixels; some may be
    NaN, infinite or far outside.

    Args:
        seed: Number that everything follows from.
        dtype: Dtype of the value and the weights, beside float32 locations; without it, all three are drawn.

    Examples:
        >>> random_problem(3).value.shape == random_problem(3).value.shape
        True
    """
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    is_exact = choose.random() < 0.5
    sides = [0, 1, 2, 4, 8] if is_exact else [0, 1, 2, 3, 5, 6, 7, 11]
    shapes = [(choose.choice(sides), choose.choice(sides)) for _ in range(choose.choice([1, 1, 2, 3]))]
    value, locations, weights = random_inputs(
        generator,
        shapes,
        batch=choose.choice([0, 1, 1, 2, 3]),
        queries=choose.choice([0, 1, 2, 5, 33]),
        heads=choose.choice([1, 2, 3]),
        channels=choose.choice([0, 1, 2, 3, 4, 7, 8, 16, 24, 33, 70]),
        points=choose.choice([0, 1, 2, 3, 5, 17]),
    )
    if is_exact:
        locations = (locations * 16).round() / 16
    else:
        locations = away_from_pixel_borders(locations.float().double(), shapes)
    locations = _move_some_nowhere(locations, choose, generator)
    drawn = (choose.choice(_DTYPES), choose.choice(_DTYPES if is_exact else _DTYPES[:2]), choose.choice(_DTYPES))
    dtypes = drawn if dtype is None else (dtype, torch.promote_types(dtype, torch.float32), dtype)
    problem = make_problem(
        (value, locations, weights), shapes, generator, dtypes[0], locations_dtype=dtypes[1], weights_dtype=dtypes[2]
    )
    needs = (choose.random() < 0.7, choose.random() < 0.7, choose.random() < 0.7)
    return replace(problem, needs=needs, layout=choose.choice(LAYOUTS), label=f"random_problem({seed})")


def _move_some_nowhere(locations: Tensor, choose: random.Random, generator: torch.Generator) -> Tensor:
    """Replace a tenth of the coordinates, or none, by what lies in no level."""
    nowhere = torch.tensor(_NOWHERE, dtype=torch.float64)[
        torch.randint(len(_NOWHERE), locations.shape, generator=generator)
    ]
    is_nowhere = torch.rand(locations.shape, generator=generator) < choose.choice([0, 0.1])
    return torch.where(is_nowhere, nowhere, locations)
