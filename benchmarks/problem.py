"""What a problem consists of: implementations, their results and the results expected of them."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from benchmarks.cases import Dtype

Outputs: TypeAlias = Mapping[str, Tensor]

# Of single operations. Rounding an output to a dtype changes it by up to a third of its tolerance.
TOLERANCES: Mapping[Dtype, float] = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}


class UnavailableError(Exception):
    """An implementation cannot run a case; the message says why."""


class Contender(NamedTuple):
    """An implementation with its inputs.

    Attributes:
        call: The function to time.
        outputs: Computes the results to compare with `expected`.
        expected: Computes the right results for the inputs as this implementation takes them, in float64.
        note: What a reader of its row has to know.
        tolerance: Largest `largest_error` with which it is timed; that of the problem by default.
    """

    call: Callable[[], object]
    outputs: Callable[[], Outputs]
    expected: Callable[[], Outputs]
    note: str = ""
    tolerance: float | None = None


class Problem(NamedTuple):
    """Implementations to compare on one task.

    Attributes:
        candidates: Functions that build contenders, by name; they raise `UnavailableError` if they cannot.
        baseline: Name of the candidate that all are compared with.
        tolerance: Largest `largest_error` with which a contender is timed.
        clock: `device` for work that a GPU does alone, `wall` where the host takes part, `processor` for the time of
            this process on the CPU, which other work on the machine distorts less.
        count_flops: Counts the floating-point operations of a call, to be related to those of matrix products.
    """

    candidates: Mapping[str, Callable[[], Contender]]
    baseline: str
    tolerance: float
    clock: Literal["device", "wall", "processor"]
    count_flops: Callable[[], int] | None = None


def largest_error(outputs: Outputs, expected: Outputs) -> float:
    """Return the largest relative error of the tensors: by their norm or by their largest element, whichever is larger.

    It is infinite where shapes differ or a number is not finite. Where all expected numbers are 0, it is absolute.
    """
    if outputs.keys() != expected.keys():
        raise ValueError(f"outputs are {sorted(outputs)}, but expected are {sorted(expected)}")
    return max(_error(outputs[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def _error(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        return math.inf
    if not output.numel():
        return 0.0
    expected = expected.double()
    difference = output.to(expected) - expected
    if not difference.isfinite().all():
        return math.inf
    norms = ((torch.linalg.vector_norm(t, order).item() for t in (difference, expected)) for order in (2, math.inf))
    return max(error / (norm or 1) for error, norm in norms)
