"""How far results are from those that are right."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.cases import Dtype

# Of single operations; outputs that are rounded to a dtype lie within a third of its number.
TOLERANCES: Mapping[Dtype, float] = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}


def largest_error(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Give the larger of two relative errors over all tensors, infinite where shapes differ or a number is not finite.

    They are the norm of the difference by that of what is expected, and the largest difference by the largest expected
    magnitude.
    """
    if outputs.keys() != expected.keys():
        raise ValueError(f"outputs are {sorted(outputs)}, but expected are {sorted(expected)}")
    return max(_error(outputs[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def _error(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        return math.inf
    expected = expected.double()
    difference = output.to(expected) - expected
    if not difference.numel():
        return 0.0
    by_norm = _ratio(difference.norm().item(), expected.norm().item())
    by_largest = _ratio(difference.abs().max().item(), expected.abs().max().item())
    return max(by_norm, by_largest)


def _ratio(difference: float, scale: float) -> float:
    if not math.isfinite(difference):
        return math.inf
    # Where nothing but zero is expected, there is nothing to relate to.
    return difference / scale if scale else difference
