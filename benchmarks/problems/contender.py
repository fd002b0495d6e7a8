"""An implementation that is to be measured, and the problem that several of them solve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Outputs: TypeAlias = Mapping[str, Tensor]


class UnavailableError(Exception):
    """An implementation cannot run a case; the message says why."""


@dataclass(frozen=True)
class Contender:
    """An implementation with its inputs.

    Attributes:
        call: What is timed.
        outputs: What it computes, to be compared with `expected`.
        expected: What is right for the inputs as this implementation takes them, in float64.
        note: What a reader of the results has to know.
    """

    call: Callable[[], object]
    outputs: Callable[[], Outputs]
    expected: Callable[[], Outputs]
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """A name, and what builds the contender or raises `UnavailableError`."""

    name: str
    build: Callable[[], Contender]


@dataclass(frozen=True)
class Problem:
    """Candidates for one task.

    Attributes:
        baseline: The candidate that all are compared with.
        tolerance: The largest error, see `benchmarks.agreement`, with which one is still timed.
        clock: `device` for work that a GPU does alone, `wall` where the host takes part.
    """

    candidates: tuple[Candidate, ...]
    baseline: str
    tolerance: float
    clock: Literal["device", "wall"]
